"""Configuration of [`ERPRMTrainer`]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardConfig

from ..choices import check_choice
from .formats import HEADS, PRMFormat, load_format

LOSS_TYPES = ("soft_cross_entropy", "mse")


@dataclass
class ERPRMConfig(RewardConfig):
    r"""
    Configuration class for the [`ERPRMTrainer`].

    It has every field of [`~trl.RewardConfig`] and of [`~transformers.TrainingArguments`]; only what is new or has
    another default is listed.

    Parameters:
        > Parameters that control the model and its format

        head (`str`, *optional*, defaults to `"token_classification"`):
            `"token_classification"`: a linear layer on the last hidden state, as in TRL <= 1.13.
            `"causal_lm"`: the language model's own probability of a label token, as in the paper.
        num_labels (`int`, *optional*, defaults to `1`):
            Labels of the token-classification head: 1 (sigmoid) or 2 (softmax, as in TRL <= 1.13).
        format (`str`, *optional*):
            Name of the [`PRMFormat`] that lays out a solution. `None` takes the head's default (`"trl"` or
            `"er-prm"`).
        step_tag, step_joiner, prompt_separator, positive_token, negative_token (`str`, *optional*):
            Each replaces the field of that name in the format.

        > Parameters that control the labels and the loss

        eta (`float`, *optional*):
            Entropy parameter. Rows with `num_correct` and `num_rollouts` are labelled with it,
            V_eta = (1/eta) log E exp(eta r), whatever `labels` they hold. `0` gives soft labels (the mean), `inf`
            hard ones. `None`: the `labels` column is used as it is.
        loss_type (`str`, *optional*, defaults to `"soft_cross_entropy"`):
            `"soft_cross_entropy"` (the paper's) or `"mse"` (mean squared error of the score).
        train_on_last_step_only (`bool`, *optional*, defaults to `False`):
            Learn from the last step of each solution alone, which makes an outcome reward model. In training only.

    > [!NOTE]
    > These parameters have default values different from [`~trl.RewardConfig`]:
    > - `learning_rate`: Defaults to `1e-6` instead of `1e-4`: the paper's range at 7 to 8B is 5e-7 to 1e-6.
    > - `num_train_epochs`: Defaults to `1` instead of `3`: the paper trains for one epoch.
    > - `bf16`: Defaults to `True` only where a device supports it, so that a CPU needs no further argument.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "The initial learning rate for AdamW."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Number of passes over the training data."})

    head: str = field(
        default="token_classification",
        metadata={"help": "Where the score is read: 'token_classification' or 'causal_lm'.", "choices": list(HEADS)},
    )
    num_labels: int = field(
        default=1, metadata={"help": "Labels of the token-classification head: 1 (sigmoid) or 2 (softmax)."}
    )
    format: str | None = field(
        default=None, metadata={"help": "Name of the PRM format; the head's default where it is not given."}
    )
    step_tag: str | None = field(default=None, metadata={"help": "Replaces the format's `step_tag`."})
    step_joiner: str | None = field(default=None, metadata={"help": "Replaces the format's `step_joiner`."})
    prompt_separator: str | None = field(default=None, metadata={"help": "Replaces the format's `prompt_separator`."})
    positive_token: str | None = field(default=None, metadata={"help": "Replaces the format's `positive_token`."})
    negative_token: str | None = field(default=None, metadata={"help": "Replaces the format's `negative_token`."})
    eta: float | None = field(
        default=None,
        metadata={"help": "Entropy parameter: label rows from their rollout counts. None keeps the `labels` column."},
    )
    loss_type: str = field(
        default="soft_cross_entropy",
        metadata={"help": "'soft_cross_entropy' (the paper's) or 'mse'.", "choices": list(LOSS_TYPES)},
    )
    train_on_last_step_only: bool = field(
        default=False, metadata={"help": "Learn from the last step of each solution only (training split only)."}
    )

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = is_torch_bf16_gpu_available()
        super().__post_init__()
        check_choice("head", self.head, HEADS)
        check_choice("loss_type", self.loss_type, LOSS_TYPES)
        if self.num_labels not in (1, 2):
            raise ValueError(f"`num_labels` must be 1 (sigmoid) or 2 (softmax), got {self.num_labels}.")
        if self.eta is not None and math.isnan(self.eta):
            raise ValueError("`eta` must be finite or one of inf, -inf, got nan. Use 0 for soft labels, inf for hard.")
        self.build_format()

    def build_format(self) -> PRMFormat:
        """The [`PRMFormat`] that these parameters describe."""
        base = load_format(self.format, self.head)
        if base.head != self.head:
            raise ValueError(
                f"The format {base.name!r} is read with the head {base.head!r}, but `head` is {self.head!r}. Set "
                f"`head={base.head!r}`, or choose another format."
            )
        names = ("step_tag", "step_joiner", "prompt_separator", "positive_token", "negative_token")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(base, **changes) if changes else base
