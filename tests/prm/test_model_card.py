"""`trl_erprm.prm.model_card`: what the card of a trained model says, and that TRL's template still has the mark."""

import dataclasses
import math
from pathlib import Path

import pytest
import trl

from tests.prm.by_hand import ROWS
from tests.tiny import CAUSAL, prm_trainer, save_base
from trl_erprm.prm.formats import FORMATS, MATH_SHEPHERD, QWEN_MATH_PRM, RLHFLOW, TRL_TOKEN_CLASSIFICATION
from trl_erprm.prm.model_card import add_to_model_card

CARD = "# Card\n\n## Quick start\n\npipeline('wrong')\n\n## Training procedure\n\nTRL's own.\n"
COUNTED = [{**row, "num_correct": [1] * len(row["labels"]), "num_rollouts": [4] * len(row["labels"])} for row in ROWS]


@pytest.mark.parametrize("head", [{}, CAUSAL], ids=["trl", "causal"])
def test_a_checkpoint_has_it(tmp_path, head):
    trainer = prm_trainer(
        save_base(tmp_path / "base"), tmp_path / "prm", COUNTED, max_steps=1, save_strategy="steps", eta=2.0, **head
    )
    trainer.train()
    card = (tmp_path / "prm" / "README.md").read_text("utf-8")
    assert f'ProcessRewardModel.from_pretrained("{tmp_path / "prm"}")' in card
    assert "pipeline(" not in card and "with eta = 2, over rollouts" in card
    assert "@article{zhang2024entropy" in card and "arxiv" in card.lower()
    assert ("`token_classification, 1 label (linear)`" in card) is (head != CAUSAL)
    assert ("`causal_lm, '+' against '-'`" in card) is (head == CAUSAL)
    assert card.startswith("---\n") and "process-reward-model" in card  # the header with tags is TRL's


def test_only_the_quick_start_is_replaced():
    card = add_to_model_card(CARD, "someone/prm", TRL_TOKEN_CLASSIFICATION, 2, None, "mse")
    assert card.startswith("# Card\n\n## Quick start\n\n```python\nfrom trl_erprm import ProcessRewardModel")
    assert card.endswith("## Training procedure\n\nTRL's own.\n")
    assert 'from_pretrained("someone/prm")' in card and "pipeline" not in card
    assert "| Loss | `mse` |" in card and "2 labels (linear)" in card and "labels used as given" in card
    assert "entropy-regularized value" not in card  # nothing is known of its labels


def test_a_card_without_a_quick_start_gets_one():
    card = add_to_model_card("# Card\n", "p", MATH_SHEPHERD, None, math.inf, "mse")
    assert card.startswith("# Card\n\n## Quick start") and "with eta = inf" in card


@pytest.mark.parametrize(
    "format, shown",
    [
        (TRL_TOKEN_CLASSIFICATION, "PROMPTSTEP 1\\nSTEP 2\\n"),
        (MATH_SHEPHERD, "PROMPT STEP 1 ки\\nSTEP 2 ки"),
        (RLHFLOW, "user: PROMPT STEP 1\nassistant: +\nuser: STEP 2\nassistant: +"),
        (QWEN_MATH_PRM, "user: PROMPT\nassistant: STEP 1<extra_0>STEP 2<extra_0>"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_layouts_are_shown(format, shown):
    assert f"{shown}\n```" in add_to_model_card(CARD, "p", format, 2, 1.0, "mse")


@pytest.mark.parametrize("name", ["layout", "tokenization", "step_tag", "step_joiner", "prompt_separator"])
def test_what_is_unusual_is_in_the_table(name):
    usual = dataclasses.replace(MATH_SHEPHERD, tokenization="pieces", step_joiner="", prompt_separator="")
    format = RLHFLOW if name == "layout" else dataclasses.replace(usual, **{name: getattr(MATH_SHEPHERD, name)})
    row = f"| `{name}` | `{getattr(format, name)!r}` |"
    assert row in add_to_model_card(CARD, "p", format, None, None, "mse")
    assert name == "step_tag" or row not in add_to_model_card(CARD, "p", usual, None, None, "mse")


@pytest.mark.parametrize("format", FORMATS.values(), ids=list(FORMATS))
def test_every_known_format_has_a_card(format):
    assert f"| Format | `{format.name}` |" in add_to_model_card(CARD, "p", format, 1, 1.0, "mse")


def test_the_template_of_trl_has_the_mark():
    template = (Path(trl.__file__).parent / "templates" / "rm_model_card.md").read_text("utf-8")
    assert template.count("\n## Quick start\n") == 1
    assert "pipeline(" in template.split("## Quick start")[1].split("\n## ")[0]
