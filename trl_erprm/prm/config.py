"""Configuration of [`ERPRMTrainer`]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardConfig

from ..choices import check_choice
from .formats import FORMAT_OVERRIDES, HEADS, TOKENIZATIONS, PRMFormat, load_format

LOSS_TYPES = ("soft_cross_entropy", "mse")


@dataclass
class ERPRMConfig(RewardConfig):
    r"""
    Configuration class for the [`ERPRMTrainer`].

    It has every field of [`~trl.RewardConfig`] and of [`~transformers.TrainingArguments`]; only what is new or has
    another default is listed.

    Parameters:
        > Parameters that control the model and its format

        head (`str`, *optional*):
            `"token_classification"`: a linear layer on the last hidden state, as in TRL <= 1.13.
            `"causal_lm"`: the language model's own probability of a label token, as in the paper.
            `None` takes the format's, or `"token_classification"`.
        num_labels (`int`, *optional*):
            Labels of the token-classification head: 1 (sigmoid) or 2 (softmax, as in TRL <= 1.13). `None` takes the
            format's (2 for `"qwen2.5-math-prm"`), or 1. A causal head has two label tokens and no `num_labels`.
        format (`str`, *optional*):
            Name of the [`PRMFormat`] that lays out a solution: `"trl"`, `"math-shepherd"`, `"er-prm"`, `"rlhflow"`,
            `"qwen2.5-math-prm"` or `"skywork-o1"`. `None` takes the checkpoint's own, where the model is a process
            reward model already (saved by this trainer, or one of [`PUBLIC_MODELS`]), else the head's default (`"trl"`
            or `"math-shepherd"`).
        step_tag, step_joiner, prompt_separator, positive_token, negative_token, tokenization (`str`, *optional*):
            Each replaces the field of that name in the format.

        > Parameters that control the batches

        max_length (`int`, *optional*, defaults to `1024`):
            Longest input in tokens. Steps beyond it are dropped from the end, each together with its label, and
            counted; `None` drops none.
        padding_free (`bool`, *optional*):
            Whether to lay the solutions of a batch end to end in one row, each attending to itself alone, instead of
            padding them to the longest. The losses are the same; no time is spent on padding. `None`: where the model
            can (causal attention in every layer, run by sdpa or a FlashAttention). With
            `train_sampling_strategy="group_by_length"` or `"batch_rebalance"`, padded batches waste little, too.

        > Parameters that control the labels and the loss

        eta (`float`, *optional*):
            Entropy parameter. Rows with `num_correct` and `num_rollouts` are labelled with it,
            V_eta = (1/eta) log E exp(eta r), whatever `labels` they hold. `0` gives soft labels (the mean), `inf`
            hard ones. `None`: the `labels` column is used as it is, and was made with the eta that the column `eta`
            holds, which the labeler writes.
        loss_type (`str`, *optional*, defaults to `"soft_cross_entropy"`):
            `"soft_cross_entropy"` (the paper's) or `"mse"` (mean squared error of the score).
        train_on_last_step_only (`bool`, *optional*, defaults to `False`):
            Learn from the last step of each solution alone, which makes an outcome reward model. In training only.
        weight_by_rollouts (`bool`, *optional*, defaults to `False`):
            Weight each step by the number of rollouts that its label was estimated from: the variance of the estimate
            falls with it. The last step of a row with an `outcome` is known rather than estimated, and weighs as much
            as the most certain label of all. In training only.
        balance_classes (`bool`, *optional*, defaults to `False`):
            Weight steps so that good and bad ones have the same share of the loss: a step with label V gets
            V / (2 m) + (1 - V) / (2 (1 - m)), m being the mean label of the steps that are learnt from (weighted, with
            `weight_by_rollouts`). As whole steps are weighted, the best score of a step stays its label. In training
            only.

    > [!NOTE]
    > These parameters have default values different from [`~trl.RewardConfig`]:
    > - `learning_rate`: Defaults to `1e-6` instead of `1e-4`: the paper's range at 7 to 8B is 5e-7 to 1e-6.
    > - `num_train_epochs`: Defaults to `1` instead of `3`: the paper trains for one epoch.
    > - `bf16`: Defaults to `True` only where a device supports it, so that a CPU needs no further argument.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "The initial learning rate for AdamW."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Number of passes over the training data."})

    head: str | None = field(
        default=None,
        metadata={"help": "Where the score is read: 'token_classification' or 'causal_lm'.", "choices": list(HEADS)},
    )
    num_labels: int | None = field(
        default=None,
        metadata={"help": "Labels of the token-classification head: 1 (sigmoid) or 2 (softmax); None: the format's."},
    )
    format: str | None = field(
        default=None, metadata={"help": "Name of the PRM format; the head's default where it is not given."}
    )
    step_tag: str | None = field(default=None, metadata={"help": "Replaces the format's `step_tag`."})
    step_joiner: str | None = field(default=None, metadata={"help": "Replaces the format's `step_joiner`."})
    prompt_separator: str | None = field(default=None, metadata={"help": "Replaces the format's `prompt_separator`."})
    positive_token: str | None = field(default=None, metadata={"help": "Replaces the format's `positive_token`."})
    negative_token: str | None = field(default=None, metadata={"help": "Replaces the format's `negative_token`."})
    tokenization: str | None = field(
        default=None,
        metadata={
            "help": "Replaces the format's `tokenization`: 'pieces' or 'joint'.",
            "choices": list(TOKENIZATIONS),
        },
    )
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
    weight_by_rollouts: bool = field(
        default=False, metadata={"help": "Weight each step by the number of rollouts behind its label."}
    )
    balance_classes: bool = field(
        default=False, metadata={"help": "Weight steps so that good and bad ones have the same share of the loss."}
    )
    padding_free: bool | None = field(
        default=None,
        metadata={"help": "Lay solutions end to end instead of padding them; None: where the model can."},
    )

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = is_torch_bf16_gpu_available()
        super().__post_init__()
        self._given = {"head": self.head, "num_labels": self.num_labels}
        if self.head is None:
            self.head = load_format(self.format).head
        check_choice("head", self.head, HEADS)
        check_choice("loss_type", self.loss_type, LOSS_TYPES)
        if self.num_labels not in (None, 1, 2):
            raise ValueError(f"`num_labels` must be 1 (sigmoid) or 2 (softmax), got {self.num_labels}.")
        if self.eta is not None and math.isnan(self.eta):
            raise ValueError("`eta` must be finite or one of inf, -inf, got nan. Use 0 for soft labels, inf for hard.")
        if self.center_rewards_coefficient is not None:
            raise ValueError(
                "`center_rewards_coefficient` belongs to reward models of preference pairs and has no meaning for "
                f"step labels, got {self.center_rewards_coefficient}. Leave it out."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` must be 0, got {self.label_smoothing_factor}: labels are used as they are, "
                "and may lie anywhere in [0, 1]. Write the labels that you want to train on into `labels`."
            )
        format = self.build_format()
        self._check_num_labels()
        if self.num_labels is None and self.head == "token_classification":
            self.num_labels = format.num_labels or 1

    def _check_num_labels(self) -> None:
        if self.head == "causal_lm" and self.num_labels is not None:
            raise ValueError(
                f"`num_labels` belongs to `head='token_classification'`, got {self.num_labels} with "
                "`head='causal_lm'`, whose labels are `positive_token` and `negative_token`. Leave `num_labels` out."
            )

    @property
    def num_labels_is_given(self) -> bool:
        """Whether `num_labels` was given, rather than taken from the format."""
        return self._given["num_labels"] is not None

    def resolve_format(self, of_checkpoint: PRMFormat | None) -> PRMFormat:
        """
        The format to train in: [`build_format`]'s, or, where `format` is not given and the checkpoint has one of its
        own, this one, with the fields replaced that are given. `head` and `num_labels` follow it unless given.

        Raises:
            `ValueError`: where the checkpoint's format is read with another head than the one given.
        """
        if self.format is not None or of_checkpoint is None:
            return self.build_format()
        head, num_labels = self._given["head"], self._given["num_labels"]
        if head not in (None, of_checkpoint.head):
            raise ValueError(
                f"The checkpoint has the format {of_checkpoint.name!r}, which is read with the head "
                f"{of_checkpoint.head!r}, but `head` is {head!r}. Leave `head` out to go on training it, or name the "
                "`format` that it shall have from now on."
            )
        self.head, self.num_labels = of_checkpoint.head, num_labels
        self._check_num_labels()
        if self.head == "token_classification":
            self.num_labels = num_labels or of_checkpoint.num_labels or 1
        changes = {name: getattr(self, name) for name in FORMAT_OVERRIDES if getattr(self, name) is not None}
        return replace(of_checkpoint, **changes)

    def build_format(self) -> PRMFormat:
        """The [`PRMFormat`] that these parameters describe."""
        base = load_format(self.format, self.head)
        if base.head != self.head:
            raise ValueError(
                f"The format {base.name!r} is read with the head {base.head!r}, but `head` is {self.head!r}. Set "
                f"`head={base.head!r}`, or choose another format."
            )
        changes = {name: getattr(self, name) for name in FORMAT_OVERRIDES if getattr(self, name) is not None}
        return replace(base, **changes) if changes else base
