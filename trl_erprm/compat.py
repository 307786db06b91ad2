"""[`PRMTrainer`] and [`PRMConfig`] of TRL <= 1.13, which TRL 1.14 removed, on top of [`ERPRMTrainer`].

`from trl_erprm.compat import PRMConfig, PRMTrainer` in place of `from trl.experimental.prm import ...`: the same
parameters, fields and defaults, tokens and labels, training loss, `eval_accuracy` and checkpoints (two-label token
classification). `docs/switching.md` shows the change.

Departures from TRL 1.13:

- A soft label is kept: 0.9 stays 0.9, where TRL made it `int(0.9)`, 0. `None` and NaN mean that a step has no label.
- The loss of an optimizer step is the mean over its labelled steps, however they fall into micro-batches and
  processes. TRL 1.13 with transformers 5 adds up the means of the micro-batches, so that accumulating over k of them
  makes loss and gradient k times as large; without accumulation, on one process, the losses are equal.
- `eval_loss` is the mean over all labelled steps; TRL averages the means of the batches.
- Rows of which truncation leaves no label are left out and counted; TRL's loss on a batch of them is NaN.
- `bf16=None` turns bfloat16 on where a GPU supports it; TRL turned it on everywhere.
- Batches are not padded in training where the model can do without (`padding_free`).
- `model` may be a path; without `processing_class` the tokenizer is loaded from the model's path.
- A separator that the tokenizer does not know is an error, as are labels outside [0, 1].
- Hyperparameter search is refused: `model_init` is called once. So is `label_smoothing_factor`: labels are used as
  they are, and soft ones are written into the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset, Features, IterableDataset, Value
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import EvalPrediction
from trl.data_utils import get_dataset_column_names

from .prm.collator import StepDataCollator
from .prm.config import ERPRMConfig
from .prm.dataset import ENCODED_COLUMNS
from .prm.formats import FORMAT_OVERRIDES, PRMFormat
from .prm.prompts import prompts_of_dataset
from .prm.trainer import ERPRMTrainer

__all__ = ["PRMConfig", "PRMTrainer", "compute_accuracy"]

logger = get_logger(__name__)

NO_LABEL = -100
"""Label of a token that has none, as everywhere in transformers."""

_ENCODED_FEATURES = Features(
    {"input_ids": [Value("int64")], "step_ends": [Value("int64")], "step_labels": [Value("float64")]}
)
_ROW_COLUMNS = ("prompt", "completions", "labels")


@dataclass
class PRMConfig(ERPRMConfig):
    r"""
    Configuration class for [`PRMTrainer`]: the fields and defaults that it had in TRL <= 1.13.

    It has every field of [`~transformers.TrainingArguments`]; of [`ERPRMConfig`]'s own, `loss_type`, `padding_free`
    and what [`~trl.RewardConfig`] has can be set as well. The others change TRL's layout or labels and are refused.

    Parameters:
        max_length (`int`, *optional*, defaults to `1024`):
            Longest input in tokens (prompt and completion); the rest is cut from the end. `None` cuts nothing.
        max_completion_length (`int`, *optional*):
            Longest completion in tokens (all steps with their separators), cut before `max_length` is.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to turn off dropout in the model.
        step_separator (`str`, *optional*, defaults to `"\n"`):
            Text behind each step; its last token carries the label.
        train_on_last_step_only (`bool`, *optional*, defaults to `False`):
            Learn from the last step of each solution alone. In training only.
        dataset_num_proc (`int`, *optional*):
            Processes to tokenize with.

    > [!NOTE]
    > Defaults that differ from [`ERPRMConfig`]'s are TRL 1.13's: `learning_rate` 1e-5, `num_train_epochs` 3,
    > `num_labels` 2.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Number of passes over the training data."})
    num_labels: int | None = field(default=2, metadata={"help": "Two labels, as in TRL <= 1.13."})

    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest completion in tokens; what is beyond it is cut from the end."}
    )
    step_separator: str = field(
        default="\n", metadata={"help": "Text behind each step; its last token carries the label."}
    )

    def __post_init__(self):
        if not self.step_separator:
            raise ValueError(
                "`step_separator` must not be empty: the score of a step is read at its last token. TRL's default is "
                "a newline."
            )
        accepted: dict[str, tuple] = {
            "head": (None, "token_classification"),
            "num_labels": (None, 2),
            "format": (None, "trl"),
            **dict.fromkeys(FORMAT_OVERRIDES, (None,)),
            "eta": (None,),
            "weight_by_rollouts": (False,),
            "balance_classes": (False,),
        }
        for name, values in accepted.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"`PRMConfig` has the layout and the labels of TRL <= 1.13, which do not go with `{name}`="
                    f"{getattr(self, name)!r}. "
                    + ("Set `step_separator`." if name == "step_tag" else "Use `ERPRMConfig` with `ERPRMTrainer`.")
                )
        self.num_labels = 2
        super().__post_init__()

    def resolve_format(self, of_checkpoint: PRMFormat | None) -> PRMFormat:
        """TRL's layout, whatever the checkpoint was trained in, as in TRL."""
        return self.build_format()

    def build_format(self) -> PRMFormat:
        """The [`PRMFormat`] that these parameters describe: `"trl"` with `step_separator` for its tag."""
        return replace(super().build_format(), step_tag=self.step_separator)


class PRMTrainer(ERPRMTrainer):
    """
    Trainer for process reward models with the interface of TRL <= 1.13's.

    Example:

    ```python
    from datasets import Dataset
    from transformers import AutoModelForTokenClassification, AutoTokenizer
    from trl_erprm.compat import PRMConfig, PRMTrainer

    name = "Qwen/Qwen2.5-0.5B"
    rows = [{"prompt": "1+1+1?", "completions": ["1+1=2", "2+1=4"], "labels": [True, False]}]
    trainer = PRMTrainer(
        model=AutoModelForTokenClassification.from_pretrained(name, num_labels=2),
        args=PRMConfig(output_dir="prm"),
        processing_class=AutoTokenizer.from_pretrained(name),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    ```

    Args:
        model ([`~transformers.PreTrainedModel`] or `str`, *optional*):
            Token classifier with two labels, or the path or id of a model to load as one.
        args ([`PRMConfig`], *optional*):
            Configuration.
        data_collator ([`~transformers.DataCollatorForTokenClassification`], *optional*):
            Accepted as TRL's default collator, and replaced by [`~trl_erprm.prm.collator.StepDataCollator`], which
            makes the same batches, or such a one itself.
        train_dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `completions` and `labels`, or tokenized ones with `input_ids` and `labels`, -100
            where a token has none.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            The same for evaluation. `evaluate` and `predict` take such rows as well.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Loaded from the model's path where it is not given.
        model_init (`Callable[[], PreTrainedModel]`, *optional*):
            Makes the model where `model` is not given. Called once, with the seed set.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*, defaults to [`compute_accuracy`]):
            Gets logits of shape `(N, T, 2)`, padded with -100, and labels of shape `(N, T)`, -100 where a token has
            none: int64 where all labels of the trainer's datasets are 0 or 1, else float.
        callbacks, optimizers, preprocess_logits_for_metrics, peft_config:
            As in [`ERPRMTrainer`].

    Logged metrics are those of [`ERPRMTrainer`], and in evaluation what `compute_metrics` returns, by default

    - `eval_accuracy`: share of labelled steps whose more likely class is the label, a soft label being class 1 above
      0.5 (higher is better).
    """

    _tag_names = ["trl", "trl-erprm", "prm", "process-reward-model"]
    _name = "PRM"
    _paper = {
        "title": "Solving math word problems with process- and outcome-based feedback",
        "id": "2211.14275",
        # docstyle-ignore
        "citation": (
            "@article{uesato2022solving,\n"
            "    title   = {{Solving math word problems with process- and outcome-based feedback}},\n"
            "    author  = {Uesato, Jonathan and Kushman, Nate and Kumar, Ramana and Song, Francis and Siegel, Noah "
            "and Wang, Lisa and Creswell, Antonia and Irving, Geoffrey and Higgins, Irina},\n"
            "    journal = {arXiv preprint arXiv:2211.14275},\n"
            "    year    = 2022\n"
            "}"
        ),
    }

    # Whether a dataset of this trainer has a label other than 0 and 1.
    _has_soft_labels = False

    def __init__(
        self,
        model: PreTrainedModel | str | None = None,
        args: PRMConfig | None = None,
        data_collator: DataCollatorForTokenClassification | StepDataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        peft_config: Any = None,
    ):
        if args is None:
            args = PRMConfig("PRM")
        elif not isinstance(args, PRMConfig):
            raise TypeError(
                f"`args` must be a `trl_erprm.compat.PRMConfig`, got {type(args).__name__}. With an `ERPRMConfig`, "
                "use `ERPRMTrainer`."
            )
        if (model is None) == (model_init is None):
            raise ValueError(
                f"Give either `model` or `model_init`, got {'neither' if model is None else 'both'} of them."
            )
        if model is None:
            set_seed(args.seed)
            model = model_init()
        if getattr(data_collator, "pad_to_multiple_of", None) is not None:
            args.pad_to_multiple_of = data_collator.pad_to_multiple_of
        super().__init__(
            model=model,
            args=args,
            data_collator=_accepted_collator(data_collator),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics or compute_accuracy,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            peft_config=peft_config,
        )
        if isinstance(data_collator, DataCollatorForTokenClassification):
            logger.info(
                "`StepDataCollator` takes the place of the `DataCollatorForTokenClassification`: it makes the same "
                "batches with soft labels kept or, without padding, lays the same solutions end to end."
            )

    @staticmethod
    def tokenize_row(
        features: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        step_separator: str,
        max_length: int | None,
        max_completion_length: int | None,
        train_on_last_step_only: bool,
        is_eval: bool,
    ) -> dict[str, list]:
        r"""
        Token ids and token labels of a row. A subclass that overrides it is trained on what it returns.

        Args:
            features (`Mapping[str, Any]`):
                Row with `prompt`, `completions` and `labels` (bool or float in [0, 1]; `None`, NaN or -100 for none).
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer. Its beginning-of-sequence token, if it has one, comes first.
            step_separator (`str`):
                Text behind each step, tokenized on its own.
            max_length (`int`, *optional*), max_completion_length (`int`, *optional*):
                Most tokens of the whole, and of the steps with their separators; the rest is cut from the end.
            train_on_last_step_only (`bool`), is_eval (`bool`):
                Whether only the last step keeps its label; not so in evaluation.

        Returns:
            `dict[str, list]`: `input_ids`, and `labels` of the same length: the label of a step at the last token of
            its separator, 0 and 1 as int, others as float; -100 elsewhere.

        Example:

        ```python
        >>> from trl_erprm.arithmetic import build_tokenizer
        >>> row = {"prompt": "3+4-1", "completions": ["=7", "7-1=6"], "labels": [True, 0.9]}
        >>> options = {"max_length": None, "max_completion_length": None, "train_on_last_step_only": False}
        >>> PRMTrainer.tokenize_row(row, build_tokenizer(), "\n", **options, is_eval=False)["labels"]
        [-100, -100, -100, -100, -100, 1, -100, -100, -100, 0.9]

        ```
        """
        steps = features["completions"]
        labels = [_token_label(label, k) for k, label in enumerate(features["labels"])]
        if len(labels) != len(steps):
            raise ValueError(f"There are {len(labels)} labels for {len(steps)} steps. Give one label a step.")
        if train_on_last_step_only and not is_eval:
            labels[:-1] = [NO_LABEL] * (len(labels) - 1)
        texts = [features["prompt"], *steps, step_separator]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                "`prompt` and the steps must be texts. For chat messages use `ERPRMTrainer`, or write them as text."
            )
        input_ids, *step_ids, separator_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if tokenizer.bos_token_id is not None:
            input_ids = [tokenizer.bos_token_id, *input_ids]
        end = max_length
        if max_completion_length is not None:
            end = min(len(input_ids) + max_completion_length, math.inf if max_length is None else max_length)
        token_labels = [NO_LABEL] * len(input_ids)
        for ids, label in zip(step_ids, labels, strict=True):
            input_ids = [*input_ids, *ids, *separator_ids]
            token_labels += [NO_LABEL] * (len(input_ids) - len(token_labels) - 1) + [label]
        return {"input_ids": input_ids[:end], "labels": token_labels[:end]}

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        columns = get_dataset_column_names(dataset)
        is_train = dataset_name == "train" and not self._train_dataset_is_prepared
        self._train_dataset_is_prepared = True
        if not set(ENCODED_COLUMNS) <= set(columns):
            dataset = self._note_eta(dataset, dataset_name, is_train)
            options = None
            if "input_ids" not in columns:
                if is_train:
                    self.trained_prompts = prompts_of_dataset(dataset)
                options = {
                    "tokenizer": processing_class,
                    "step_separator": args.step_separator,
                    "max_length": args.max_length,
                    "max_completion_length": args.max_completion_length,
                    "train_on_last_step_only": args.train_on_last_step_only,
                    "is_eval": not is_train,
                }
            with args.main_process_first(local=False, desc=f"preparing the {dataset_name} dataset"):
                dataset = _encode_dataset(
                    dataset, self.tokenize_row, options, dataset_name, columns, args.dataset_num_proc
                )
        if not isinstance(dataset, Dataset):
            self._has_soft_labels = True  # they cannot be looked at in advance
        elif not self._has_soft_labels:
            labels = (label for of_row in dataset["step_labels"] for label in of_row)
            self._has_soft_labels = any(0 < label < 1 for label in labels)
        return dataset

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss; logits of shape `(B, T, 2)` and labels of shape `(B, T)`, -100 for padding and for no label."""
        inputs = self._prepare_inputs(inputs)
        outputs: list[torch.Tensor] = []
        hook = model.register_forward_hook(lambda module, args, output: outputs.append(output.logits))
        try:
            loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        finally:
            hook.remove()
        if prediction_loss_only:
            return loss, None, None
        logits, step_labels = outputs[0].detach().float(), inputs["step_labels"]
        labels = torch.full(inputs["is_step_end"].shape, float(NO_LABEL), device=step_labels.device)
        labels[inputs["is_step_end"]] = step_labels[~step_labels.isnan()]
        if not self._has_soft_labels:
            labels = labels.long()
        if "cu_seq_lens_q" in inputs:  # solutions end to end: one a row again
            lengths = inputs["cu_seq_lens_q"].diff().tolist()
            logits, labels = (
                pad_sequence(of_all[0].split(lengths)[: len(step_labels)], batch_first=True, padding_value=NO_LABEL)
                for of_all in (logits, labels)
            )
        return loss, logits, labels

    def hyperparameter_search(self, *args, **kwargs):
        raise NotImplementedError(
            "`PRMTrainer` calls `model_init` once and has no hyperparameter search. Build a trainer for each trial."
        )


def compute_accuracy(eval_pred: EvalPrediction) -> dict[str, float]:
    """
    TRL <= 1.13's default metric of [`PRMTrainer`].

    Args:
        eval_pred ([`~transformers.EvalPrediction`] or `tuple`):
            Logits of shape `(N, T, 2)` and labels of shape `(N, T)`, -100 where a token has none.

    Returns:
        `dict[str, float]`: `accuracy`, the share of labelled tokens whose more likely class is the label; a soft label
        is class 1 above 0.5. NaN without a label.

    Example:

    ```python
    >>> import numpy as np
    >>> logits = np.array([[[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]])
    >>> compute_accuracy((logits, np.array([[-100, 0, 0.3]])))
    {'accuracy': 0.5}

    ```
    """
    logits, labels = eval_pred
    is_labelled = labels != NO_LABEL
    is_right = (np.argmax(logits[is_labelled], axis=-1) == 1) == (labels[is_labelled] > 0.5)
    return {"accuracy": float(is_right.mean()) if is_right.size else math.nan}


def _accepted_collator(data_collator: Any) -> StepDataCollator | None:
    """The collator to train with; `None` for [`ERPRMTrainer`]'s own."""
    if data_collator is None or isinstance(data_collator, StepDataCollator):
        return data_collator
    if isinstance(data_collator, DataCollatorForTokenClassification):
        return None
    raise TypeError(
        "`data_collator` must be a `DataCollatorForTokenClassification` or a `StepDataCollator`, got "
        f"{type(data_collator).__name__}. Leave it out: rows have `input_ids`, `step_ends` and `step_labels` here, of "
        "which `StepDataCollator` makes batches."
    )


def _token_label(label: Any, k: int) -> int | float:
    """The label of a step as `tokenize_row` returns it."""
    if label is None or label == NO_LABEL or label != label:
        return NO_LABEL
    if not (isinstance(label, bool | int | float | np.number | np.bool_) and 0 <= label <= 1):
        raise ValueError(f"Label {k} must be in [0, 1], a bool, or None for no label, got {label!r}.")
    return int(label) if label in (0, 1) else float(label)


def _encode_dataset(
    dataset: Dataset | IterableDataset,
    tokenize_row: Callable[..., Mapping[str, Sequence]],
    options: dict[str, Any] | None,
    name: str,
    columns: Sequence[str],
    num_proc: int | None,
) -> Dataset | IterableDataset:
    """
    Rows (or, with `options=None`, tokenized rows) as [`ERPRMTrainer`]'s encoded ones; rows without a label are left
    out of a map-style dataset, and counted.
    """
    if options is None and "labels" not in columns:
        raise ValueError(
            f"The {name} dataset has `input_ids`, but no `labels`: it has the columns {', '.join(columns)}. Give "
            f"tokenized rows with both, or rows with {', '.join(_ROW_COLUMNS)}."
        )

    def encode(row: Mapping[str, Any], index: int) -> dict[str, list]:
        try:
            tokenized = row if options is None else tokenize_row(row, **options)
        except KeyError as error:
            raise ValueError(
                f"Row {index} of the {name} dataset has no column {error}: it has {', '.join(columns)}. Rows need "
                f"{', '.join(_ROW_COLUMNS)}, or `input_ids` and `labels`."
            ) from error
        except ValueError as error:
            raise ValueError(f"Row {index} of the {name} dataset: {error}") from error
        input_ids, labels = tokenized["input_ids"], tokenized["labels"]
        if len(input_ids) != len(labels):
            raise ValueError(
                f"Row {index} of the {name} dataset has {len(labels)} token labels for {len(input_ids)} tokens. Give "
                f"one a token, {NO_LABEL} where there is none."
            )
        labels = [_token_label(label, i) for i, label in enumerate(labels)]
        step_ends = [i for i, label in enumerate(labels) if label != NO_LABEL]
        return {
            "input_ids": list(input_ids),
            "step_ends": step_ends,
            "step_labels": [float(labels[i]) for i in step_ends],
        }

    arguments: dict[str, Any] = {"with_indices": True, "remove_columns": list(columns), "features": _ENCODED_FEATURES}
    if not isinstance(dataset, Dataset):
        return dataset.map(encode, **arguments)
    encoded = dataset.map(encode, num_proc=num_proc, desc=f"Tokenizing {name} dataset", **arguments)
    kept = [i for i, step_ends in enumerate(encoded["step_ends"]) if step_ends]
    if len(kept) == len(encoded):
        return encoded
    within = ""
    if options is not None:
        limits = {n: options[n] for n in ("max_length", "max_completion_length") if options[n] is not None}
        within = f" within {' and '.join(f'`{n}` ({limit} tokens)' for n, limit in limits.items())}" if limits else ""
    if not kept:
        raise ValueError(f"No row of the {name} dataset has a labelled step{within}. Raise the limit, or add labels.")
    logger.warning(
        f"{len(encoded) - len(kept)} of {len(encoded)} rows of the {name} dataset have no labelled step{within} and "
        "are left out."
    )
    return encoded.select(kept)
