"""What the tests of the recipes share: the modules, and the stages of the embedded task, made before."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.recipes.commands import NAMES, RECIPES, SHARED
from tests.tiny import prm_trainer, randomize_head


@pytest.fixture(scope="module")
def recipes():
    """The modules of the recipes, imported as `python recipes/x.py` finds them: from their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        yield {name: importlib.import_module(name) for name in (*SHARED, *NAMES)}
        for name in (*SHARED, *NAMES):
            del sys.modules[name]


@pytest.fixture(scope="module")
def prm_path(tiny_policy, tmp_path_factory):
    """A PRM for the embedded task: the body of its policy, a head of random weights."""
    row = {"prompt": "1+1\n", "completions": ["1+1=2"], "labels": [1.0]}
    trainer = prm_trainer(tiny_policy[1], tmp_path_factory.mktemp("prm"), [row])
    randomize_head(trainer.model)
    trainer.save_model()
    return Path(trainer.args.output_dir)


@pytest.fixture
def stages_asked_for(recipes, tiny_policy, prm_path, tmp_path, monkeypatch):
    """Directory, seed and recipe for which the stages were asked; they were made before."""
    task, policy = tiny_policy
    asked = []

    def prepare(*what):
        asked.append(what)
        return recipes["stages"].PreparedTask(task, Path(policy), tmp_path, prm_path)

    monkeypatch.setattr(recipes["stages"], "prepare", prepare)
    return asked
