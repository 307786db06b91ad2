"""[`ERPRMTrainer`]: trains a process reward model on soft step labels.

What is ours: the rows (prompt, steps, labels) instead of preference pairs, and the loss at the step ends. Loading,
PEFT, quantization, activation offloading, logging, checkpoints and model cards are [`~trl.RewardTrainer`]'s. The
methods overridden are `_prepare_dataset`, `_set_signature_columns_if_needed`, `_get_num_items_in_batch`,
`compute_loss`, `log` and `_save`; `tests/test_trl_seams.py` holds their signatures against the installed TRL.

Departures from the paper and its reference code:

- Only the step ends are projected to the vocabulary; the reference computes logits of every position.
- The loss is the mean over all labelled steps of the optimizer step (over processes and accumulation), so that it does
  not depend on how the steps fall into micro-batches; the reference averages the averages of the micro-batches.
- The default head is token classification; `head="causal_lm"` is the paper's.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from trl import RewardTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import create_model_from_path, get_config_model_id

from ..arguments import load_tokenizer
from ..data import validate_stepwise_rows
from ..labeling.estimators import entropy_regularized_value_from_counts
from .collator import StepDataCollator
from .config import ERPRMConfig
from .formats import PRMFormat
from .heads import new_head_is_expected, step_log_odds, without_head

logger = get_logger(__name__)


class ERPRMTrainer(RewardTrainer):
    """
    Trainer for process reward models with soft step labels (ER-PRM, https://huggingface.co/papers/2412.11006).

    The loss of a step with label V and log-odds z is the soft cross-entropy -V log s(z) - (1 - V) log(1 - s(z)),
    s being the sigmoid; labels are used as they are, never rounded.

    Example:

    ```python
    from datasets import Dataset
    from trl_erprm import ERPRMConfig, ERPRMTrainer

    rows = [{"prompt": "1+1+1?", "completions": ["1+1=2", "2+1=4"], "labels": [0.9, 0.1]}]
    trainer = ERPRMTrainer("Qwen/Qwen2.5-0.5B", args=ERPRMConfig("prm"), train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()  # ProcessRewardModel.from_pretrained("prm") needs no further hint
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train: a path or id, loaded with the head that `args.head` names, or a loaded model that has this
            head.
        args ([`ERPRMConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Stepwise rows: `prompt` (text or messages), `completions` (the steps) and `labels` (bool or float in
            [0, 1], `None` or NaN where a step has none), or, with `args.eta`, `num_correct` and `num_rollouts`.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or `dict` of these, *optional*):
            The same for evaluation.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Loaded from the model's path where it is not given.
        quantization_config, peft_config, callbacks, optimizers, and further arguments:
            As in [`~trl.RewardTrainer`]. A token-classification head is left unquantized and trained in full beside
            the adapter, without being asked.

    Logged metrics (in evaluation with the prefix `eval_`), each over the labelled steps since the last log:

    - `loss`: mean loss a step (lower is better).
    - `step_accuracy`: share of steps whose score and label lie on the same side of 0.5 (higher is better).
    - `brier_score`: mean squared difference between score and label (lower is better).
    - `mean_score`, `mean_label`: means of score and label, in [0, 1]; they should agree.
    - `num_tokens`: tokens trained on so far.
    """

    # `compute_loss` divides by the steps of the whole optimizer step, so no further scaling is needed.
    loss_is_scaled_for_ga = True

    _tag_names = ["trl", "trl-erprm", "er-prm", "process-reward-model"]
    _name = "ER-PRM"
    _paper = {
        "title": "Entropy-Regularized Process Reward Model",
        "id": "2412.11006",
        # docstyle-ignore
        "citation": (
            "@article{zhang2024entropy,\n"
            "    title   = {{Entropy-Regularized Process Reward Model}},\n"
            "    author  = {Zhang, Hanning and Wang, Pengcheng and Diao, Shizhe and Lin, Yong and Pan, Rui and "
            "Dong, Hanze and Zhang, Dylan and Molchanov, Pavlo and Zhang, Tong},\n"
            "    journal = {arXiv preprint arXiv:2412.11006},\n"
            "    year    = 2024\n"
            "}"
        ),
    }

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: ERPRMConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        **kwargs,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = ERPRMConfig(f"{(name or 'model').split('/')[-1]}-ER-PRM")
        self.format: PRMFormat = args.build_format()

        set_seed(args.seed)  # before the model is made: a new head is drawn at random
        if isinstance(model, str):
            if processing_class is None:
                processing_class = load_tokenizer(
                    model,
                    revision=(args.model_init_kwargs or {}).get("revision"),
                    trust_remote_code=args.trust_remote_code,
                )
            model = self._load_model(model, args, quantization_config)
        elif processing_class is None:
            processing_class = load_tokenizer(get_config_model_id(model.config))
        self._check_head(model, args)
        self.format.check_tokenizer(processing_class)
        self.label_token_ids = self.format.label_token_ids(processing_class) if args.head == "causal_lm" else None

        if peft_config is not None:
            peft_config = copy.deepcopy(peft_config)
            # PEFT's kinds of model differ in the methods they expect: a token classifier has none for generation.
            peft_config.task_type = "TOKEN_CLS" if args.head == "token_classification" else "CAUSAL_LM"
            if args.head == "token_classification" and "score" not in (peft_config.modules_to_save or []):
                # The new head has nothing to adapt from: it is trained in full and saved with the adapter.
                peft_config.modules_to_save = [*(peft_config.modules_to_save or []), "score"]

        if kwargs.get("data_collator") is None:
            pad_token = processing_class.pad_token or processing_class.eos_token
            kwargs["data_collator"] = StepDataCollator(
                pad_token_id=processing_class.convert_tokens_to_ids(pad_token),
                pad_to_multiple_of=args.pad_to_multiple_of,
            )
        with _accepted_by_reward_trainer(model, args):
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
                **kwargs,
            )
        if getattr(model, "is_loaded_in_4bit", False) and not args.bf16:
            # RewardTrainer makes what is trained beside quantized weights bfloat16, which needs autocast around it.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        # Sums of each metric over the steps since the last log, and the number of these steps.
        self._metric_sums = {"train": torch.zeros(6), "eval": torch.zeros(6)}

    @staticmethod
    def _load_model(path: str, args: ERPRMConfig, quantization_config: Any) -> PreTrainedModel:
        model_init_kwargs = dict(args.model_init_kwargs or {})
        quantization_config = quantization_config or model_init_kwargs.pop("quantization_config", None)
        if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
            model_init_kwargs["device_map"] = None  # "auto" would spread one copy over the processes' devices
        model_init_kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        if args.head == "causal_lm":
            architecture = AutoModelForCausalLM
        else:
            architecture = AutoModelForTokenClassification
            model_init_kwargs["num_labels"] = args.num_labels
            quantization_config = without_head(quantization_config)
        if quantization_config is not None:
            model_init_kwargs["quantization_config"] = quantization_config
        with new_head_is_expected():
            return create_model_from_path(path, architecture, **model_init_kwargs)

    @staticmethod
    def _check_head(model: PreTrainedModel, args: ERPRMConfig) -> None:
        base = model.get_base_model() if is_peft_model(model) else model
        name = type(base).__name__
        if args.head == "token_classification":
            if not name.endswith("ForTokenClassification"):
                raise ValueError(
                    f"`head='token_classification'` needs a token-classification model, got {name}. Load it with "
                    "`AutoModelForTokenClassification`, give its path instead, or set `head='causal_lm'`."
                )
            if base.config.num_labels != args.num_labels:
                raise ValueError(
                    f"The model has {base.config.num_labels} labels, but `num_labels` is {args.num_labels}. Set "
                    f"`num_labels={base.config.num_labels}`, or load the model with `num_labels={args.num_labels}`."
                )
        elif model.get_output_embeddings() is None:
            raise ValueError(
                f"`head='causal_lm'` needs a causal language model, got {name}, which has no output embeddings. Load "
                "it with `AutoModelForCausalLM`, give its path instead, or set `head='token_classification'`."
            )

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        columns = get_dataset_column_names(dataset)
        if {"input_ids", "step_ends", "step_labels"} <= set(columns):
            return dataset
        is_map_style = isinstance(dataset, Dataset)
        last_step_only = args.train_on_last_step_only and dataset_name == "train"
        from_counts = {"num_correct", "num_rollouts"} <= set(columns) and args.eta is not None
        if args.eta is not None and not from_counts:
            raise ValueError(
                f"`eta` is {args.eta}, but the {dataset_name} dataset has no rollout counts to label from: it has the "
                f"columns {', '.join(columns)}. Add `num_correct` and `num_rollouts`, or leave `eta` out to train on "
                "`labels` as they are."
            )

        def label(row: dict, index: int) -> dict:
            if from_counts:
                counts = row["num_correct"], row["num_rollouts"]
                if not len(row["completions"]) == len(counts[0]) == len(counts[1]):
                    raise ValueError(
                        f"Row {index} of the {dataset_name} dataset has {len(row['completions'])} steps, but "
                        f"{len(counts[0])} `num_correct` and {len(counts[1])} `num_rollouts`. Give one of each a step."
                    )
                try:
                    values = entropy_regularized_value_from_counts(*counts, args.eta)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"Row {index} of the {dataset_name} dataset: {error}") from error
                row["labels"] = [float(value) for value in values]
            return row

        def encode(row: dict, index: int) -> dict:
            if not is_map_style:
                validate_stepwise_rows(row, row_number=index)
            try:
                encoded = self.format.encode(processing_class, row["prompt"], row["completions"], args.max_length)
            except ValueError as error:
                raise ValueError(f"Row {index} of the {dataset_name} dataset: {error}") from error
            step_labels = [math.nan if v is None else float(v) for v in row["labels"]]
            if last_step_only:
                step_labels[:-1] = [math.nan] * (len(step_labels) - 1)
            return {
                "input_ids": encoded.input_ids,
                "step_ends": encoded.step_ends,
                "step_labels": step_labels[: len(encoded.step_ends)],
                "num_dropped_steps": encoded.num_dropped_steps,
            }

        map_kwargs = {"with_indices": True}
        if is_map_style:
            map_kwargs["num_proc"] = args.dataset_num_proc
        with args.main_process_first(local=False, desc=f"preparing the {dataset_name} dataset"):
            if from_counts:
                dataset = dataset.map(label, **map_kwargs, **_desc(is_map_style, f"Labelling {dataset_name} dataset"))
            if is_map_style:
                validate_stepwise_rows(dataset)
            dataset = dataset.map(
                encode,
                remove_columns=columns,
                **map_kwargs,
                **_desc(is_map_style, f"Tokenizing {dataset_name} dataset"),
            )
            return self._drop_rows_without_steps(dataset, args, dataset_name) if is_map_style else dataset

    def _drop_rows_without_steps(self, dataset: Dataset, args: ERPRMConfig, dataset_name: str) -> Dataset:
        """Reports what `max_length` cut off, and leaves out the rows of which nothing to learn from remains."""
        num_dropped = sum(dataset["num_dropped_steps"])
        kept = [i for i, labels in enumerate(dataset["step_labels"]) if any(not math.isnan(label) for label in labels)]
        if num_dropped:
            logger.warning(
                f"{num_dropped} steps of the {dataset_name} dataset lie beyond `max_length` ({args.max_length} "
                "tokens) and were dropped together with their labels."
            )
        if not kept:
            raise ValueError(
                f"No row of the {dataset_name} dataset has a labelled step within `max_length` ({args.max_length} "
                f"tokens); {num_dropped} steps were cut off. Raise `max_length`, or check the labels."
            )
        if len(kept) < len(dataset):
            logger.warning(
                f"{len(dataset) - len(kept)} of {len(dataset)} rows of the {dataset_name} dataset have no labelled "
                f"step within `max_length` ({args.max_length} tokens) and were left out."
            )
            dataset = dataset.select(kept)
        return dataset.remove_columns("num_dropped_steps")

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "step_ends", "step_labels"]

    # Loss

    def _get_num_items_in_batch(self, batch_samples, device):
        num_steps = sum((~batch["per_token_labels"].isnan()).sum() for batch in batch_samples)
        if not torch.is_tensor(num_steps):
            return None  # no batch was left
        num_steps = num_steps.to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            num_steps = self.accelerator.gather(num_steps).sum()
        return num_steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        per_token_labels = inputs.pop("per_token_labels")
        is_step_end = ~per_token_labels.isnan()
        labels = per_token_labels[is_step_end]
        log_odds = step_log_odds(
            model, inputs, is_step_end, self.label_token_ids, self.accelerator.unwrap_model(model, False)
        )
        losses = step_losses(log_odds, labels, self.args.loss_type)
        # A batch without a labelled step has loss 0 and gradient 0, not 0/0.
        num_steps = is_step_end.sum() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / torch.as_tensor(num_steps).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The steps of all processes were counted, and DDP averages over processes.
            loss = loss * self.accelerator.num_processes

        if mode == "train":
            num_tokens = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += num_tokens // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._add_metrics(mode, losses.detach(), log_odds.detach(), labels)
        return (loss, {"log_odds": log_odds}) if return_outputs else loss

    def _add_metrics(self, mode: str, losses: torch.Tensor, log_odds: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds this batch to the sums behind the metrics, over all processes."""
        scores = log_odds.sigmoid()
        sums = torch.stack(
            [
                losses.sum(),
                ((scores > 0.5) == (labels > 0.5)).float().sum(),
                (scores - labels).square().sum(),
                scores.sum(),
                labels.sum(),
                torch.tensor(float(labels.numel()), device=labels.device),
            ]
        )
        self._metric_sums[mode] = self._metric_sums[mode] + self.accelerator.gather(sums.unsqueeze(0)).sum(dim=0).cpu()

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        loss, *sums, num_steps = self._metric_sums[mode].tolist()
        if num_steps:
            # Sums over steps divided once, so that a metric does not depend on how steps fall into batches.
            prefix = ""
            if mode == "eval":
                # The key of the loss holds the name of the evaluation set, of several ("eval_easy_loss"). Its value is
                # replaced: Trainer averages the means of the batches.
                [loss_key] = [key for key in logs if re.fullmatch(r"eval_(.+_)?loss", key)] or ["eval_loss"]
                logs[loss_key] = loss / num_steps
                prefix = loss_key.removeprefix("eval_").removesuffix("loss")
            for name, value in zip(("step_accuracy", "brier_score", "mean_score", "mean_label"), sums, strict=True):
                self._metrics[mode][prefix + name] = [value / num_steps]
        self._metric_sums[mode] = torch.zeros(6)
        super().log(logs, start_time)

    # Checkpoints

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict=state_dict)
        self.format.save(
            output_dir or self.args.output_dir,
            eta=self.args.eta,
            num_labels=self.args.num_labels,
        )


def step_losses(log_odds: torch.Tensor, labels: torch.Tensor, loss_type: str = "soft_cross_entropy") -> torch.Tensor:
    """
    The loss of each step.

    Args:
        log_odds (`torch.FloatTensor` of shape `(N,)`):
            Log-odds z of "good".
        labels (`torch.FloatTensor` of shape `(N,)`):
            Labels V in [0, 1].
        loss_type (`str`, *optional*, defaults to `"soft_cross_entropy"`):
            `"soft_cross_entropy"`: -V log s(z) - (1 - V) log(1 - s(z)), the paper's. `"mse"`: (s(z) - V)^2.

    Returns:
        `torch.FloatTensor` of shape `(N,)`.

    Example:

    ```python
    >>> step_losses(torch.tensor([0.0, 0.0]), torch.tensor([0.9, 0.5]))  # log 2, whatever the label
    tensor([0.6931, 0.6931])
    >>> step_losses(torch.tensor([0.0]), torch.tensor([0.9]), "mse")
    tensor([0.1600])

    ```
    """
    if loss_type == "mse":
        return F.mse_loss(log_odds.sigmoid(), labels, reduction="none")
    return F.binary_cross_entropy_with_logits(log_odds, labels, reduction="none")


def _desc(is_map_style: bool, text: str) -> dict:
    return {"desc": text} if is_map_style else {}  # `IterableDataset.map` takes no `desc`


@contextmanager
def _accepted_by_reward_trainer(model: PreTrainedModel, args: ERPRMConfig) -> Iterator[None]:
    """RewardTrainer insists on one label a sequence and warns about `model_init_kwargs` beside a loaded model; both
    were dealt with before, so they are hidden from it while it builds."""
    config, model_init_kwargs = model.config, args.model_init_kwargs
    id2label, label2id = config.id2label, config.label2id
    config.num_labels, args.model_init_kwargs = 1, None
    try:
        yield
    finally:
        config.id2label, config.label2id = id2label, label2id
        args.model_init_kwargs = model_init_kwargs
