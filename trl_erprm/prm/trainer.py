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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from trl import RewardTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id

from ..arguments import load_tokenizer
from ..data import check_eta_of_labels, eta_of_labels
from ..trained_weights import check_adapter_of_model
from .attention import is_causal, use_packed_attention, why_not_padding_free
from .collator import StepDataCollator
from .config import ERPRMConfig
from .dataset import ENCODED_COLUMNS, OPTIONAL_COLUMNS, encode_dataset, label_rows, step_weighting
from .formats import PRMFormat, format_of_checkpoint, read_saved_format
from .heads import step_log_odds
from .metrics import auroc, brier_score, calibration_error, first_error_f1, step_accuracy
from .model_card import add_to_model_card
from .prompts import prompts_of_dataset, trained_prompts
from .trained_weights import load_prm_to_train, prepare_trained_weights

logger = get_logger(__name__)

_STATE = "ERPRMTrainer"  # our entry in the trainer's state


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
            head. Of a directory that holds an adapter, the adapter is trained on, without a `peft_config`.
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

    - `loss`: mean loss a step, in nats for `soft_cross_entropy` (lower is better). In training it is the loss that is
      minimized, over the last optimizer steps, weights of steps included; in evaluation without weights.
    - `step_accuracy`: share of steps whose score and label lie on the same side of 0.5 (higher is better).
    - `step_auroc`: probability that a good step scores higher than a bad one, in [0, 1]; a soft label V is V of a good
      step and 1 - V of a bad one, so with soft labels 1 cannot be reached (higher is better, 0.5 is chance).
    - `brier_score`: mean squared difference between score and label (lower is better).
    - `calibration_error`: expected calibration error, the mean distance between score and label over ten bins of the
      score, in [0, 1] (arXiv 1706.04599; lower is better).
    - `first_error_f1`: is the first wrong step found? Harmonic mean of the share of solutions with a wrong step whose
      first one is found exactly, and the share of solutions without that are seen to be so, at 0.5, in [0, 1]
      (ProcessBench, arXiv 2412.06559; higher is better).
    - `outcome_auroc`: where rows have an `outcome`, the probability that a solution with a right answer scores higher
      than one with a wrong answer, a solution's score being the least of its steps' (higher is better).
    - `mean_score`, `mean_label`: means of score and label, in [0, 1]; they should agree.
    - `num_tokens`: tokens trained on so far, padding aside.

    After a resume, the first log covers the steps since the resume. In evaluation every solution counts once; only of
    a streaming dataset on several processes, those that fill up the last batch count twice, as transformers cannot
    tell them from the others.

    `eta` is the eta of the labels that are trained on: `args.eta`, or, where labels are used as they are, what the
    rows' column `eta` says; `None` if that is not known. It is saved with the format, and by it the scorer's users
    turn scores into probabilities.

    What these solutions do not determine (a ranking without a bad step) is not logged. With `compute_metrics`, its
    predictions and labels are arrays of solutions x steps, -100 where a step has no label.
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
        path = of_checkpoint = saved = None
        if isinstance(model, str):
            path, saved = model, read_saved_format(model)
            of_checkpoint = format_of_checkpoint(path, saved)
        self.format: PRMFormat = args.resolve_format(of_checkpoint)
        self.trained_prompts = trained_prompts(saved, path)  # until there are rows to train on

        set_seed(args.seed)  # before the model is made: a new head is drawn at random
        if isinstance(model, str):
            if processing_class is None:
                processing_class = load_tokenizer(
                    model,
                    revision=(args.model_init_kwargs or {}).get("revision"),
                    trust_remote_code=args.trust_remote_code,
                )
            model = load_prm_to_train(model, self.format, args, quantization_config, peft_config)
        elif processing_class is None:
            processing_class = load_tokenizer(get_config_model_id(model.config))
        check_adapter_of_model(model, peft_config)
        self._check_head(model, args)
        self.format.check_tokenizer(processing_class)
        self.label_token_ids = self.format.label_token_ids(processing_class) if args.head == "causal_lm" else None

        self._is_causal = is_causal(model)
        self.padding_free = self._use_padding_free(model, args)
        self._train_dataset_is_prepared = False
        self.eta: float | None = args.eta
        # Scores, labels, losses and outcomes of the solutions since the last log.
        self._records: dict[str, list[torch.Tensor]] = {"train": [], "eval": []}

        if args.accelerator_config.dispatch_batches:
            logger.warning(
                "`dispatch_batches=True` cuts one process's batches up for the others, which batches of solutions do "
                "not allow. It is set to `False`."
            )
        args.accelerator_config.dispatch_batches = False  # None would be True for streaming datasets

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
                padding_free=self.padding_free,
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
        is_new = peft_config is not None
        prepare_trained_weights(self.model, self.accelerator, args.learning_rate, has_new_adapter=is_new)

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
            if not args.num_labels_is_given and base.config.num_labels in (1, 2):
                args.num_labels = base.config.num_labels
            if base.config.num_labels not in (1, 2):
                raise ValueError(
                    f"The model must have 1 label (sigmoid) or 2 (softmax) to score steps, got {name} with "
                    f"{base.config.num_labels}. Load it with `num_labels=1` and `ignore_mismatched_sizes=True`, which "
                    "puts a new head in the place of the one it has."
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

    @staticmethod
    def _use_padding_free(model: PreTrainedModel, args: ERPRMConfig) -> bool:
        base = model.get_base_model() if is_peft_model(model) else model
        obstacle = why_not_padding_free(base)
        if args.padding_free and obstacle:
            raise ValueError(
                f"`padding_free=True`, but {type(base).__name__} cannot take batches without padding: {obstacle}. "
                "Leave `padding_free` out, or choose another `attn_implementation` in `model_init_kwargs`."
            )
        if args.padding_free is False or obstacle:
            return False
        use_packed_attention(base)
        return True

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        # The training set is prepared first; one of the evaluation sets may go by the same name.
        is_train = dataset_name == "train" and not self._train_dataset_is_prepared
        self._train_dataset_is_prepared = True
        columns = get_dataset_column_names(dataset)
        if set(ENCODED_COLUMNS) <= set(columns):
            return dataset
        from_counts = {"num_correct", "num_rollouts"} <= set(columns) and args.eta is not None
        if args.eta is not None and not from_counts:
            raise ValueError(
                f"`eta` is {args.eta}, but the {dataset_name} dataset has no rollout counts to label from: it has the "
                f"columns {', '.join(columns)}. Add `num_correct` and `num_rollouts`, or leave `eta` out to train on "
                "`labels` as they are."
            )
        if "num_rollouts" in columns and "labels" not in columns and args.eta is None:
            raise ValueError(
                f"The {dataset_name} dataset has rollout counts and no `labels`. Set `eta` to label it from them (0 "
                "for soft labels, inf for hard ones)."
            )
        if is_train:
            self.trained_prompts = prompts_of_dataset(dataset)
        if not from_counts:
            dataset = self._note_eta(dataset, dataset_name, is_train)
        with args.main_process_first(local=False, desc=f"preparing the {dataset_name} dataset"):
            if from_counts:
                of_map = {"num_proc": args.dataset_num_proc, "desc": f"Labelling {dataset_name} dataset"}
                dataset = label_rows(
                    dataset, args.eta, dataset_name, **(of_map if isinstance(dataset, Dataset) else {})
                )
            weights_of = None
            if is_train:
                weights_of = step_weighting(
                    dataset,
                    args.weight_by_rollouts,
                    args.balance_classes,
                    last_step_only=args.train_on_last_step_only,
                )
            return encode_dataset(
                dataset,
                self.format,
                processing_class,
                name=dataset_name,
                columns=columns,
                num_proc=args.dataset_num_proc,
                max_length=args.max_length,
                last_step_only=args.train_on_last_step_only and is_train,
                weights_of=weights_of,
            )

    def _note_eta(self, dataset, dataset_name, is_train):
        """Keeps the eta of labels that are used as they are; returns the dataset, its rows checked to have one eta."""
        columns = get_dataset_column_names(dataset)
        eta = eta_of_labels(dataset, dataset_name) if "eta" in columns else None
        if eta is None and {"num_correct", "num_rollouts"} <= set(columns):
            logger.warning(
                f"The {dataset_name} dataset has rollout counts and `labels`, but does not say with which eta these "
                "were made, so no eta is saved with the model, and its scores are taken for probabilities. Label the "
                "rows anew with `eta` (0 for soft labels, inf for hard ones), or add it as the column `eta`."
            )
        if is_train:
            self.eta = eta
            if eta is not None:
                logger.info(f"The labels of the {dataset_name} dataset were made with eta {eta:g}.")
        elif eta is not None and eta != self.eta:
            trained_on = "labels of no known eta" if self.eta is None else f"labels made with eta {self.eta:g}"
            logger.warning(
                f"The labels of the {dataset_name} dataset were made with eta {eta:g}, but the model is trained on "
                f"{trained_on}: its metrics compare two kinds of labels. Label both with one `eta`."
            )
        if "eta" in columns and not isinstance(dataset, Dataset):

            def check(row: dict) -> dict:
                check_eta_of_labels(row, eta, dataset_name)
                return row

            dataset = dataset.map(check)
        return dataset

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = [*ENCODED_COLUMNS, *OPTIONAL_COLUMNS]

    # Loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """The weight of all labelled steps of the optimizer step, which the sum of their losses is divided by."""
        weights = [_step_weights(batch).sum() for batch in batch_samples]
        if not weights:
            return None  # no batch was left
        total = torch.stack(weights).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        weights = _step_weights(inputs)
        is_step_end, step_labels = inputs.pop("is_step_end"), inputs.pop("step_labels")
        outcomes = inputs.pop("outcomes", None)
        inputs.pop("step_weights", None)
        num_tokens = (
            inputs["attention_mask"].sum()
            if "attention_mask" in inputs
            else inputs["cu_seq_lens_q"][len(step_labels)]  # where the last solution ends, and filling may begin
        )
        if self._is_causal:
            # Padding stands on the right, where no real token looks: without a mask, attention takes its causal path.
            inputs.pop("attention_mask", None)

        is_labelled = ~step_labels.isnan()
        labels = step_labels[is_labelled]
        log_odds = step_log_odds(
            model, inputs, is_step_end, self.label_token_ids, self.accelerator.unwrap_model(model, False)
        )
        losses = step_losses(log_odds, labels, self.args.loss_type)
        # A batch without a labelled step has loss 0 and gradient 0, not 0/0.
        total = weights.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = (losses * weights).sum() / torch.where(total > 0, total, 1.0)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The steps of all processes were counted, and DDP averages over processes.
            loss = loss * self.accelerator.num_processes

        if mode == "train":
            if not self._total_train_tokens and self.state.global_step:  # resumed from a checkpoint
                self._total_train_tokens = self.state.stateful_callbacks.get(_STATE, {}).get("num_tokens", 0)
            self._total_train_tokens += self.accelerator.gather(num_tokens).sum().item() // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        step_scores = torch.full_like(step_labels, torch.nan)
        step_scores[is_labelled] = log_odds.detach().sigmoid()
        step_losses_of = torch.full_like(step_labels, torch.nan)
        step_losses_of[is_labelled] = losses.detach()
        self._record(mode, step_scores, step_labels, step_losses_of, outcomes)
        return (loss, {"step_scores": step_scores, "step_labels": step_labels}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        # `compute_metrics` gets scores and labels of solutions x steps, -100 where there is no label.
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), outputs["step_scores"].nan_to_num(-100.0), outputs["step_labels"].nan_to_num(-100.0)

    # Metrics

    def _record(self, mode, step_scores, step_labels, losses, outcomes) -> None:
        """Keeps what the metrics are computed from at the next log: of every solution of every process."""
        if outcomes is None:
            outcomes = step_labels.new_full((len(step_labels),), torch.nan)
        if mode == "train" and self.args.logging_strategy == "no":
            return  # nobody would ask for it, and it would grow to the end
        # shape (B, K, 4); K is the most steps of a solution in this batch, of any process
        record = torch.stack([step_scores, step_labels, losses, outcomes[:, None].expand_as(step_labels)], dim=2)
        record = self.accelerator.pad_across_processes(record, dim=1, pad_index=torch.nan)
        if mode == "train":  # `batch_rebalance` gives processes different numbers of solutions
            record = self.accelerator.pad_across_processes(record, dim=0, pad_index=torch.nan)
        # In evaluation, the last batch may hold solutions twice, so that all processes have as many.
        gather = self.accelerator.gather if mode == "train" else self.accelerator.gather_for_metrics
        self._records[mode].append(gather(record))

    def log(self, logs, start_time=None):
        if self.model.training and self._records["train"]:
            _, metrics = step_metrics(self._records["train"])
            self._records["train"] = []
            self._metrics["train"].update({name: [value] for name, value in metrics.items()})
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self._records["eval"] = []  # of a loop that was interrupted
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        records, self._records["eval"] = self._records["eval"], []
        if records:
            loss, metrics = step_metrics(records)
            # The loss is replaced: Trainer averages the means of the batches.
            metrics = {**metrics, "loss": loss}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        test_dataset = self._prepare_dataset(test_dataset, self.processing_class, self.args, "test")  # as `evaluate`
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    # Checkpoints and model card

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        super().create_model_card(model_name, dataset_name, tags)
        if not self.is_world_process_zero():
            return
        card = Path(self.args.output_dir) / "README.md"
        model_id = self.hub_model_id or self.args.output_dir
        args = self.args
        text = add_to_model_card(
            card.read_text("utf-8"), model_id, self.format, args.num_labels, self.eta, args.loss_type
        )
        card.write_text(text, "utf-8")

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict=state_dict)
        # Kept with the trainer's state, which is written into a checkpoint behind the weights.
        self.state.stateful_callbacks[_STATE] = {"num_tokens": self._total_train_tokens}
        directories = {str(output_dir or self.args.output_dir)}
        if self.args.push_to_hub:
            directories.add(
                self.args.output_dir
            )  # what a push during training takes from a checkpoint is a fixed list
        for directory in directories:
            self.format.save(
                directory,
                prompt_kind=self.trained_prompts.kind,
                prompt_ending=self.trained_prompts.ending,
                eta=self.eta,
                num_labels=self.args.num_labels if self.args.head == "token_classification" else None,
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


def step_metrics(records: Sequence[torch.Tensor]) -> tuple[float, dict[str, float]]:
    """
    The mean loss and the metrics of [`ERPRMTrainer`] over recorded solutions.

    Args:
        records (`Sequence[torch.Tensor]`):
            Each of shape `(B, K, 4)`: score, label and loss of each step, NaN where it has none, and its solution's
            outcome, NaN where it is not known.

    Returns:
        `tuple[float, dict[str, float]]`: mean loss a step, NaN without a label, and metrics by name, without those
        that these solutions do not determine.
    """
    most = max(record.shape[1] for record in records)
    solutions = np.concatenate(
        [F.pad(r.float(), (0, 0, 0, most - r.shape[1]), value=torch.nan).cpu().double().numpy() for r in records]
    )
    scores, labels, losses, outcomes = np.moveaxis(solutions, 2, 0)
    is_labelled = ~np.isnan(labels)
    metrics = {
        "step_accuracy": step_accuracy(scores[is_labelled], labels[is_labelled]),
        "step_auroc": auroc(scores[is_labelled], labels[is_labelled]),
        "brier_score": brier_score(scores[is_labelled], labels[is_labelled]),
        "calibration_error": calibration_error(scores[is_labelled], labels[is_labelled]),
        "first_error_f1": first_error_f1(scores, labels).f1,
    }
    has_outcome = is_labelled.any(axis=1) & ~np.isnan(outcomes[:, :1]).all(axis=1)
    if has_outcome.any():
        solution_scores = np.nanmin(np.where(is_labelled, scores, np.nan)[has_outcome], axis=1)
        metrics["outcome_auroc"] = auroc(solution_scores, outcomes[has_outcome, 0])
    if not is_labelled.any():
        return math.nan, {}
    metrics["mean_score"] = float(scores[is_labelled].mean())
    metrics["mean_label"] = float(labels[is_labelled].mean())
    # A metric that is not determined (a ranking without a bad step) is left out, not logged as NaN.
    return float(losses[is_labelled].mean()), {n: value for n, value in metrics.items() if not math.isnan(value)}


def _step_weights(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Weights of the labelled steps of a batch, in the order of its step ends: shape `(num_labelled_steps,)`."""
    is_labelled = ~batch["step_labels"].isnan()
    weights = batch.get("step_weights")
    return (torch.ones_like(batch["step_labels"]) if weights is None else weights)[is_labelled]


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
