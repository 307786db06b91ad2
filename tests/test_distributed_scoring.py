"""Two processes score as one does, and each gets all scores."""

from pathlib import Path

import pytest

from tests.distributed.launch import launch, read_result
from tests.distributed.score_prm import PROMPTS, STEPS
from tests.tiny import prm_trainer, randomize_head, save_base
from trl_erprm import ProcessRewardModel

SCRIPT = Path(__file__).parent / "distributed" / "score_prm.py"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    row = {"prompt": "1+1\n", "completions": ["1+1=2"], "labels": [1.0]}
    folder = tmp_path_factory.mktemp("prm")
    trainer = prm_trainer(save_base(tmp_path_factory.mktemp("base")), folder, [row])
    randomize_head(trainer.model)
    trainer.save_model()
    return folder


@pytest.mark.parametrize(("config_name", "num_processes"), [("ddp", 2), ("cpu", 1)])
def test_scores_of_processes_equal_those_of_one(checkpoint, config_name, num_processes):
    completed = launch(config_name, SCRIPT, checkpoint)
    result = read_result(completed)
    assert (result["num_processes"], result["device"]) == (num_processes, "cpu")

    prm = ProcessRewardModel.from_pretrained(checkpoint)
    expected = prm.score(PROMPTS, STEPS, none_if_too_long=True)
    assert expected[-1] is None and [] in expected
    assert (
        len({round(score, 4) for scores in expected[:-1] for score in scores}) > 20
    )  # else an exchange would not show
    assert len(result["scores"]) == num_processes  # every process has all of them
    for scores_of_process in result["scores"]:
        assert len(scores_of_process) == len(expected)
        for scores, others in zip(scores_of_process[:-1], expected[:-1], strict=True):
            assert scores == pytest.approx(others, abs=1e-5)
        assert scores_of_process[-1] is None
    assert completed.stderr.count("1 of 21 solutions are longer than") == 1
    assert completed.stderr.count("Scoring: 100%") == 1  # the main process's, of its share
    assert {2: "11/11", 1: "21/21"}[num_processes] in completed.stderr

    for of_one, of_none in zip(result["of_one"], result["of_none"], strict=True):
        assert of_one == [pytest.approx(expected[0], abs=1e-5)] and of_none == []
    for index, own in enumerate(result["own"]):
        for scores, others in zip(own, expected[index : index + 2], strict=True):
            assert scores == pytest.approx(others, abs=1e-5)
    for message in result["errors"]:
        assert message.startswith("Solution 2: Step 1 of 2 is empty")
