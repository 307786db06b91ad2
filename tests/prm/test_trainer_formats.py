"""`ERPRMTrainer` in each known format: the loss falls, and what is saved scores as what was trained, unhinted."""

import dataclasses

import pytest
from datasets import Dataset

from tests.prm.by_hand import logged
from tests.prm.format_bases import save_base_for, solutions
from tests.tiny import prm_trainer
from trl_erprm import ProcessRewardModel
from trl_erprm.prm.formats import FORMATS

ROWS = solutions()


@pytest.fixture(scope="module", params=list(FORMATS))
def trained(request, tmp_path_factory):
    """The trainer after some steps on four solutions, and where it saved."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    base = save_base_for(request.param, tmp_path / "base")
    trainer = prm_trainer(
        base, tmp_path / "prm", ROWS, format=request.param, max_length=512, max_steps=30, learning_rate=1e-2,
        per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return trainer, tmp_path / "prm"


def test_trains_saves_and_scores(trained):
    trainer, directory = trained
    losses = logged(trainer, "loss")
    assert losses[-1] < 0.75 * losses[0]
    prm = ProcessRewardModel.from_pretrained(directory)
    # Of a head that classifies tokens, the number of its labels is written down besides.
    assert dataclasses.replace(prm.format, num_labels=None) == dataclasses.replace(trainer.format, num_labels=None)
    scores = prm.score([row["prompt"] for row in ROWS], [row["completions"] for row in ROWS])
    expected = trainer.predict(Dataset.from_list(ROWS)).predictions
    for of_row, of_trainer in zip(scores, expected, strict=True):
        assert of_row == pytest.approx(of_trainer[: len(of_row)].tolist(), abs=1e-5)
    assert scores[0][2] - scores[2][2] > 0.3  # the right answer and the wrong one


def test_messages_and_text_are_the_same_prompt(trained):
    """In chat layouts anyhow; in others the problem of the messages is read, as the model was trained on text."""
    trainer, directory = trained
    prm = ProcessRewardModel.from_pretrained(directory)
    prompts = [ROWS[0]["prompt"], [{"role": "user", "content": ROWS[0]["prompt"]}]]
    [text, messages] = prm.score(prompts, [ROWS[0]["completions"]] * 2)
    assert text == pytest.approx(messages, abs=1e-6)
    [text, messages] = prm.score(prompts, [ROWS[0]["completions"]] * 2, prompt_as="chat")
    assert text == pytest.approx(messages, abs=1e-6)
    if trainer.format.layout == "text":
        [as_text] = prm.score(prompts[:1], [ROWS[0]["completions"]])
        assert as_text != pytest.approx(messages, abs=1e-6)


def test_a_language_models_head_is_never_a_new_one(tmp_path):
    """A token classifier whose language model's head was not saved cannot become a causal model."""
    base = save_base_for("trl", tmp_path / "base")
    prm_trainer(base, tmp_path / "first", ROWS, format="trl", max_length=512, max_steps=1).save_model()
    with pytest.raises(ValueError, match=r"causal_lm head .* has no weights for it \(lm_head.weight\)"):
        prm_trainer(str(tmp_path / "first"), tmp_path / "again", ROWS, format="math-shepherd", max_length=512)
