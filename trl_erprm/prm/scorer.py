"""[`ProcessRewardModel`]: step scores from a trained process reward model."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from ..arguments import load_tokenizer, process_state
from ..steps import step_texts
from .attention import is_causal
from .formats import (
    FORMAT_FILE,
    FORMATS,
    EncodedSolution,
    PRMFormat,
    Prompt,
    format_of_checkpoint,
    load_format,
    read_saved_format,
)
from .heads import load_prm, step_log_odds
from .prefix_sharing import PrefixCache, cut_batches, pass_cost_on, plan_sharing, why_not_shareable, windows
from .prompts import PromptKind, PromptReader, PromptReading, trained_prompts

logger = logging.getLogger(__name__)

WINDOW = 1024
"""Solutions that are encoded and ordered at a time: enough for batches of nearly equal lengths, few enough that memory
does not grow with the number of solutions."""

_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only")


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
        prompt_kind (`str`, *optional*), prompt_ending (`str`, *optional*, defaults to `""`):
            The kind of prompt that the model was trained on, `"text"` or `"chat"`, `None` where it is not known; and
            the white space that these texts end with ([`TrainedPrompts`]).

    Raises:
        `ValueError`: where the tokenizer cannot carry the format ([`PRMFormat.check_tokenizer`]).

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
        prompt_kind: PromptKind | None = None,
        prompt_ending: str = "",
    ):
        self.format = load_format(format)
        self.format.check_tokenizer(tokenizer)
        self.prompt_reader = PromptReader(self.format, tokenizer, prompt_kind, prompt_ending)
        self.model = model.eval()
        self._lock = threading.Lock()  # a pass tells the head where to look, so two threads cannot pass at once
        self.tokenizer = tokenizer
        self.eta = eta
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min((n for n in (max_length, context) if n is not None), default=None)
        self._label_token_ids = self.format.label_token_ids(tokenizer) if self.format.head == "causal_lm" else None
        self._pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

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
                Directory that [`ERPRMTrainer`] saved, the id of a model in [`PUBLIC_MODELS`] or a local copy of it
                ([`public_model_of`]), or any other model with its `format`.
            format ([`PRMFormat`] or `str`, *optional*):
                Layout, or its name. `None` reads `prm_format.json` in the checkpoint, then looks into
                [`PUBLIC_MODELS`].
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Precision of the weights. `"auto"` is that of the checkpoint, but bfloat16 for float32 weights on a GPU
                that computes in it: our trainer saves float32, in which a model of 7B takes 28 GB beside the policy.
                Its scores are then up to 0.025 from float32's (see [`score`]), which `"float32"` gives.
            device (`str` or `torch.device`, *optional*):
                Where the model goes. `None`: the accelerator where there is one, under `accelerate launch` each
                process's own, else the CPU.
            max_length (`int`, *optional*):
                Longest input in tokens.
            **model_init_kwargs:
                For `from_pretrained` of the model, for example `quantization_config`, `attn_implementation` or
                `revision`.

        Raises:
            `FileNotFoundError`: for a local path that does not exist.
            `ValueError`: where the format is not known, saying what the directory holds; where the checkpoint has
            another head than the format reads, or none; where the tokenizer cannot carry the format.
        """
        path = str(path)
        hub_arguments = {name: model_init_kwargs[name] for name in _HUB_ARGUMENTS if name in model_init_kwargs}
        saved = read_saved_format(path, **hub_arguments)
        resolved = _resolve_format(path, format, saved)
        if device is None and "device_map" not in model_init_kwargs:
            device = process_state().device
        if device is not None and model_init_kwargs.get("quantization_config") is not None:
            model_init_kwargs.setdefault("device_map", {"": device})  # quantized as it is loaded, so loaded there
        model_init_kwargs.setdefault("num_labels", (saved or {}).get("num_labels"))
        dtype_of = functools.partial(_precision, dtype, device, model_init_kwargs)
        with loaded_whole():
            model = _load_model(path, resolved, hub_arguments, dtype_of, **model_init_kwargs)
        if device is not None and not getattr(model, "is_quantized", False):
            model = model.to(device)
        trust_remote_code = model_init_kwargs.get("trust_remote_code", False)
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code, **hub_arguments)
        trained_on = trained_prompts(saved, path)
        return cls(model, tokenizer, resolved, (saved or {}).get("eta"), max_length, *trained_on)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def prompt_kind(self) -> PromptKind | None:
        """`"text"` or `"chat"`, the kind of prompt that the model was trained on; `None` where it is not known."""
        return self.prompt_reader.prompt_kind

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Prompt],
        steps: Sequence[Sequence[str]],
        batch_size: int = 32,
        max_tokens_per_batch: int | None = None,
        show_progress: bool = False,
        none_if_too_long: bool = False,
        share_prompts: bool | None = None,
        split_between_processes: bool = False,
        prompt_as: PromptReading = "auto",
    ) -> list[list[float] | None]:
        """
        Scores every step of every solution.

        Args:
            prompts (`Sequence` of `str` or messages):
                A prompt for each solution.
            steps (`Sequence[Sequence[str]]`):
                The steps of each solution; a solution without steps gets no scores.
            batch_size (`int`, *optional*, defaults to `32`):
                Most solutions in a forward pass. Batches are formed by length, so that little is spent on padding, and
                are smaller where that costs less.
            max_tokens_per_batch (`int`, *optional*):
                Most tokens in a forward pass, padding included. A single solution with more goes alone.
            show_progress (`bool`, *optional*, defaults to `False`):
                Whether the main process shows a progress bar, in solutions.
            none_if_too_long (`bool`, *optional*, defaults to `False`):
                Whether a solution that does not fit into `max_length` gets `None` (and a warning counts them) instead
                of being an error.
            share_prompts (`bool`, *optional*):
                Whether what solutions of one prompt begin with runs through the model once, for all of them. `None`:
                where that saves time, and the model can. Candidates of a prompt should stand together: prompts are
                compared within parts of about a thousand solutions.
            split_between_processes (`bool`, *optional*, defaults to `False`):
                Under `accelerate launch`: `True` where every process is given the same solutions; each then scores its
                share, and all get all scores. The default leaves each process to what it is given, since in
                reinforcement learning every process has solutions of its own.
            prompt_as (`str`, *optional*, defaults to `"auto"`):
                `"chat"`: chats are laid out as they are. `"problem"`: of chats only the text of the user's last
                message. `"auto"`: as the model was trained ([`PromptReader.read`]).

        Returns:
            `list[list[float]]`: scores in [0, 1], as many a solution as it has steps, in the order given. They do not
            depend on what else is scored beside it, up to rounding: 1e-5 in float32; 5e-2 in bfloat16, in which scores
            are that far from float32's anyway (measured with 24 layers: 0.025 and 0.016).

        Raises:
            `ValueError`: for unequal numbers of prompts and solutions, an empty prompt or step, a tag that merges with
            its neighbours, and a solution that does not fit into `max_length`, each naming the solution; for a chat
            without a problem, or that no template can lay out; and for `share_prompts=True` with a model that cannot.
        """
        if len(prompts) != len(steps):
            raise ValueError(f"Got {len(prompts)} prompts, but {len(steps)} solutions. Give one prompt a solution.")
        for name, value in (("batch_size", batch_size), ("max_tokens_per_batch", max_tokens_per_batch)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        prompts = self.prompt_reader.read(prompts, prompt_as)
        obstacle = why_not_shareable(self.model)
        if share_prompts and obstacle:
            raise ValueError(f"This model cannot share prompts: {obstacle}. Leave `share_prompts` to its default.")
        share = False if obstacle else share_prompts
        limits = {"batch_size": batch_size, "max_tokens": max_tokens_per_batch, "pass_cost": pass_cost_on(self.device)}
        window_size = max(1, WINDOW // batch_size) * batch_size
        is_main = process_state().is_main_process
        bar = {"desc": "Scoring", "unit": "solution", "disable": not (show_progress and is_main)}

        def scores_of(indices: Sequence[int]) -> dict[int, list[float] | None]:
            scores = {}
            with tqdm(total=len(indices), **bar) as progress:
                for window in windows(prompts, indices, window_size):
                    encoded = self._encode(prompts, steps, window, none_if_too_long)
                    # Without steps, or too long: scored already.
                    scores.update((i, None if len(steps[i]) else []) for i in window if i not in encoded)
                    progress.update(len(window) - len(encoded))
                    for of_batch in self._score_window(encoded, prompts, limits, share):
                        scores.update(of_batch)
                        progress.update(len(of_batch))
            return scores

        indices = range(len(prompts))
        scores = _split_between_processes(scores_of, indices) if split_between_processes else scores_of(indices)
        num_too_long = sum(of_solution is None for of_solution in scores.values())
        if num_too_long and (is_main or not split_between_processes):
            are_longer = f"{num_too_long} of {len(prompts)} solutions are longer than the {self.max_length} tokens"
            logger.warning(f"{are_longer} that the model reads, and get no score.")
        return [scores[i] for i in indices]

    def score_text(
        self, prompts: Sequence[Prompt], completions: Sequence[str], split_how: str = "newline", **kwargs
    ) -> list[list[float] | None]:
        """Splits each completion into steps ([`split_steps`]) and scores them; further arguments go to [`score`]."""
        return self.score(prompts, [step_texts(text, split_how) for text in completions], **kwargs)

    def _encode(
        self, prompts: Sequence[Prompt], steps: Sequence[Sequence[str]], indices: Sequence[int], none_if_too_long: bool
    ) -> dict[int, EncodedSolution]:
        """By index, the solutions that have steps and fit into `max_length`."""
        indices = [i for i in indices if len(steps[i])]
        solutions = self.format.encode_batch(
            self.tokenizer,
            [prompts[i] for i in indices],
            [steps[i] for i in indices],
            name_solution=lambda k: f"Solution {indices[k]}: ",
        )
        encoded = {}
        for i, solution in zip(indices, solutions, strict=True):
            if self.max_length is None or len(solution.input_ids) <= self.max_length:
                encoded[i] = solution
            elif not none_if_too_long:
                raise ValueError(
                    f"Solution {i} has {len(solution.input_ids)} tokens in {len(steps[i])} steps, but the model reads "
                    f"at most {self.max_length}. Shorten it, or score its first steps only."
                )
        return encoded

    def _score_window(
        self, encoded: dict[int, EncodedSolution], prompts: Sequence[Prompt], limits: dict, share: bool | None
    ) -> Iterator[dict[int, list[float]]]:
        """Yields the scores of each batch, by index."""
        for indices, prefix_length in plan_sharing(encoded, prompts, share, **limits):
            indices = sorted(indices, key=lambda i: -len(encoded[i].input_ids))  # longest first: memory peaks at once
            prefix = encoded[indices[0]].input_ids[:prefix_length] if prefix_length else None
            with self._lock:
                cache = PrefixCache.of(prefix, self.model, self._label_token_ids) if prefix else None
            batches, _ = cut_batches([len(encoded[i].input_ids) - prefix_length for i in indices], **limits)
            for batch in batches:
                rows = [encoded[i] for i in indices[batch]]
                yield dict(zip(indices[batch], self._score_batch(rows, prefix_length, cache), strict=True))

    def _score_batch(
        self, rows: list[EncodedSolution], prefix_length: int = 0, cache: PrefixCache | None = None
    ) -> list[list[float]]:
        """Scores of solutions whose first `prefix_length` tokens are in the cache."""
        ids = [torch.tensor(row.input_ids[prefix_length:]) for row in rows]
        inputs = {"input_ids": pad_sequence(ids, batch_first=True, padding_value=self._pad_token_id).to(self.device)}
        is_step_end = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            is_step_end[i, [end - prefix_length for end in row.step_ends]] = True
        if cache is not None:
            inputs["past_key_values"] = cache
        elif not is_causal(self.model):
            # Elsewhere no mask is needed: padding is behind every token that counts. And sdpa is faster without.
            lengths = torch.tensor([len(of_row) for of_row in ids])
            inputs["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long().to(self.device)
        with self._lock:
            scores = step_log_odds(self.model, inputs, is_step_end.to(self.device), self._label_token_ids).sigmoid()
        return [of_row.tolist() for of_row in scores.cpu().split([len(row.step_ends) for row in rows])]


def _split_between_processes(scores_of, indices: Sequence[int]) -> dict[int, list[float] | None]:
    """Scores of all solutions, on every process; an error in one share is raised by all, so that none waits for it."""
    state = process_state()
    own, error = {}, None
    try:
        own = scores_of(indices[state.process_index :: state.num_processes])  # every n-th: shares of like lengths
    except Exception as raised:  # raised again below, by all
        error = raised
    shares = gather_object([(own, error and str(error), isinstance(error, ValueError))])
    if error is not None:
        raise error
    if errors := [(message, is_value) for _, message, is_value in shares if message is not None]:
        raise (ValueError if errors[0][1] else RuntimeError)(errors[0][0])
    return {i: of_solution for share, _, _ in shares for i, of_solution in share.items()}


def resolve_format(path: str | os.PathLike, format: PRMFormat | str | None = None, **hub_arguments: Any) -> PRMFormat:
    """
    The format in which a model will be read, without loading it: whether it can be is known before a long run.

    Args:
        path (`str` or `os.PathLike`), format ([`PRMFormat`] or `str`, *optional*):
            As for [`ProcessRewardModel.from_pretrained`].
        **hub_arguments:
            `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        `FileNotFoundError`, `ValueError`: as [`ProcessRewardModel.from_pretrained`], where the format is not known.
    """
    return _resolve_format(str(path), format, read_saved_format(path, **hub_arguments))


def _resolve_format(path: str, format: PRMFormat | str | None, saved: dict | None) -> PRMFormat:
    if format is not None:
        return load_format(format)
    if (found := format_of_checkpoint(path, saved)) is not None:
        return found
    held = sorted(p.name for p in Path(path).iterdir()) if Path(path).is_dir() else None
    raise ValueError(
        f"{path!r} is not a process reward model of trl-erprm: it has no {FORMAT_FILE}"
        + (f" (it holds {', '.join(held) or 'nothing'})" if held is not None else " that could be read")
        + ", and its name is not that of a published model. Give the directory that `ERPRMTrainer` saved or, for a "
        "model from elsewhere, its `format` (in the recipes and the hacking report `--prm_format`), one of "
        f"{', '.join(map(repr, FORMATS))}."
    )


def _precision(
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    model_init_kwargs: Mapping[str, Any],
    path: str,
    **hub_arguments,
) -> str | torch.dtype:
    """The precision in which the weights in `path` are loaded; `"auto"` as [`ProcessRewardModel.from_pretrained`]."""
    on_gpu = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    if dtype not in ("auto", None) or not on_gpu or not torch.cuda.is_bf16_supported(including_emulation=False):
        return "auto" if dtype is None else dtype
    trust_remote_code = model_init_kwargs.get("trust_remote_code", False)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **hub_arguments)
    is_quantized = "quantization_config" in model_init_kwargs or hasattr(config, "quantization_config")
    if is_quantized or config.dtype not in (torch.float32, None):
        return "auto"
    if process_state().is_main_process:
        logger.warning(
            f"The process reward model {path!r} is loaded in bfloat16, half of what it would take in float32. Give "
            "`dtype='float32'` for its full precision."
        )
    return torch.bfloat16


@contextmanager
def loaded_whole() -> Iterator[None]:
    """
    While active, `from_pretrained` gives every process the whole model. Beside a policy under ZeRO-3 it would split
    the weights, and no trainer puts a scorer's weights together again. (Under FSDP it does not split them.)
    """
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def _load_model(
    path: str, format: PRMFormat, hub_arguments: dict, dtype_of: Callable, **model_init_kwargs
) -> nn.Module:
    """The model with its trained head; of an adapter, the base model with the adapter on top."""
    if find_adapter_config_file(path, **hub_arguments) is None:
        dtype = dtype_of(path, **hub_arguments)
        return load_prm(path, format, head_must_be_trained=True, dtype=dtype, **model_init_kwargs)
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(path, **hub_arguments)
    heads = ("score", "classifier") if format.head == "token_classification" else ("lm_head",)
    weights = load_peft_weights(path, device="cpu", **hub_arguments)
    brings_head = any(f".{head}." in name and ".lora_" not in name for name in weights for head in heads)
    model_init_kwargs.pop("revision", None)  # it was the adapter's
    if config.revision is not None:
        model_init_kwargs["revision"] = config.revision
    base_path = config.base_model_name_or_path
    of_base = {**hub_arguments, "revision": config.revision}
    try:
        dtype = dtype_of(base_path, **of_base)
        base = load_prm(base_path, format, head_must_be_trained=not brings_head, dtype=dtype, **model_init_kwargs)
    except ValueError as error:
        if brings_head:
            raise
        raise ValueError(
            f"The adapter {path!r} brings no trained head (`{heads[0]}`), and its base model has none either: {error} "
            "An adapter for a token-classification format is trained with `modules_to_save=['score']`."
        ) from error
    return PeftModel.from_pretrained(base, path, **hub_arguments)
