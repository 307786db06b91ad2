"""`benchmarks/ppo.py`: the recipe's run with either critic, and the rows of the table, by hand."""

import doctest
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import benchmarks
from tests.tiny import save_base

ROOT = Path(benchmarks.__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    """The script as a module, which finds its siblings as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("benchmarks.ppo")


def test_examples(script):
    outcome = doctest.testmod(script)
    assert outcome.attempted > 0 and outcome.failed == 0


@pytest.mark.parametrize("critic", ["prm", "policy"])
def test_runs_are_those_of_the_recipe(critic, script, tmp_path, monkeypatch):
    seen = {}

    class Trainer:
        state = SimpleNamespace(log_history=[{"step": 1}])

        def __init__(self, policy, rewards, **kwargs):
            seen.update(kwargs, rewards=rewards)

        def remove_callback(self, callback): ...

        def train(self): ...

    def process_reward(path, **options):
        seen.update(judge=path, options=options)

    class Task:
        is_well_formed = None

        def dataset(self, split, num_rows=None):
            return split, num_rows

    monkeypatch.setattr(script, "ProcessPPOTrainer", Trainer)
    monkeypatch.setattr(script, "ProcessReward", process_reward)
    prepared = SimpleNamespace(task=Task(), policy_dir=save_base(tmp_path / "policy"), prm_dir=tmp_path / "prm")
    assert script.train(critic, prepared, tmp_path, seed=3) == [{"step": 1}]
    assert seen["critic"] == (str(tmp_path / "prm") if critic == "prm" else None)
    assert (seen["judge"], seen["options"]["reward_if_malformed"]) == (str(tmp_path / "prm"), 0.0)
    assert (seen["train_dataset"], seen["eval_dataset"]) == (("train", None), ("test", 400))
    recipe = yaml.safe_load((ROOT / "recipes" / "configs" / "arithmetic" / "ppo.yaml").read_text())
    own = {"seed": 3, "output_dir": str(tmp_path / f"ppo-{critic}"), "logging_steps": 1, "save_strategy": "no"}
    settings = {name: value for name, value in recipe.items() if hasattr(seen["args"], name)} | own
    assert len(settings) > 20
    found = {name: getattr(seen["args"], name) for name in settings}
    assert {name: getattr(value, "value", value) for name, value in found.items()} == settings | {"report_to": []}


def test_rows(script):
    runs = [
        {
            "prm": {"explained_variance": [first, 0.5], "accuracy": [50.0, end]},
            "policy": {"explained_variance": [-0.25, 0.25], "accuracy": [50.0, 90.0]},
        }
        for first, end in ((0.5, 94.0), (0.75, 96.0))
    ]
    rows = script.measurements(dict(enumerate(runs)))
    prm, policy = "critic begins as the ER-PRM", "critic begins as the policy, new head"
    first = "variance of the first returns that the critic foresees"
    assert [(row.measured, row.setting, row.shown()) for row in rows] == [
        (first, prm, "62.5 % (50.0 to 75.0), 2 seeds"),
        (first, policy, "-25.0 % (-25.0 to -25.0), 2 seeds"),
        ("the same of the last returns", prm, "50.0 % (50.0 to 50.0), 2 seeds"),
        ("the same of the last returns", policy, "25.0 % (25.0 to 25.0), 2 seeds"),
        ("accuracy of a sample after training", prm, "95.0 % (94.0 to 96.0), 2 seeds"),
        ("accuracy of a sample after training", policy, "90.0 % (90.0 to 90.0), 2 seeds"),
    ]
