"""AnswerReward: right answers by the column of the dataset, also as messages."""

import pytest

from trl_erprm import AnswerReward


def test_right_wrong_and_unknown():
    reward = AnswerReward("boxed", answer_column="solution")
    completions = [r"so \boxed{1/2}", r"so \boxed{0.25}", "no answer", r"\boxed{3}"]
    assert reward(completions=completions, solution=["0.5", "0.5", "1", None], prompts=[""] * 4) == [
        1.0,
        0.0,
        0.0,
        None,
    ]


def test_messages():
    messages = [[{"role": "assistant", "content": "#### 3"}], [{"role": "assistant", "content": "#### 4"}]]
    assert AnswerReward("gsm8k")(completions=messages, answer=["3", "3"]) == [1.0, 0.0]


def test_messages_without_text_answer_nothing():
    blocks = [{"role": "assistant", "content": [{"type": "text", "text": "#### 3"}]}]
    call = [{"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}]
    tool = [{"role": "assistant", "content": "f(2)"}, {"role": "tool", "content": "#### 3"}]
    assert AnswerReward("gsm8k")(completions=[blocks, call, tool, []], answer=["3"] * 4) == [1.0, 0.0, 0.0, 0.0]


def test_numbers_as_references():
    assert AnswerReward("gsm8k")(completions=["#### 3", "#### 3"], answer=[3, 2.5]) == [1.0, 0.0]


def test_convention():
    assert AnswerReward("gsm8k")(completions=["3"], answer=["3"]) == [0.0]
    assert AnswerReward("auto")(completions=["3"], answer=["3"]) == [1.0]


def test_errors():
    with pytest.raises(ValueError, match="'answer_how|`how`|must be one of"):
        AnswerReward("boxes")
    with pytest.raises(ValueError, match="column 'answer', which the dataset does not have"):
        AnswerReward()(completions=["3"], solution=["3"])


def test_identity():
    assert AnswerReward("boxed").identity == {
        "name": "answer_reward", "answer_how": "boxed", "answer_column": "answer"
    }  # fmt: skip


class TestUnreadableReferences:
    @pytest.mark.parametrize(
        ("how", "references"),
        [("gsm8k", ["three", "", " ", ["3"], {"a": 3}]), ("arithmetic", ["1/2", "", ["3"]]), ("auto", ["", ["3"]])],
    )
    def test_none_a_metric_and_one_warning(self, how, references, caplog):
        """What the dataset has wrong is no fault of the policy, and ends no run."""
        metrics = {}
        reward = AnswerReward(how)
        given = [*references, "3", None]
        for _ in range(2):
            rewards = reward(completions=["#### 3\n#3"] * len(given), answer=given, log_metric=metrics.__setitem__)
            assert rewards == [None] * len(references) + [1.0, None]
        assert metrics == {"answer_reward/unreadable_references": len(references) / len(given)}
        [warning] = [record.message for record in caplog.records]
        assert f"holds {references[0]!r}, which is no reference answer by the convention {how!r}" in warning

    def test_none_of_them(self, caplog):
        metrics = {}
        assert AnswerReward()(completions=["3"], answer=["3"], log_metric=metrics.__setitem__) == [1.0]
        assert metrics == {"answer_reward/unreadable_references": 0.0} and not caplog.records
        assert AnswerReward()(completions=[], answer=[], log_metric=metrics.__setitem__) == []
