"""Human step ratings (PRM800K) through each head: a model trained for a few steps loads, scores and round-trips."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.prm.by_hand import logged
from tests.tiny import prm_trainer
from trl_erprm import ProcessRewardModel
from trl_erprm.data import to_stepwise_rows

NUM_ROWS = 96
HEADS = {
    "one_label": {},
    "two_labels": {"num_labels": 2},
    "causal_lm": {"head": "causal_lm"},
}


@pytest.fixture(scope="module")
def rows(shared_data):
    with open(shared_data / "prm800k" / "step_ratings.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line, _ in zip(file, range(NUM_ROWS), strict=False)]
    return to_stepwise_rows(Dataset.from_list(lines))


@pytest.fixture(scope="module")
def base(rows, tmp_path_factory):
    """A tiny Llama with a byte-level tokenizer of these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<pad>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator((step for steps in rows["completions"] for step in [*steps, "+ - + -"]), trainer)
    directory = tmp_path_factory.mktemp("base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>").save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1500, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, pad_token_id=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("head", list(HEADS))
def test_trains_saves_loads_and_scores(base, rows, tmp_path, head):
    trainer = prm_trainer(
        base, tmp_path / "prm", rows, max_steps=12, learning_rate=3e-3, per_device_train_batch_size=8, max_length=768,
        **HEADS[head],
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    losses = logged(trainer, "loss")
    assert np.mean(losses[-3:]) < np.mean(losses[:2]) - 0.1
    prm = ProcessRewardModel.from_pretrained(tmp_path / "prm")
    few = [row for row in rows if len("".join(row["completions"])) < 1500][:12]
    scores = prm.score([row["prompt"] for row in few], [row["completions"] for row in few])
    assert [len(of_row) for of_row in scores] == [len(row["completions"]) for row in few]
    expected = trainer.predict(Dataset.from_list(few)).predictions
    for of_row, of_trainer in zip(scores, expected, strict=True):
        assert of_row == pytest.approx(of_trainer[: len(of_row)].tolist(), abs=1e-5)
    prm.model.save_pretrained(tmp_path / "again")
    prm.tokenizer.save_pretrained(tmp_path / "again")
    prm.format.save(tmp_path / "again", num_labels=trainer.args.num_labels)
    again = ProcessRewardModel.from_pretrained(tmp_path / "again")
    assert again.score([few[0]["prompt"]], [few[0]["completions"]])[0] == pytest.approx(scores[0], abs=1e-7)
