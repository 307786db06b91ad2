"""`trl_erprm.policy.process_reward`: which completions are judged, aggregation, TRL's protocol."""

import gzip
import json
import math

import numpy as np
import pytest

from tests.tiny import prm_trainer, save_base
from trl_erprm import ProcessReward, ProcessRewardModel, aggregate
from trl_erprm.policy.guards import StepGuards
from trl_erprm.policy.process_reward import Judgement, combine_with_outcome
from trl_erprm.policy.process_reward_metrics import batch_metrics
from trl_erprm.steps import Step


class ScriptedPRM:
    """Scores from a table, one a step; records what it was asked."""

    def __init__(self, table):
        self.table = table
        self.calls = []

    def score(self, prompts, steps, batch_size, none_if_too_long):
        assert none_if_too_long  # one long completion must not end a run
        self.calls.append((list(prompts), [list(s) for s in steps], batch_size))
        return [[self.table[step] for step in solution] for solution in steps]


@pytest.mark.parametrize(
    ("option", "message"),
    [({"split_how": "lines"}, "newline"), ({"answer_how": "gsm"}, "gsm8k"), ({"aggregation": "mim"}, "min")],
)
def test_misspelt_options_are_errors_at_once(option, message):
    with pytest.raises(ValueError, match=message):
        ProcessReward(ScriptedPRM({}), **option)


TABLE = {"a": 0.9, "b": 0.4, "c": 0.8, "#1": 0.7, "#2": 0.2}


def reward(completions, prompts=None, columns=None, **options):
    prm = ScriptedPRM(TABLE)
    function = ProcessReward(prm, **{"answer_how": "arithmetic", **options})
    columns = {"x": [1], **(columns or {})}
    prompts = prompts or ["p"] * len(completions)
    return function(prompts=prompts, completions=completions, completion_ids=None, **columns), prm


def test_the_least_step_by_default():
    values, prm = reward(["a\nb\n#1", "c\n#2", "#1"], ["p", "q", "r"])
    assert values == [0.4, 0.2, 0.7]
    assert prm.calls == [(["p", "q", "r"], [["a", "b", "#1"], ["c", "#2"], ["#1"]], 32)]


@pytest.mark.parametrize(
    "how, expected", [("min", 0.4), ("mean", 2 / 3), ("product", 0.252), ("last", 0.7), ("max", 0.9)]
)
def test_aggregation(how, expected):
    assert reward(["a\nb\n#1"], aggregation=how)[0] == [pytest.approx(expected)]


def test_unknown_aggregation_at_construction():
    with pytest.raises(ValueError, match="`aggregation` must be one of .*, got 'minimum'. Did you mean 'min'?"):
        ProcessReward(ScriptedPRM({}), aggregation="minimum")


@pytest.mark.parametrize("completion", ["", "\n\n", "a\nb", "a\n#", "a\n#X"])
def test_no_step_or_no_answer_is_none(completion):
    values, prm = reward([completion, "a\n#1"])
    assert values == [None, 0.7]
    assert prm.calls[0][1] == [["a", "#1"]]  # nothing is spent on what cannot be judged


def test_an_answer_need_not_be_required():
    assert reward(["a\nb", "\n"], require_answer=False)[0] == [0.4, None]


class TestAnswersMustBeMarked:
    """Where `answer_how` would find a number in any text, `require_answer` wants the answer to be marked as one."""

    CUT = "16 - 7 = 9 eggs are left and now she sells each of these 9 for"
    MARKED = ("9 are left\n#### 9", "so \\boxed{9}", "The answer is 9.", "**Answer:** 9")
    UNMARKED = (CUT, "9", "She has 9 left.", "so \\boxed{9", "The answer to this")

    @pytest.mark.parametrize("answer_how", ["auto", "math"])
    def test_reasons(self, answer_how):
        function = ProcessReward(ScriptedPRM({}), answer_how=answer_how)
        assert [function.examine("p", text).malformed for text in self.MARKED] == [None] * 4
        assert [function.examine("p", text).malformed for text in self.UNMARKED] == ["no_answer"] * 5
        lenient = ProcessReward(ScriptedPRM({}), answer_how=answer_how, require_answer=False, combine="gate")
        assert lenient.examine("p", self.CUT).malformed is None  # `combine` reads it as the verdict does
        assert lenient.examine("p", "I do not know").malformed == "no_answer"

    def test_a_marked_answer_is_still_compared_leniently(self):
        table = {"So we have half.": 0.9, "The answer is 0.5": 0.8}
        function = ProcessReward(ScriptedPRM(table), combine="gate")
        given = ["So we have half.\nThe answer is 0.5"]
        assert function(prompts=["p"], completions=given, answer=["\\frac{1}{2}"]) == [0.8]

    def test_a_batch_without_any_answer_is_warned_of_once(self, caplog):
        function = ProcessReward(ScriptedPRM({"The answer is 9.": 0.5}))
        function.judge(["p", "p"], [self.CUT, "The answer is 9."])
        assert caplog.text == ""
        for texts in ([self.CUT, "9"], ["9", "9"]):
            function.judge(["p", "p"], texts)
        [record] = caplog.records
        assert record.getMessage().startswith("None of 2 completions has an answer that `answer_how='auto'` can read")

    def test_real_solutions(self, shared_data):
        """300 of Qwen2.5-7B-Instruct, which was not told how to mark its answer: a box is what it marks one with."""
        with gzip.open(shared_data / "bon_gsm8k" / "candidates.jsonl.gz", "rt") as file:
            texts = [c["completion"] for line in file for c in json.loads(line)["candidates"][:3]]
        counts = {}
        for answer_how in ("auto", "boxed"):
            function = ProcessReward(ScriptedPRM({}), answer_how=answer_how)
            for share in (0.7, 0.85, 1.0):
                judged = [function.examine("p", text[: int(share * len(text))]).malformed for text in texts]
                counts[answer_how, share] = judged.count("no_answer")
        assert len(texts) == 300 and all(counts[how, share] == 300 for how, share in counts if share < 1)
        assert counts["auto", 1.0] == counts["boxed", 1.0] == 225


def test_malformed_is_none():
    """A solution with a step skipped has fewer chances to score low: it must not compete."""
    seen = []

    def is_well_formed(prompt, steps):
        seen.append((prompt, steps))
        return len(steps) == 3

    values, _ = reward(["a\n#1", "a\nc\n#1", "a\nc\na\n#1", ""], is_well_formed=is_well_formed)
    assert values == [None, 0.7, None, None]
    assert seen == [("p", ["a", "#1"]), ("p", ["a", "c", "#1"]), ("p", ["a", "c", "a", "#1"])]


def test_all_none_and_empty():
    assert reward(["", "a"])[0] == [None, None]
    assert reward([])[0] == []


def test_conversational_completions():
    prompt = [{"role": "user", "content": "p"}]
    values, prm = reward([[{"role": "assistant", "content": "a\nb\n#1"}]], [prompt])
    assert values == [0.4]
    assert prm.calls[0][:2] == ([prompt], [["a", "b", "#1"]])


def test_split_how_and_batch_size():
    _, prm = reward(["a\n\nb\n\n#1"], split_how="blank_line", batch_size=7)
    assert prm.calls == [(["p"], [["a", "b", "#1"]], 7)]


def test_step_scores():
    function = ProcessReward(ScriptedPRM(TABLE), answer_how="arithmetic")
    assert function.step_scores(["p", "q"], ["a\nb\n#1", ""]) == [[0.9, 0.4, 0.7], None]


def test_unequal_numbers():
    with pytest.raises(ValueError, match="Got 1 prompts, but 2 completions. Give one prompt a completion"):
        ProcessReward(ScriptedPRM(TABLE))(prompts=["p"], completions=["a", "b"])


def test_name_for_the_metrics_of_trl():
    assert ProcessReward(ScriptedPRM({})).__name__ == "process_reward"


def test_from_a_directory(tmp_path):
    rows = [{"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "labels": [1.0, 1.0]}]
    prm_trainer(save_base(tmp_path / "base"), tmp_path / "prm", rows).save_model()
    [value] = ProcessReward(str(tmp_path / "prm"), answer_how="arithmetic")(["1+1\n"], ["1+1=2\n#2"])
    [scores] = ProcessRewardModel.from_pretrained(tmp_path / "prm").score(["1+1\n"], [["1+1=2", "#2"]])
    assert value == min(scores)


class TestJudge:
    def judge(self, completions, **options):
        function = ProcessReward(ScriptedPRM(TABLE), **{"answer_how": "arithmetic", **options})
        return function.judge(["p"] * len(completions), completions)

    def test_steps_scores_and_reasons(self):
        good, no_step, no_answer = self.judge(["a\n\n#1\n", " \n", "a\nb"])
        assert [(step.text, step.start, step.end) for step in good.steps] == [("a", 0, 3), ("#1", 3, 6)]
        assert (good.step_scores, good.malformed, good.unscored) == ([0.9, 0.7], None, None)
        assert (no_step.steps, no_step.step_scores, no_step.malformed) == ([], None, "no_step")
        assert ([step.text for step in no_answer.steps], no_answer.malformed) == (["a", "b"], "no_answer")

    def test_reasons_of_the_task_and_of_guards(self):
        options = {"guards": StepGuards(max_steps=2), "is_well_formed": lambda prompt, steps: steps[0] != "b"}
        judgements = self.judge(["a\nc\n#1", "b\n#1", "a\n#1"], **options)
        assert [judgement.malformed for judgement in judgements] == ["many_steps", "not_well_formed", None]

    def test_of_messages_the_last_is_judged_if_it_is_the_assistants(self):
        call = {"role": "assistant", "content": "a"}
        tool = {"role": "tool", "content": "b"}
        blocks = [{"type": "text", "text": "a\n"}, {"type": "text", "text": "#1"}]
        judgements = self.judge(
            [
                [call, tool, {"role": "assistant", "content": "c\n#1"}],
                [call, tool],
                [{"role": "assistant", "content": None, "tool_calls": []}],
                [],
                [{"role": "assistant", "content": blocks}],
            ]
        )
        assert [judgement.step_scores for judgement in judgements] == [[0.8, 0.7], None, None, None, [0.9, 0.7]]
        assert [judgement.malformed for judgement in judgements] == [None, "no_step", "no_step", "no_step", None]

    def test_the_last_batch_is_not_scored_again(self):
        """A trainer that needs step scores asks with the lists that the reward function got."""
        prm = ScriptedPRM(TABLE)
        function = ProcessReward(prm, answer_how="arithmetic")
        prompts, completions = ["p", "p"], ["a\n#1", "b\n#1"]
        assert function(prompts=prompts, completions=completions) == [0.7, 0.4]
        judgements = function.judge(prompts, completions)
        assert (
            [j.step_scores for j in judgements]
            == function.step_scores(prompts, completions)
            == [[0.9, 0.7], [0.4, 0.7]]
        )
        assert len(prm.calls) == 1

    @pytest.mark.parametrize("change", ["other_lists", "other_prompts", "same_list_filled_anew"])
    def test_another_batch_is_scored(self, change):
        prm = ScriptedPRM(TABLE)
        function = ProcessReward(prm, answer_how="arithmetic")
        prompts, completions = ["p"], ["a\n#1"]
        function.judge(prompts, completions)
        if change == "same_list_filled_anew":
            completions[0] = "b\n#1"
        elif change == "other_prompts":
            prompts = ["q"]
        else:
            completions = ["b\n#1"]
        expected = [0.9, 0.7] if change == "other_prompts" else [0.4, 0.7]
        assert [j.step_scores for j in function.judge(prompts, completions)] == [expected]
        assert len(prm.calls) == 2

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_score_that_is_no_number(self, value):
        function = ProcessReward(ScriptedPRM({**TABLE, "b": value}), answer_how="arithmetic")
        with pytest.raises(ValueError, match=f"gave {value} for step 1 of completion 2.*try `dtype='float32'`"):
            function(prompts=["p"] * 3, completions=["", "a\n#1", "a\nb\n#1"])


class TestMalformed:
    COMPLETIONS = ["a\n#1", "", "a\nb", "c\n#2"]

    def test_reward_if_malformed(self):
        assert reward(self.COMPLETIONS)[0] == [0.7, None, None, 0.2]
        assert reward(self.COMPLETIONS, reward_if_malformed=0.0)[0] == [0.7, 0.0, 0.0, 0.2]
        assert reward(self.COMPLETIONS, reward_if_malformed=-1.0)[0] == [0.7, -1.0, -1.0, 0.2]

    def test_too_long_is_not_malformed(self):
        """What the model cannot read is no fault of the policy: it is not punished."""

        class ShortSighted(ScriptedPRM):
            def score(self, prompts, steps, **options):
                scores = super().score(prompts, steps, **options)
                return [None if len(s) > 2 else s for s in scores]

        function = ProcessReward(ShortSighted(TABLE), answer_how="arithmetic", reward_if_malformed=0.0)
        prompts, completions = ["p"] * 3, ["a\n#1", "a\nc\n#1", ""]
        assert function(prompts, completions) == [0.7, None, 0.0]
        assert [j.unscored for j in function.judge(prompts, completions)] == [None, "too_long", None]

    def test_guards_reach_the_reward(self):
        completions = ["a\n#1", "a\na\na\n#2"]
        assert reward(completions, aggregation="mean")[0] == pytest.approx([0.8, 0.725])
        guards = StepGuards(max_share_of_fillers=0.4)
        assert reward(completions, aggregation="mean", guards=guards)[0] == [pytest.approx(0.8), None]
        assert reward(completions, aggregation="mean", guards={"credit_fillers": False})[0] == pytest.approx(
            [0.8, 0.55]
        )

    def test_bad_options(self):
        with pytest.raises(ValueError, match="`reward_if_malformed` must be a number or None, got nan"):
            ProcessReward(ScriptedPRM({}), reward_if_malformed=math.nan)
        with pytest.raises(ValueError, match="`guards` must be one of .*'max_steps'.*, got 'max_step'. Did you mean"):
            ProcessReward(ScriptedPRM({}), guards={"max_step": 3})


class TestCombinedWithTheAnswer:
    COMPLETIONS = ["a\n#1", "a\n#2", "b\n#1", "b"]  # scores 0.7, 0.2, 0.4; the last has no answer
    ANSWER = {"answer": ["1"] * 4}

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"combine": "product"}, [0.7, 0.0, 0.4, None]),
            ({"combine": "gate"}, [0.7, 0.0, 0.4, None]),
            ({"combine": "weighted_sum"}, [0.85, 0.1, 0.7, None]),
            ({"combine": "weighted_sum", "answer_weight": 0.2}, [0.76, 0.16, 0.52, None]),
            ({"combine": "gate", "reward_if_malformed": 0.0}, [0.7, 0.0, 0.4, 0.0]),
            # Without an answer there is no outcome, so it is malformed all the same.
            ({"combine": "gate", "require_answer": False, "reward_if_malformed": 0.0}, [0.7, 0.0, 0.4, 0.0]),
        ],
    )
    def test_by_hand(self, options, expected):
        values, _ = reward(self.COMPLETIONS, columns=self.ANSWER, **options)
        assert values == [value if value is None else pytest.approx(value) for value in expected]

    def test_product_and_gate_differ_below_zero(self):
        """Heads without a bound give scores below 0, which a gate must not turn into a reward for a wrong answer."""
        assert [combine_with_outcome(-0.5, 0.0, how) for how in ("product", "gate")] == [0.0, 0.0]
        assert [combine_with_outcome(0.5, 0.5, how) for how in ("product", "gate")] == [0.25, 0.0]

    def test_another_column_and_number_answers(self):
        columns = {"answer": ["9", "9"], "solution": [1, 2]}
        assert reward(["a\n#1"] * 2, columns=columns, combine="gate", answer_column="solution")[0] == [0.7, 0.0]

    def test_a_row_without_reference_gets_none(self):
        values, _ = reward(["a\n#1"] * 2, columns={"answer": ["1", None]}, combine="gate", reward_if_malformed=0.0)
        assert values == [0.7, None]

    def test_missing_column(self):
        message = (
            "`combine='gate'` needs the reference answers in the column 'answer', but the trainer passes 'x', "
            "'solution'. Name the column of your dataset in `answer_column`"
        )
        with pytest.raises(ValueError, match=message):
            reward(["a\n#1"], columns={"solution": ["1"]}, combine="gate")

    def test_a_column_without_references(self):
        with pytest.raises(
            ValueError, match="The column 'answer' holds 'yes', which is no reference answer: .*integer"
        ):
            reward(["a\n#1"], columns={"answer": ["yes"]}, combine="gate")
        # For metrics alone it does not matter.
        metrics = {}
        columns = {"answer": ["yes"], "log_metric": metrics.__setitem__}
        assert reward(["a\n#1"], columns=columns)[0] == [0.7]
        assert "process_reward/accuracy" not in metrics and metrics["process_reward/unverified"] == 1

    def test_bad_options(self):
        with pytest.raises(
            ValueError, match="`combine` must be one of 'product', 'gate', 'weighted_sum', got 'gated'"
        ):
            ProcessReward(ScriptedPRM({}), combine="gated")
        with pytest.raises(ValueError, match="`answer_weight` must be between 0 and 1, got 1.5"):
            ProcessReward(ScriptedPRM({}), answer_weight=1.5)


class TestMetrics:
    def metrics(self, completions, columns=None, **options):
        metrics, table = {}, {}
        log = {"log_metric": metrics.__setitem__, "log_extra": table.__setitem__}
        reward(completions, columns={**log, **(columns or {})}, **options)
        return metrics, table

    def test_by_hand(self):
        completions = ["a\nb\n#1", "c\n#2", "a\na\n...", " ", "b\nb\nb\n#1"]
        metrics, table = self.metrics(completions, {"answer": ["1", "1", "1", "1", "2"]}, aggregation="mean")
        scores = [(0.9 + 0.4 + 0.7) / 3, (0.8 + 0.2) / 2, (0.4 * 3 + 0.7) / 4]
        expected = {
            "step_score/mean": np.mean(scores),
            "step_score/min": (0.4 + 0.2 + 0.4) / 3,
            "step_score/first": (0.9 + 0.8 + 0.4) / 3,
            "step_score/last": (0.7 + 0.2 + 0.7) / 3,
            "num_steps": (3 + 2 + 3 + 0 + 4) / 5,
            "longest_step": (2 + 2 + 3 + 0 + 2) / 5,
            "share_of_empty_steps": (1 / 3) / 5,
            "share_of_repeated_steps": (1 / 3 + 2 / 4) / 5,
            "share_of_white_space": (2 / 6 + 1 / 4 + 2 / 7 + 0 + 3 / 8) / 5,
            "correlation_with_num_steps": np.corrcoef(scores, [3, 2, 4])[0, 1],
            "accuracy": 1 / 5,
            "gap_to_accuracy": np.mean(scores) - 1 / 5,
            "malformed": 2 / 5,
            "malformed/no_step": 1 / 5,
            "malformed/no_answer": 1 / 5,
            "unscored/too_long": 0.0,
            "unscored/not_encodable": 0.0,
            "unverified": 0.0,
        }
        assert metrics == {f"process_reward/{name}": pytest.approx(value) for name, value in expected.items()}
        assert table == {
            "process_reward/step_scores": ["0.900 0.400 0.700", "0.800 0.200", "", "", "0.400 0.400 0.400 0.700"],
            "process_reward/num_steps": [3, 2, 3, 0, 4],
            "process_reward/malformed": ["", "", "no_answer", "no_step", ""],
        }

    def test_of_a_batch_without_scores(self):
        metrics, _ = self.metrics(["", "a"], name="x", guards=StepGuards(max_steps=9))
        assert metrics["x/malformed"] == 1 and metrics["x/num_steps"] == 0.5 and metrics["x/malformed/many_steps"] == 0
        assert not any(part in name for name in metrics for part in ("step_score", "correlation", "accuracy"))

    def test_no_correlation_where_nothing_varies(self):
        for completions in (["a\n#1", "b\n#1", "c\n#1"], ["b\n#1", "b\nb\n#1", "b\nb\nb\n#1"], ["a\n#1", "#2"]):
            assert "process_reward/correlation_with_num_steps" not in self.metrics(completions)[0]

    def test_a_policy_that_pads_raises_the_alarms(self):
        """The score rises, accuracy does not: what to look for in a run."""
        before, _ = self.metrics(["b\n#1", "b\na\n#1"], {"answer": ["2", "2"]}, aggregation="mean")
        after, _ = self.metrics(["b\na\na\na\na\n#1", "b\na\na\na\n#1"], {"answer": ["2", "2"]}, aggregation="mean")
        for name in ("num_steps", "share_of_repeated_steps", "gap_to_accuracy"):
            assert after[f"process_reward/{name}"] > before[f"process_reward/{name}"] + 0.05, name
        assert after["process_reward/accuracy"] == before["process_reward/accuracy"] == 0

    def test_unreadable_answers_are_wrong_ones(self):
        """Else a policy that answers less and less would look better and better."""
        rows = {"answer": ["1"] * 4}
        before, _ = self.metrics(["a\n#1", "a\n#1", "a\n#2", "a\n#2"], rows)
        after, _ = self.metrics(["a\n#1", "a\n#1", "a\n", "a\n"], rows)
        assert before["process_reward/accuracy"] == after["process_reward/accuracy"] == 0.5
        assert after["process_reward/gap_to_accuracy"] == pytest.approx(0.7 - 0.5)
        # Rows without a reference say nothing about the policy, nor do those whose reference cannot be read.
        some, _ = self.metrics(["a\n#1", "a\n", "a\n#1", "a\n#1"], {"answer": ["1", "1", None, "one"]})
        assert some["process_reward/accuracy"] == 0.5

    def test_an_empty_batch(self):
        assert self.metrics([]) == (
            {},
            {f"process_reward/{name}": [] for name in ("step_scores", "num_steps", "malformed")},
        )


class TestIdentity:
    @pytest.fixture(scope="class")
    @classmethod
    def paths(cls, tmp_path_factory):
        rows = [{"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "labels": [1.0, 0.0]}]
        base, paths = save_base(tmp_path_factory.mktemp("base")), []
        for learning_rate in (0.0, 1e-3):
            paths.append(str(tmp_path_factory.mktemp("prm")))
            trainer = prm_trainer(base, paths[-1], rows, learning_rate=learning_rate, max_steps=1)
            trainer.train()
            trainer.save_model()
        return paths

    def test_what_changes_rewards_changes_it(self, paths):
        prm = ProcessRewardModel.from_pretrained(paths[0])
        identities = [ProcessReward(prm).identity]
        for change in (
            {"aggregation": "mean"}, {"split_how": "blank_line"}, {"answer_how": "gsm8k"}, {"require_answer": False},
            {"is_well_formed": lambda prompt, steps: True}, {"guards": {"max_steps": 3}}, {"reward_if_malformed": 0.0},
            {"combine": "gate"}, {"combine": "weighted_sum"}, {"combine": "weighted_sum", "answer_weight": 0.1},
            {"combine": "gate", "answer_column": "solution"}, {"prompt_as": "problem"},
        ):  # fmt: skip
            identities.append(ProcessReward(prm, **change).identity)
        identities.append(ProcessReward(paths[1]).identity)
        assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 14

    def test_what_does_not_leaves_it(self, paths):
        prm = ProcessRewardModel.from_pretrained(paths[0])
        expected = ProcessReward(paths[0]).identity
        assert ProcessReward(prm, batch_size=1, max_tokens_per_batch=64).identity == expected
        # A run that was begun before these options were there goes on.
        older = ProcessReward(ProcessRewardModel(prm.model, prm.tokenizer, prm.format)).identity
        assert set(older) == {
            "name", "prm", "format", "is_well_formed", "aggregation", "split_how", "answer_how", "require_answer"
        }  # fmt: skip


class TestRealScores:
    """Published step scores of public models: 32 solutions for each of 100 problems of GSM8K."""

    # min, product, mean, last: the table of docs/process-rewards.md
    CORRELATIONS = {
        "math_shepherd": (-0.22, -0.58, -0.17, -0.09),
        "skywork_prm": (-0.04, -0.50, 0.01, -0.11),
        "rlhflow_prm": (0.07, -0.18, 0.28, 0.31),
        "qwen_prm": (0.07, 0.03, 0.22, 0.26),
    }

    @pytest.mark.parametrize("model", CORRELATIONS)
    def test_the_alarm_shows_whether_length_or_brevity_is_rewarded(self, shared_data, model):
        with gzip.open(shared_data / "bon_gsm8k" / f"step_scores_{model}.jsonl.gz", "rt") as file:
            problems = [json.loads(line)["step_scores"] for line in file]
        for how, expected in zip(("min", "product", "mean", "last"), self.CORRELATIONS[model], strict=True):
            logged = []
            for solutions in problems:
                judgements = [Judgement([Step("x", 0, 1)] * len(scores), scores) for scores in solutions]
                metrics = batch_metrics(judgements, [aggregate(scores, how) for scores in solutions], None, [])
                logged += [v for name, v in metrics.items() if name == "correlation_with_num_steps"]
            assert len(logged) > 90 and np.mean(logged) == pytest.approx(expected, abs=0.006)
