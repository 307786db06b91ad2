"""`trl_erprm.policy.rft_scoring`: any function in TRL's reward-function protocol, TRL's own among them."""

import pytest
from datasets import Dataset
from trl.rewards import accuracy_reward, get_soft_overlong_punishment

from tests.policy.rft_runs import read_parquet, rft_config, selected
from tests.rollout.test_transformers_engine import make_tokenizer
from trl_erprm import RFTTrainer
from trl_erprm.policy.rft_scoring import Scorers

ROWS = [{"prompt": "1+1\n", "answer": "2"}, {"prompt": "2+2\n", "answer": "4"}]
RECORDS = [
    {"index": 4, "completions": ["#2", "#3"], "truncated": [False, True]},
    {"index": 7, "completions": ["#4"], "truncated": [False]},
]


def length(prompts, completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def test_records():
    scored = list(
        Scorers([length, lambda completions, **_: [1.0, 5.0, None]], weights=[1.0, 2.0]).score(ROWS, RECORDS)
    )
    assert scored == [
        {"index": 4, "scores": [4.0, None], "by_scorer": [[2.0, 2.0], [1.0, 5.0]]},
        {"index": 7, "scores": [None], "by_scorer": [[2.0], [None]]},
    ]


def test_equal_completions_are_scored_once():
    """Of a function that says what it depends on; each of another prompt, and what was cut off, by itself."""

    class Reward:
        __name__, identity, asked = "reward", "v1", []

        def __call__(self, prompts, completions, answer, **kwargs):
            self.asked += list(zip(prompts, completions, answer, strict=True))
            return [float(i) for i in range(len(completions))]

    records = [
        {"index": 0, "completions": ["#2", "#3", "#2", "#2"], "truncated": [False, False, False, True]},
        {"index": 1, "completions": ["#2", "#3", "#3", "#3"], "truncated": [False] * 4},
    ]
    reward = Reward()
    scored = [record["by_scorer"][0] for record in Scorers(reward).score(ROWS, records)]
    assert scored == [[0.0, 1.0, 0.0, 2.0], [3.0, 4.0, 4.0, 4.0]]
    asked = [("1+1\n", text, "2") for text in ("#2", "#3", "#2")] + [("2+2\n", text, "4") for text in ("#2", "#3")]
    assert reward.asked == asked
    reward = length  # this one does not say: it is asked for each
    assert [record["scores"] for record in Scorers(reward).score(ROWS, records)] == [[2.0, 2.0, 2.0, None], [2.0] * 4]


def test_verdicts():
    scored = list(Scorers(length, verify_how="arithmetic").score(ROWS, RECORDS))
    assert [record["is_correct"] for record in scored] == [[True, False], [True]]


def test_what_a_function_names_is_given():
    """`completion_ids` with the end token of what ended; the trainer's state; loggers that do nothing."""
    tokenizer, seen = make_tokenizer(), {}

    def reward(completions, completion_ids, trainer_state, log_metric, log_extra, answer):
        log_metric("x", 1.0)
        log_extra("y", [1])
        seen.update(ids=completion_ids, state=trainer_state, answer=answer)
        return [0.0] * len(completions)

    def named(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, answer):
        return reward(completions, completion_ids, trainer_state, log_metric, log_extra, answer)

    list(Scorers(named, tokenizer=tokenizer).score(ROWS, RECORDS, trainer_state="state"))
    of = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("#2", "#3", "#4")]
    end = tokenizer.eos_token_id
    assert seen == {"ids": [[*of[0], end], of[1], [*of[2], end]], "state": "state", "answer": ["2", "2", "4"]}


def test_coroutine_function():
    async def reward(prompts, completions, **kwargs):
        return [0.5] * len(completions)

    assert [record["scores"] for record in Scorers(reward).score(ROWS, RECORDS)] == [[0.5, None], [0.5]]


def test_bad_functions():
    with pytest.raises(
        TypeError, match="`reward_funcs` must hold functions .* got 'outputs/prm'. For a process reward"
    ):
        Scorers("outputs/prm")
    with pytest.raises(ValueError, match="`reward_funcs` is empty"):
        Scorers([])
    with pytest.raises(ValueError, match="returned nan"):
        list(Scorers(lambda completions, **_: [float("nan")] * 3).score(ROWS, RECORDS))


def test_names():
    def other(**kwargs):
        return []

    assert Scorers([length, other, length]).names == ["length", "other", "length_2"]


class TestRewardsOfTRL:
    """TRL's reward functions work as they are: their columns, their messages, their `None`."""

    def test_accuracy_reward(self, tiny_policy, tmp_path, scripted):
        """Of conversations, with the column `solution`; a solution that cannot be parsed gives None."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_policy[1])
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}"
            "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
            "{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
        )
        texts = {"1+1": ["#3", "#2"], "2+2": ["#4", "#4"], "3+3": ["#6", "#6"]}
        scripted(texts)
        prompts = Dataset.from_list(
            [
                {"prompt": [{"role": "user", "content": "1+1"}], "solution": "$2$"},
                {"prompt": [{"role": "user", "content": "2+2"}], "solution": "$5$"},
                {"prompt": [{"role": "user", "content": "3+3"}], "solution": ""},
            ]
        )

        def boxed(completions, **kwargs):
            """The embedded task writes answers as "#2"."""
            answers = [[{"content": "\\boxed{" + c[0]["content"].lstrip("#") + "}"}] for c in completions]
            return accuracy_reward(completions=answers, **kwargs)

        args = rft_config(tmp_path / "run", num_iterations=1, num_samples=2)
        trainer = RFTTrainer(
            tiny_policy[1], reward_funcs=boxed, args=args, train_dataset=prompts, processing_class=tokenizer
        )
        trainer.train()
        rows = read_parquet(tmp_path / "run/iteration-1/samples.parquet")
        assert [row["score/boxed"] for row in rows] == [0.0, 1.0, 0.0, 0.0, None, None]
        assert [(prompt[0]["content"], text[0]["content"]) for prompt, text, _ in selected(tmp_path / "run")] == [
            ("1+1", "#2"), ("2+2", "#4")
        ]  # fmt: skip

    def test_accuracy_reward_as_it_is(self):
        """The function itself, called as the trainer calls it."""
        prompt = [{"role": "user", "content": "1+1"}]
        records = [{"index": 0, "completions": [r"\boxed{2}", r"\boxed{3}"], "truncated": [False, False]}]
        scored = Scorers(accuracy_reward).score([{"prompt": prompt, "solution": "$2$"}], records)
        assert [record["scores"] for record in scored] == [[1.0, 0.0]]

    def test_a_function_of_token_ids(self):
        """`get_soft_overlong_punishment` reads `completion_ids`."""
        punishment = get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)
        records = [{"index": 0, "completions": ["1", "12", "123"], "truncated": [False] * 3}]
        scored = Scorers(punishment, tokenizer=make_tokenizer()).score([{"prompt": "1+1\n"}], records)
        assert [record["scores"] for record in scored] == [[0.0, -0.5, -1.0]]
