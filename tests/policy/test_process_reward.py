"""`trl_erprm.policy.process_reward`: which completions are judged, aggregation, TRL's protocol."""

import json

import pytest

from tests.tiny import prm_trainer, save_base
from trl_erprm import ProcessReward, ProcessRewardModel


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


def reward(completions, prompts=None, **options):
    prm = ScriptedPRM(TABLE)
    function = ProcessReward(prm, **{"answer_how": "arithmetic", **options})
    values = function(prompts=prompts or ["p"] * len(completions), completions=completions, completion_ids=None, x=[1])
    return values, prm


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
    with pytest.raises(ValueError, match="`how` must be one of .*, got 'minimum'. Did you mean 'min'?"):
        ProcessReward(ScriptedPRM({}), aggregation="minimum")


@pytest.mark.parametrize("completion", ["", "\n\n", "a\nb", "a\n#", "a\n#x"])
def test_no_step_or_no_answer_is_none(completion):
    values, prm = reward([completion, "a\n#1"])
    assert values == [None, 0.7]
    assert prm.calls[0][1] == [["a", "#1"]]  # nothing is spent on what cannot be judged


def test_an_answer_need_not_be_required():
    assert reward(["a\nb", "\n"], require_answer=False)[0] == [0.4, None]


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
    with pytest.raises(ValueError, match="shorter|longer"):
        ProcessReward(ScriptedPRM(TABLE))(prompts=["p"], completions=["a", "b"])


def test_name_for_the_metrics_of_trl():
    assert ProcessReward(ScriptedPRM({})).__name__ == "process_reward"


def test_from_a_directory(tmp_path):
    rows = [{"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "labels": [1.0, 1.0]}]
    prm_trainer(save_base(tmp_path / "base"), tmp_path / "prm", rows).save_model()
    [value] = ProcessReward(str(tmp_path / "prm"), answer_how="arithmetic")(["1+1\n"], ["1+1=2\n#2"])
    [scores] = ProcessRewardModel.from_pretrained(tmp_path / "prm").score(["1+1\n"], [["1+1=2", "#2"]])
    assert value == min(scores)


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
            {"is_well_formed": lambda prompt, steps: True},
        ):  # fmt: skip
            identities.append(ProcessReward(prm, **change).identity)
        identities.append(ProcessReward(paths[1]).identity)
        assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 7

    def test_what_does_not_leaves_it(self, paths):
        expected = ProcessReward(paths[0]).identity
        assert ProcessReward(ProcessRewardModel.from_pretrained(paths[0]), batch_size=1).identity == expected
