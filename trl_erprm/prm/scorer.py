"""[`ProcessRewardModel`]: step scores from a trained process reward model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..arguments import load_tokenizer
from ..steps import step_texts
from .collator import StepDataCollator
from .formats import FORMAT_FILE, PRMFormat, Prompt, load_format
from .heads import new_head_is_expected, step_log_odds, without_head

if TYPE_CHECKING:
    from torch import nn


logger = logging.getLogger(__name__)


class ProcessRewardModel:
    """
    Scores the steps of solutions: one forward pass a solution, however many steps it has.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A token classifier (1 or 2 labels) or causal language model, as the format's head asks for.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        format ([`PRMFormat`] or `str`):
            How solutions are laid out, or the name of a known format.
        eta (`float`, *optional*):
            The entropy parameter of the labels the model was trained on, where known. Scores estimate V_eta;
            [`success_probability`] turns them into probabilities.
        max_length (`int`, *optional*):
            Longest input in tokens. `None` takes the model's context window.

    Example:

    ```python
    prm = ProcessRewardModel.from_pretrained("outputs/prm")
    prm.score(["1+1+1?"], [["1+1=2", "2+1=4"]])  # [[0.93, 0.04]]
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        format: PRMFormat | str,
        eta: float | None = None,
        max_length: int | None = None,
    ):
        self.format = load_format(format)
        self.format.check_tokenizer(tokenizer)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.eta = eta
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min((n for n in (max_length, context) if n is not None), default=None)
        self._label_token_ids = self.format.label_token_ids(tokenizer) if self.format.head == "causal_lm" else None
        pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._collator = StepDataCollator(pad_token_id=pad_token_id)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        format: PRMFormat | str | None = None,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        max_length: int | None = None,
        **model_init_kwargs,
    ) -> ProcessRewardModel:
        """
        Loads a process reward model: its weights (adapters on top of their base model included), tokenizer and format.

        Args:
            path (`str` or `os.PathLike`):
                Directory that [`ERPRMTrainer`] saved, or a model id. Models from elsewhere need `format`.
            format ([`PRMFormat`] or `str`, *optional*):
                Layout, or its name. `None` reads `prm_format.json` in the checkpoint.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Precision of the weights; `"auto"` is that of the checkpoint.
            device (`str` or `torch.device`, *optional*):
                Where the model goes. `None`: the accelerator where there is one, else the CPU.
            max_length (`int`, *optional*):
                Longest input in tokens.
            **model_init_kwargs:
                For `from_pretrained` of the model, for example `quantization_config` or `attn_implementation`.

        Raises:
            `ValueError`: where the directory is not a process reward model, saying what it holds.
        """
        path = str(path)
        saved = _read_saved_format(path)
        if format is None and saved is None:
            held = sorted(p.name for p in Path(path).iterdir()) if Path(path).is_dir() else None
            raise ValueError(
                f"{path!r} is not a process reward model of trl-erprm: it has no {FORMAT_FILE}"
                + (f" (it holds {', '.join(held) or 'nothing'})" if held is not None else " that could be read")
                + ". Give the directory that `ERPRMTrainer` saved, or, for a model from elsewhere, its `format`."
            )
        resolved = load_format(format) if format is not None else PRMFormat.from_dict(saved)
        saved = saved or {}
        model_init_kwargs["dtype"] = dtype
        architecture = AutoModelForCausalLM
        if resolved.head == "token_classification":
            architecture = AutoModelForTokenClassification
            if "quantization_config" in model_init_kwargs:
                model_init_kwargs["quantization_config"] = without_head(model_init_kwargs["quantization_config"])
            if "num_labels" in saved:
                model_init_kwargs["num_labels"] = saved["num_labels"]
        model = _load_model(path, architecture, model_init_kwargs)
        if device is None and "device_map" not in model_init_kwargs and "quantization_config" not in model_init_kwargs:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        if device is not None:
            model = model.to(device)
        return cls(
            model,
            load_tokenizer(path, trust_remote_code=model_init_kwargs.get("trust_remote_code", False)),
            resolved,
            eta=saved.get("eta"),
            max_length=max_length,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Prompt],
        steps: Sequence[Sequence[str]],
        batch_size: int = 32,
        show_progress: bool = False,
        none_if_too_long: bool = False,
    ) -> list[list[float] | None]:
        """
        Scores every step of every solution.

        Args:
            prompts (`Sequence` of `str` or messages):
                A prompt for each solution.
            steps (`Sequence[Sequence[str]]`):
                The steps of each solution; a solution without steps gets no scores.
            batch_size (`int`, *optional*, defaults to `32`):
                Solutions a forward pass. Batches are formed by length, so that little is spent on padding.
            show_progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.
            none_if_too_long (`bool`, *optional*, defaults to `False`):
                Whether a solution that does not fit into `max_length` gets `None` (and a warning counts them) instead
                of being an error.

        Returns:
            `list[list[float]]`: scores in [0, 1], as many a solution as it has steps, in the order given. They do not
            depend on what else is in the batch, up to rounding (1e-5 in float32).

        Raises:
            `ValueError`: for unequal numbers of prompts and solutions, an empty prompt or step, and a solution that
            does not fit into `max_length`; each names the solution.
        """
        if len(prompts) != len(steps):
            raise ValueError(f"Got {len(prompts)} prompts, but {len(steps)} solutions. Give one prompt a solution.")
        encoded: dict[int, dict] = {}
        too_long: list[int] = []
        for i, (prompt, solution) in enumerate(zip(prompts, steps, strict=True)):
            if not len(solution):
                continue
            try:
                one = self.format.encode(self.tokenizer, prompt, solution)
            except ValueError as error:
                raise ValueError(f"Solution {i}: {error}") from error
            if self.max_length is not None and len(one.input_ids) > self.max_length:
                if none_if_too_long:
                    too_long.append(i)
                    continue
                raise ValueError(
                    f"Solution {i} has {len(one.input_ids)} tokens in {len(solution)} steps, but the model reads at "
                    f"most {self.max_length}. Shorten it, or score its first steps only."
                )
            encoded[i] = {"input_ids": one.input_ids, "step_ends": one.step_ends}
            encoded[i]["step_labels"] = [0.0] * len(one.step_ends)  # marks the step ends for the collator

        order = sorted(encoded, key=lambda i: -len(encoded[i]["input_ids"]))  # longest first: memory peaks at once
        scores: list[list[float] | None] = [[] for _ in prompts]
        for i in too_long:
            scores[i] = None
        if too_long:
            logger.warning(
                f"{len(too_long)} of {len(prompts)} solutions are longer than the {self.max_length} tokens that the "
                "model reads, and get no score."
            )
        batches = range(0, len(order), batch_size)
        if show_progress:
            from tqdm.auto import tqdm

            batches = tqdm(batches, desc="Scoring", unit="batch")
        for start in batches:
            indices = order[start : start + batch_size]
            batch = {k: v.to(self.device) for k, v in self._collator([encoded[i] for i in indices]).items()}
            is_step_end = ~batch.pop("per_token_labels").isnan()
            flat = step_log_odds(self.model, batch, is_step_end, self._label_token_ids).sigmoid().tolist()
            for i in indices:
                n = len(encoded[i]["step_ends"])
                scores[i], flat = flat[:n], flat[n:]
        return scores

    def score_text(
        self, prompts: Sequence[Prompt], completions: Sequence[str], split_how: str = "newline", **kwargs
    ) -> list[list[float]]:
        """Splits each completion into steps ([`split_steps`]) and scores them; further arguments go to [`score`]."""
        return self.score(prompts, [step_texts(text, split_how) for text in completions], **kwargs)


def _read_saved_format(path: str) -> dict | None:
    """The content of a checkpoint's `prm_format.json`, from a directory or, for a model id, from the hub."""
    if Path(path).exists():
        file = Path(path) / FORMAT_FILE
        return json.loads(file.read_text("utf-8")) if file.is_file() else None
    from transformers.utils import cached_file

    file = cached_file(
        path,
        FORMAT_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return json.loads(Path(file).read_text("utf-8")) if file else None


def _load_model(path: str, architecture: type, model_init_kwargs: dict) -> nn.Module:
    if (Path(path) / "adapter_config.json").is_file():
        from peft import PeftConfig, PeftModel

        base = PeftConfig.from_pretrained(path).base_model_name_or_path
        return PeftModel.from_pretrained(_from_pretrained(base, architecture, model_init_kwargs), path)
    return _from_pretrained(path, architecture, model_init_kwargs)


def _from_pretrained(path: str, architecture: type, model_init_kwargs: dict) -> nn.Module:
    # An adapter's base has no head yet (the adapter brings it); the report about it would only alarm.
    with new_head_is_expected():
        return architecture.from_pretrained(path, **model_init_kwargs)
