"""`RFTTrainer`: which completions it is fine-tuned on, and what reward functions are given."""

import math

import pytest
from datasets import Dataset

from tests.policy.rft_runs import read_parquet, selected


def by(rewards):
    """A reward function that looks completions up."""
    return lambda prompts, completions, **_: [rewards[c] for c in completions]


class TestSelection:
    PROMPTS = Dataset.from_dict({"prompt": ["1+1\n", "2+2\n"], "answer": ["2", "4"]})
    ONCE = {"prompts": PROMPTS, "held_out": None, "num_iterations": 1, "num_samples": 3}

    def test_the_best_and_the_first_of_equals(self, make_rft, scripted, tmp_path):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#3", "#4", "#5"]})
        rewards = {"#0": 0.2, "#1": 0.7, "#2": 0.3, "#3": 0.5, "#4": 0.5, "#5": 0.5}
        [_, record] = make_rft(by(rewards), **self.ONCE).train()
        assert selected(tmp_path / "run") == [("1+1\n", "#1", 0.7), ("2+2\n", "#3", 0.5)]
        assert record["reward"] == pytest.approx(0.6)
        assert (record["num_selected"], record["num_without_candidate"]) == (2, 0)

    def test_none_is_never_selected(self, make_rft, scripted, tmp_path, caplog):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#3", "#4", "#3"]})
        rewards = {"#0": None, "#1": -5.0, "#2": None, "#3": None, "#4": None}
        [_, record] = make_rft(by(rewards), **self.ONCE).train()
        assert selected(tmp_path / "run") == [("1+1\n", "#1", -5.0)]
        assert record["num_without_candidate"] == 1
        assert "1 of 2 prompts have no completion with a reward." in caplog.text

    def test_what_is_cut_off_is_never_selected(self, make_rft, scripted, tmp_path):
        scripted({"1+1\n": ["#2…", "#1", "#0…"], "2+2\n": ["#4", "#3…", "#4"]})
        rewards = {"#2": 9.0, "#1": 0.1, "#0": 9.0, "#4": 0.2, "#3": 9.0}
        make_rft(by(rewards), **self.ONCE).train()
        assert selected(tmp_path / "run") == [("1+1\n", "#1", 0.1), ("2+2\n", "#4", 0.2)]
        rows = read_parquet(tmp_path / "run/iteration-1/samples.parquet")[:3]
        assert [(row["is_truncated"], row["score"]) for row in rows] == [(True, None), (False, 0.1), (True, None)]
        assert [row["reason"] for row in rows] == ["truncated", "kept", "truncated"]

    def test_several_reward_functions_are_added(self, make_rft, scripted, tmp_path):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#0", "#1", "#2"]})

        def first(prompts, completions, **_):
            return [{"#0": 1.0, "#1": 0.5, "#2": 3.0}[c] for c in completions]

        def second(prompts, completions, **_):
            return [{"#0": 0.0, "#1": 0.75, "#2": None}[c] for c in completions]

        make_rft([first, second], **self.ONCE).train()
        assert selected(tmp_path / "run") == [("1+1\n", "#1", 1.25), ("2+2\n", "#1", 1.25)]

    def test_what_a_reward_function_is_given(self, make_rft, scripted):
        scripted({"1+1\n": ["#0", "#1"], "2+2\n": ["#2", "#3"]})
        calls = []

        def reward(prompts, completions, **columns):
            calls.append((prompts, completions, columns))
            return [1.0] * len(prompts)

        make_rft(reward, **{**self.ONCE, "num_samples": 2}).train()
        assert calls == [(["1+1\n"] * 2 + ["2+2\n"] * 2, ["#0", "#1", "#2", "#3"], {"answer": ["2", "2", "4", "4"]})]

    def test_nothing_selected(self, make_rft, scripted):
        scripted({"1+1\n": ["#0", "#1…", "#2"], "2+2\n": ["#0", "#1", "#2"]})
        trainer = make_rft(lambda prompts, completions, **_: [None] * len(completions), **self.ONCE)
        with pytest.raises(
            ValueError,
            match="No completion was selected of 6 completions of 2 prompts by the rule 'best': 1 truncated, 5 no_sco"
            "re. None of them has a score.",
        ):
            trainer.train()

    def test_nan_is_an_error(self, make_rft, scripted):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#0", "#1", "#2"]})

        def broken(prompts, completions, **_):
            return [0.5] * (len(completions) - 1) + [math.nan]

        with pytest.raises(ValueError, match="The reward function 'broken' returned nan. A completion that cannot be"):
            make_rft(broken, **self.ONCE).train()

    def test_wrong_number_of_rewards(self, make_rft, scripted):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#0", "#1", "#2"]})

        def short(prompts, completions, **_):
            return [0.5]

        with pytest.raises(ValueError, match="The reward function 'short' returned 1 rewards for 6 completions."):
            make_rft(short, **self.ONCE).train()


def test_columns_that_the_protocol_has_are_not_handed_on(make_rft, scripted):
    """A worked solution's `completions` stay out of the way of those that were sampled; `answer` is handed on."""
    scripted({"1+1\n": ["#2"] * 4})
    rows = Dataset.from_list([{"prompt": "1+1\n", "answer": "2", "completions": ["1+1=2", "#2"], "completion": "x"}])
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((completions, columns))
        return [1.0] * len(completions)

    make_rft(reward, prompts=rows, held_out=0, num_iterations=1).train()
    assert seen == [(["#2"] * 4, {"answer": ["2"] * 4})]


class TestRules:
    """One run a rule, through the trainer's options."""

    PROMPTS = Dataset.from_dict({"prompt": ["1+1\n", "2+2\n"], "answer": ["2", "4"]})
    TABLE = {"1+1\n": ["#2", "#3", "#2", "1+1=2\n#2"], "2+2\n": ["#4", "#4", "#4", "#5"]}
    REWARDS = {"#2": 0.2, "#3": 0.9, "1+1=2\n#2": 0.6, "#4": 0.5, "#5": 0.4}

    @pytest.mark.parametrize(
        "changes, expected",
        [
            ({"selection": "threshold", "selection_threshold": 0.5}, ["#3", "1+1=2\n#2", "#4", "#4", "#4"]),
            ({"selection": "correct"}, ["#2", "#2", "1+1=2\n#2", "#4", "#4", "#4"]),
            ({"selection": "correct", "deduplicate": "text"}, ["#2", "1+1=2\n#2", "#4"]),
            ({"selection": "correct", "max_per_prompt": 1}, ["1+1=2\n#2", "#4"]),
            ({"selection": "best_correct"}, ["1+1=2\n#2", "#4"]),
            ({"selection": "top_k", "selection_k": 2}, ["#3", "1+1=2\n#2", "#4", "#4"]),
            ({"selection": "softmax", "selection_k": 2, "selection_temperature": 1e-6, "deduplicate": "equations"},
             ["#3", "1+1=2\n#2", "#4", "#5"]),
        ],
    )  # fmt: skip
    def test_rules(self, make_rft, scripted, tmp_path, changes, expected):
        scripted(self.TABLE)
        [_, record] = make_rft(
            by(self.REWARDS), prompts=self.PROMPTS, held_out=0, num_iterations=1, num_samples=4, **changes
        ).train()
        assert [text for _, text, _ in selected(tmp_path / "run")] == expected
        assert record["reasons"]["kept"] == record["num_selected"] == len(expected)
        assert sum(record["reasons"].values()) == 8

    def test_prompts_that_are_skipped(self, make_rft, scripted, tmp_path):
        scripted({"1+1\n": ["#2"] * 2, "2+2\n": ["#3", "#4"], "3+3\n": ["#0", "#1"]})
        prompts = Dataset.from_dict({"prompt": ["1+1\n", "2+2\n", "3+3\n"], "answer": ["2", "4", "6"]})
        skip = {"skip_always_solved": True, "skip_never_solved": True, "num_iterations": 1, "num_samples": 2}
        [_, record] = make_rft(lambda prompts, **_: [1.0] * len(prompts), prompts=prompts, held_out=0, **skip).train()
        assert record["reasons"] == {"kept": 1, "prompt_always_solved": 2, "prompt_never_solved": 2, "not_chosen": 1}
        rows = read_parquet(tmp_path / "run/iteration-1/samples.parquet")
        assert [row["is_correct"] for row in rows] == [True, True, False, True, False, False]

    def test_no_completion_passes(self, make_rft, scripted, tmp_path):
        scripted(self.TABLE)
        with pytest.raises(ValueError) as caught:
            make_rft(
                by(self.REWARDS), prompts=self.PROMPTS, held_out=0, num_samples=4, selection="threshold",
                selection_threshold=2.0,
            ).train()  # fmt: skip
        message = str(caught.value)
        assert "No completion was selected of 8 completions of 2 prompts by the rule 'threshold': 8 below" in message
        # 0.2 twice, 0.4 once, 0.5 three times, 0.6 and 0.9 once; ten bins of 0.07 from 0.2 on
        assert "Scores: 2 in 0.2 to 0.27, 1 in 0.34 to 0.41, 3 in 0.48 to 0.55, 1 in 0.55 to 0.62, 1 in" in message
        assert len(read_parquet(tmp_path / "run/iteration-1/samples.parquet")) == 8  # to be looked at

    @pytest.mark.parametrize("rule", [{"selection": "correct"}, {"skip_never_solved": True}])
    def test_prompts_without_answers(self, make_rft, rule):
        no_column = Dataset.from_dict({"prompt": ["1+1\n"]})
        with pytest.raises(
            ValueError, match=r"`train_dataset` needs the columns prompt, answer \(`selection='\w+'` com"
        ):
            make_rft(prompts=no_column, **rule)
        with pytest.raises(ValueError, match="Row 1 of `train_dataset` has no answer, which `selection='"):
            make_rft(prompts=Dataset.from_dict({"prompt": ["1+1\n", "2+2\n"], "answer": ["2", None]}), **rule)

    def test_weights_of_reward_functions(self, make_rft, scripted, tmp_path):
        scripted({"1+1\n": ["#2", "#3"]})
        config = {"prompts": self.PROMPTS.select([0]), "held_out": 0, "num_iterations": 1, "num_samples": 2}
        first, second = by({"#2": 1.0, "#3": 0.0}), by({"#2": 0.0, "#3": 1.0})
        make_rft([first, second], reward_weights=[1.0, 3.0], **config).train()
        assert selected(tmp_path / "run") == [("1+1\n", "#3", 3.0)]
        [row, _] = read_parquet(tmp_path / "run/iteration-1/samples.parquet")
        assert (row["score/<lambda>"], row["score/<lambda>_2"], row["score"]) == (1.0, 0.0, 1.0)
        with pytest.raises(
            ValueError, match="`reward_weights` must hold a weight for each of 2 reward functions, got 1"
        ):
            make_rft([first, second], reward_weights=[1.0], **config)
