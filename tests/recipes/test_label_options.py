"""What `recipes/label.py` does with a finished run, without a model."""

import importlib
import json

import pytest
from datasets import Dataset

from tests.labeling.test_monte_carlo import CONFIG, BernoulliEngine
from trl_erprm.labeling import MonteCarloLabeler, relabel

GIVEN = [{"prompt": f"p{i}", "completions": ["a", f"b{i}", "#1"], "answer": "1"} for i in range(8)]


@pytest.fixture
def run(tmp_path):
    labelled = MonteCarloLabeler(BernoulliEngine(lambda prefix: 0.4), CONFIG).label(GIVEN, tmp_path / "labels")
    return tmp_path / "labels", labelled


@pytest.fixture(scope="module")
def main():
    return importlib.import_module("recipes.label").main


def stored(directory):
    return [json.loads(line) for line in (directory / "labels.jsonl").read_text().splitlines()]


def test_relabel(main, run, capsys):
    directory, labelled = run
    main(["--output_dir", str(directory), "--relabel", "true", "--eta", "5", "--interval_level", "0.8"])
    assert stored(directory) == relabel(labelled, 5.0, interval_level=0.8).to_list()
    assert "Step labels" in capsys.readouterr().out


def test_relabel_at_an_eta_that_is_chosen(main, run):
    directory, labelled = run
    arguments = ["--output_dir", str(directory), "--relabel", "true", "--eta", "auto", "--eta_validation_share", "1"]
    main(arguments)
    eta = json.loads((directory / "summary.json").read_text())["eta"]
    assert stored(directory) == relabel(labelled, eta).to_list()
    with pytest.raises(ValueError, match="must have prompts with a right and a wrong solution"):
        main([*arguments, "--eta_criterion", "ranking"])


def test_report(main, run, capsys):
    directory, labelled = run
    (directory / "report.md").unlink()
    main(["--output_dir", str(directory), "--report", "true"])
    assert "| prefixes | 16 |" in (directory / "report.md").read_text()
    assert "Step labels" in capsys.readouterr().out
    assert Dataset.from_list(stored(directory)).to_list() == labelled.to_list()


def test_only_of_a_finished_run(main, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be the directory of a finished labelling run"):
        main(["--output_dir", str(tmp_path), "--report", "true"])
