"""[`RFTTrainer`]: rejection-sampling fine-tuning (RAFT, arXiv 2304.06767; with process rewards, arXiv 2412.11006).

Each iteration samples K completions a prompt from the *current* policy, scores them, keeps some of them by a rule (by
default the best of each prompt), and fine-tunes on what was kept. The fine-tuning is the `train` of
[`~trl.SFTTrainer`], called once an iteration. `tests/test_trl_seams.py` holds what is overridden against the installed
TRL.

What is beside the loop stands in files of its own: the rules (`selection.py`), where completions come from
(`rft_generation.py`), their scores (`rft_scoring.py`), what lies on disk (`rft_run.py`), what is measured
(`rft_evaluation.py`), and weights that are split over processes (`rft_weights.py`).

A run that was killed at any moment is started again with the same command and goes on at the phase it was in: what was
sampled is read back, not sampled again, and the numbers are those of an uninterrupted run.

Departures from the paper: truncated and malformed completions are never selected (see [`ProcessReward`]); optimizer
and learning-rate schedule start afresh in each iteration, which the paper's description leaves open (`carry_optimizer`
changes it).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import SFTTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id

from ..arguments import load_tokenizer, result_arguments
from ..manifest import content_hash, last_checkpoint, open_run, write_atomically
from ..rollout.engine import Prefix, SamplingOptions
from ..rollout.transformers_engine import TransformersEngine
from ..trained_weights import warn_of_lost_updates
from .rft_config import RFTConfig
from .rft_evaluation import best_iteration, check_prompts, drift_metrics, held_out_metrics, token_sums
from .rft_generation import VLLMPolicyEngine, plan_chunks, sample_record
from .rft_run import Records, remove_directory, training_rows, write_selection
from .rft_scoring import RewardFunction, Scorers
from .rft_training import FilledRandomSampler, LossMeter, with_fillers
from .rft_weights import POLICY_ADAPTER, check_can_be_loaded, fingerprint, load_weights, split_weights, whole_weights
from .trained_weights import start_policy

logger = get_logger(__name__)

_NOT_IN_RESULTS = ("keep_models", "keep_samples")  # besides those of any trainer


class RFTTrainer(SFTTrainer):
    """
    Trainer for rejection-sampling fine-tuning with any reward function, a process reward model in particular.

    Example:

    ```python
    from trl_erprm import ProcessReward, RFTConfig, RFTTrainer

    trainer = RFTTrainer(
        model="outputs/policy",
        reward_funcs=ProcessReward("outputs/prm"),
        args=RFTConfig("outputs/rft"),
        train_dataset=prompts,  # column `prompt`
        eval_dataset=held_out,  # columns `prompt` and `answer`
    )
    history = trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy. Of a directory that holds an adapter, the adapter is trained on, without a `peft_config`.
        reward_funcs (`Callable` or `list[Callable]`):
            Reward functions in TRL's protocol. Of several, the rewards are added, each with its weight
            (`reward_weights`); a completion to which one of them gives `None` is not selected.
        args ([`RFTConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Prompts to sample from: the column `prompt` (text or messages), and `answer` for a selection that compares
            answers. All columns are handed to the reward functions, except for `completion` and `completions`, names
            that the protocol has for what was sampled.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Held-out prompts with their `answer`, evaluated before the first and after every iteration. None of its
            prompts may be in `train_dataset`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy. Loaded from the model's path where it is not given.
        callbacks, quantization_config, peft_config:
            As in [`~trl.SFTTrainer`].

    Logged metrics, once an iteration (accuracies in [0, 1], higher is better); the step that they and the metrics of
    the fine-tuning are logged at counts the optimizer steps of all iterations:

    - `rft/greedy`, `rft/sampled` with `rft/sampled_low` and `rft/sampled_high` (95 % interval over problems): accuracy
      on the held-out prompts, greedy and of one sample.
    - `rft/best_of_n`, `rft/majority`, `rft/oracle`: of `num_eval_samples` samples, the best by reward, the most
      frequent answer, and any right one.
    - `rft/unparsed_share`: held-out samples from which no answer could be read (lower is better).
    - `rft/length`: mean tokens of a held-out sample. `rft/distinct_share`: different texts among the samples of a
      held-out prompt, as a share of them (0 to 1; a fall to 1 / `num_eval_samples` is a policy that knows one answer).
    - `rft/kl_to_start`, `rft/entropy`: nats a token, of the policy's own samples: how far it has come from the policy
      at the start (0 there), and how much it leaves open (a fall to 0 is a collapse).
    - `rft/reward`: mean reward of the completions selected for fine-tuning.
    - `rft/num_selected`, `rft/num_prompts_selected`, `rft/num_without_candidate`: completions fine-tuned on, prompts
      that have one, and prompts of which no completion could be scored.
    - `rft/reasons/...`: completions by what became of them (`policy/selection.py`).
    - `rft/training_loss`, `rft/num_steps`: mean loss and optimizer steps of the iteration's fine-tuning.
    """

    _tag_names = ["trl", "trl-erprm", "rejection-sampling"]
    _name = "RFT"
    _paper = {
        "title": "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
        "id": "2304.06767",
    }

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardFunction | list[RewardFunction],
        args: RFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = RFTConfig(f"{(name or 'model').split('/')[-1]}-RFT")
        self._rule = args.selection_rule
        needs_answers = f"`selection={args.selection!r}`" if self._rule.needs_answers else None
        self.scorers = Scorers(
            reward_funcs, args.reward_weights, verify_how=args.answer_how if needs_answers else None
        )
        check_prompts(train_dataset, eval_dataset, needs_answers, hash_of=content_hash)
        if args.early_stopping_patience is not None and eval_dataset is None:
            raise ValueError(
                "`early_stopping_patience` looks at the accuracy on held-out prompts, got no `eval_dataset`. Give one."
            )
        self.prompt_dataset, self.held_out_dataset = train_dataset, eval_dataset
        model, processing_class = start_policy(model, processing_class, args, peft_config, quantization_config)
        check_can_be_loaded(model)
        if processing_class is None and isinstance(model, str):
            revision = (args.model_init_kwargs or {}).get("revision")
            processing_class = load_tokenizer(model, revision=revision, trust_remote_code=args.trust_remote_code)
        self._loss_meter = LossMeter()
        self._step_offset = 0  # optimizer steps of the iterations before
        set_seed(args.seed)  # an adapter's first weights are drawn in the parent
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), self._loss_meter],
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        if args.carry_optimizer and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                "`carry_optimizer` works with one process and with DDP; DeepSpeed and FSDP split the optimizer's "
                "state. Leave it off there."
            )
        warn_of_lost_updates(self.model, self.accelerator)
        self.completion_only_loss = True  # selected rows are prompt and completion
        self.scorers.tokenizer = self.processing_class
        # The iteration whose weights the model holds; 0 is the start, None stands for half-trained weights.
        self._weights_of = 0
        self._iteration, self._forward = None, None  # of the fine-tuning under way, and the model's forward before it
        self._start_fingerprint = fingerprint(self.model, self.accelerator)
        self._vllm_engine: VLLMPolicyEngine | None = None

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if not {"completion", "input_ids"} & set(get_dataset_column_names(dataset)):
            return dataset  # prompts: there is nothing to tokenize before completions are sampled
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    # The loop

    def train(self) -> list[dict]:
        """
        Runs, or continues, all iterations.

        Returns:
            `list[dict]`: the metrics of the start (`iteration` 0) and of each iteration.

        Raises:
            `ValueError`: where `args.output_dir` holds another run, or no completion of any prompt can be selected.
        """
        root = Path(self.args.output_dir)
        identity = self._identity()
        self.model = self.model_wrapped = split_weights(self.model, self.accelerator)
        if self.accelerator.is_main_process:
            open_run(root, identity, kind="rft")
        self.accelerator.wait_for_everyone()
        history = []
        for iteration in range(self.args.num_iterations + 1):
            directory = root / f"iteration-{iteration}"
            finished = directory / "metrics.json"
            if self.accelerator.is_main_process:
                open_run(directory, {"run": content_hash(identity), "iteration": iteration}, kind="rft iteration")
            self.accelerator.wait_for_everyone()
            if not finished.exists():
                if iteration == 0 and self._needs_start():
                    self._save_start(directory)
                record = self._improve(iteration, directory) if iteration else {}
                record = {"iteration": iteration, **record, **self._evaluate_policy(iteration, directory)}
                self.state.global_step = record.get("num_steps", 0)  # also where an earlier process has trained
                self.log({f"rft/{name}": value for name, value in _flat(record).items()})
                if self.accelerator.is_main_process:
                    write_atomically(finished, json.dumps(record, indent=2) + "\n")
                self.accelerator.wait_for_everyone()
            history.append(json.loads(finished.read_text()))
            self._step_offset += history[-1].get("num_steps", 0)
            self._tidy(history)
            if self._should_stop(history):
                break
        self._load_weights(self._final_iteration(history))
        return history

    def _improve(self, iteration: int, directory: Path) -> dict:
        """One iteration: sample, score, select, fine-tune, save."""
        selected, fine_tuned = directory / "selection.json", directory / "fine_tuning.json"
        if not fine_tuned.exists():
            self._load_weights(iteration - 1)
            if not selected.exists():
                indices = self._prompts_of(iteration)
                # One seed an iteration, so that a prompt met again is sampled anew.
                options = self._sampling_options(seed=self.args.seed + 1_000_003 * iteration)
                self._sample(self.prompt_dataset, indices, directory, "samples", "scores", options, iteration)
                if self.accelerator.is_main_process:
                    names, seed = self.scorers.names, options.seed
                    summary = write_selection(directory, self.prompt_dataset, indices, names, self._rule, seed)
                    if summary["num_without_candidate"]:
                        logger.warning(
                            f"{summary['num_without_candidate']} of {len(indices)} prompts have no completion with a "
                            "reward."
                        )
                self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:  # their content is in samples.parquet
                Records(directory, "samples").remove()
                Records(directory, "scores").remove()
            self._weights_of, before = None, self._weights_of  # an error on the way leaves them half trained
            record = self._fine_tune(iteration, directory, before)
            self.save_model(str(directory / "model"))
            if self.accelerator.is_main_process:
                write_atomically(fine_tuned, json.dumps(record) + "\n")
                remove_directory(directory / "checkpoints")
            self.accelerator.wait_for_everyone()
            self._release()
            self._weights_of = iteration
        return {**json.loads(selected.read_text()), **json.loads(fine_tuned.read_text())}

    def _prompts_of(self, iteration: int) -> list[int]:
        """Which prompts an iteration samples from."""
        size, per_iteration = len(self.prompt_dataset), self.args.prompts_per_iteration
        if per_iteration is None or per_iteration >= size:
            return list(range(size))
        if self.args.prompt_order == "resampled":
            return np.random.default_rng([self.args.seed, iteration]).permutation(size)[:per_iteration].tolist()
        order = np.random.default_rng(self.args.seed).permutation(size)
        start = (iteration - 1) * per_iteration
        return [int(order[i % size]) for i in range(start, start + per_iteration)]

    def _needs_start(self) -> bool:
        """Whether the policy at the start is needed again."""
        args, is_evaluated = self.args, self.held_out_dataset is not None
        return args.restart_from_base or (is_evaluated and (args.measure_drift or bool(args.early_stopping_patience)))

    def _save_start(self, directory: Path) -> None:
        if not (directory / "start.json").exists():
            self.save_model(str(directory / "model"))
            if self.accelerator.is_main_process:
                write_atomically(directory / "start.json", "{}\n")
            self.accelerator.wait_for_everyone()

    def _should_stop(self, history: list[dict]) -> bool:
        patience = self.args.early_stopping_patience
        return patience is not None and len(history) - 1 - best_iteration(history) >= patience

    def _final_iteration(self, history: list[dict]) -> int:
        """The one whose policy the trainer holds in the end."""
        return best_iteration(history) if self.args.early_stopping_patience is not None else len(history) - 1

    def _tidy(self, history: list[dict]) -> None:
        """Removes what the options do not keep of the iterations that are complete."""
        if not self.accelerator.is_main_process:
            return
        last = len(history) - 1
        for iteration in range(len(history)):
            directory = Path(self.args.output_dir) / f"iteration-{iteration}"
            is_needed = iteration == 0 or iteration == self._final_iteration(history)
            if self.args.keep_models is not None and iteration <= last - self.args.keep_models and not is_needed:
                remove_directory(directory / "model")
                (directory / "optimizer.pt").unlink(missing_ok=True)
            if not self.args.keep_samples:
                (directory / "samples.parquet").unlink(missing_ok=True)
                for name in ("eval_greedy", "eval_sampled", "eval_scores"):
                    Records(directory, name).remove()

    # Sampling and scoring

    def _sampling_options(self, seed: int, temperature: float | None = None) -> SamplingOptions:
        return SamplingOptions(
            max_new_tokens=self.args.max_completion_length,
            temperature=self.args.temperature if temperature is None else temperature,
            top_p=self.args.top_p,
            top_k=self.args.top_k,
            seed=seed,
        )

    def _sample(
        self,
        prompts: Dataset,
        indices: list[int],
        directory: Path,
        name: str,
        scores_name: str | None,
        options: SamplingOptions,
        iteration: int,
        num_samples: int | None = None,
    ) -> None:
        """
        Samples and scores completions of prompts, each process its share, into the records of these names. What they
        already hold is not sampled again. Completions are stored before they are scored, so that a reward function
        that fails costs no sampling either.
        """
        num_samples = num_samples or self.args.num_samples
        accelerator, records = self.accelerator, Records(directory, name)
        scores = Records(directory, scores_name) if scores_name else None
        accelerator.wait_for_everyone()
        sampled = records.positions(len(prompts))
        done = sampled if scores is None else np.minimum(sampled, scores.positions(len(prompts)))
        todo = [i for i in indices if done[i] < 0]
        # What earlier runs have left is found by position, whatever is appended now.
        known = {i: record for i, record in zip(todo, sampled[todo], strict=True) if record >= 0}
        # A few generation batches at a time: little is lost in a crash, and the engine can still sort by length.
        chunk_size = max(1, 4 * self.args.generation_batch_size // num_samples)
        chunks = plan_chunks(
            todo, chunk_size, accelerator.process_index, accelerator.num_processes, self.args.use_vllm
        )
        store = records.store(accelerator.process_index)
        scores_store = scores.store(accelerator.process_index) if scores else None
        accelerator.wait_for_everyone()  # all have read before one writes
        with (
            # TRL's class for vLLM gathers the weights itself, one at a time.
            nullcontext() if self.args.use_vllm else self._policy() as policy,
            tqdm(
                total=sum(number for _, number in chunks),
                desc=f"Iteration {iteration}: {name.replace('_', ' ')}",
                unit="prompt",
                disable=self.args.disable_tqdm or not accelerator.is_main_process or not chunks,
                leave=False,
            ) as progress,
        ):
            generate = self._generator(policy)
            for chunk, number in chunks:
                # Where all processes sample together, none leaves out what it has.
                new = [i for i in chunk if i not in known or self.args.use_vllm]
                completions = generate([prompts[i]["prompt"] for i in new], num_samples, options) if new else []
                made = {i: sample_record(i, group) for i, group in zip(new, completions, strict=True)}
                own = chunk[:number]
                store.append([made[i] for i in own if i not in known])
                if scores_store is not None and own:
                    of_chunk = [next(records.read([known[i]])) if i in known else made[i] for i in own]
                    scores_store.append(self.scorers.score([prompts[i] for i in own], of_chunk, self.state))
                progress.update(number)
        accelerator.wait_for_everyone()

    @contextmanager
    def _policy(self) -> Iterator[torch.nn.Module]:
        """The policy whole in each process, in the precision it is trained in."""
        with whole_weights(self.model_wrapped, self.accelerator) as policy, self.accelerator.autocast():
            yield policy

    def _generator(self, policy: torch.nn.Module | None):
        """A function `(prompts, num_samples, options) -> completions` of the current weights."""
        if not self.args.use_vllm:
            engine = TransformersEngine(policy, self.processing_class, batch_size=self.args.generation_batch_size)
            return lambda prompts, *request: engine.generate([Prefix(prompt) for prompt in prompts], *request)
        if self._vllm_engine is None:
            self._vllm_engine = VLLMPolicyEngine(self.model, self.accelerator, self.processing_class, self.args)
        self._vllm_engine.use_weights(self._weights_of)
        return self._vllm_engine.generate

    # Fine-tuning

    def _fine_tune(self, iteration: int, directory: Path, weights_of: int) -> dict:
        root = Path(self.args.output_dir)
        if self.args.restart_from_base and weights_of != 0:
            load_weights(self.model, root / "iteration-0" / "model", self.accelerator)
        checkpoints = directory / "checkpoints"
        # A seed an iteration: an interrupted fine-tuning, started again, sees the batches it saw before.
        set_seed(self.args.seed + iteration)
        first, cache = 1 if self.args.accumulate_data else iteration, directory / "cache"
        with self.accelerator.main_process_first():
            rows = training_rows([root / f"iteration-{i}" for i in range(first, iteration + 1)], cache)
        self.train_dataset = self._prepare_dataset(
            rows, self.processing_class, self.args, self.args.packing, None, f"iteration {iteration}"
        )
        self._num_rows = len(self.train_dataset)
        if self.accelerator.num_processes > 1 and self.args.train_sampling_strategy == "random":
            num_fillers = -self._num_rows % (self._train_batch_size * self.accelerator.num_processes)
            with self.accelerator.main_process_first():
                self.train_dataset = with_fillers(self.train_dataset, num_fillers)
        if getattr(self.model, "is_loaded_in_4bit", False) and self.accelerator.device.type == "cpu":
            self.model.state_dict()  # bitsandbytes packs weights for inference on a CPU, and unpacks them here alone
        # Fresh optimizer and schedule, and the model wrapped anew for it.
        self.optimizer = self.lr_scheduler = None
        self.model_wrapped = self.model
        self._loss_meter.reset()
        resume_from = last_checkpoint(checkpoints)
        if resume_from is not None:
            self._loss_meter.read(resume_from)
        logged = self.state.log_history
        with self._iteration_of_training(iteration, checkpoints):
            super().train(resume_from_checkpoint=resume_from)
            self.state.log_history = logged + self.state.log_history  # a fine-tuning begins with an empty one
            if self.args.carry_optimizer and self.accelerator.is_main_process:
                torch.save(self.optimizer.state_dict(), directory / "optimizer.pt")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            remove_directory(cache)
        num_steps = self.state.global_step
        return {"training_loss": float(self._loss_meter.total) / max(num_steps, 1), "num_steps": num_steps}

    @contextmanager
    def _iteration_of_training(self, iteration: int, checkpoints: Path) -> Iterator[None]:
        """Keeps the checkpoints of one iteration from overwriting those of another, and the forward as it was."""
        output_dir, forward = self.args.output_dir, self.model.__dict__.get("forward")
        self.args.output_dir, self._iteration = str(checkpoints), iteration
        try:
            yield
        finally:
            self.args.output_dir, self._iteration = output_dir, None
            self._forward = forward

    def _release(self) -> None:
        """
        Gives back what only training needs, the optimizer's state above all, before the policy samples; and takes off
        what accelerate has put around the forward pass, so that a policy samples as one that was read from disk does.
        """
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()
        self.model_wrapped = self.model
        self.model.__dict__.pop("_original_forward", None)
        if self._forward is None:
            self.model.__dict__.pop("forward", None)
        else:
            self.model.__dict__["forward"] = self._forward

    def _get_train_sampler(self, train_dataset=None):
        if len(self.train_dataset) == self._num_rows:
            return super()._get_train_sampler(train_dataset)
        return FilledRandomSampler(self._num_rows, len(self.train_dataset) - self._num_rows, self.args.data_seed)

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.args.carry_optimizer and self._iteration > 1:
            earlier = Path(self.args.output_dir).parents[1] / f"iteration-{self._iteration - 1}" / "optimizer.pt"
            optimizer.load_state_dict(torch.load(earlier, map_location="cpu", weights_only=True))
        return optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if not self.args.carry_optimizer:
            return super().create_scheduler(num_training_steps, optimizer)
        # As if all iterations had as many steps as this one, of which those before are done.
        scheduler = super().create_scheduler(num_training_steps * self.args.num_iterations, optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps of the schedule before one of the optimizer
            for _ in range((self._iteration - 1) * num_training_steps):
                scheduler.step()
        return scheduler

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self._loss_meter.add(self.accelerator.reduce(loss.detach(), "mean"))
        return loss

    def log(self, logs, start_time=None):
        """Logs at the step that counts the optimizer steps of all iterations, as trackers want it to rise."""
        self.state.global_step += self._step_offset
        try:
            super().log(logs, start_time)
        finally:
            self.state.global_step -= self._step_offset

    # Weights

    def save_model(self, output_dir=None, _internal_call=False):
        """Saves the policy: whole, or its adapter alone where it is a PEFT model."""
        output_dir = output_dir or self.args.output_dir
        if self.is_deepspeed_enabled:  # the parent needs the engine, which is there only while it trains
            with whole_weights(self.model_wrapped, self.accelerator) as policy:
                if self.args.should_save:
                    self._save(output_dir, state_dict=policy.state_dict())
            self.accelerator.wait_for_everyone()
        else:
            super().save_model(output_dir, _internal_call=True)
        if self.args.should_save and is_peft_model(self.model):
            for name in self.model.peft_config:  # a process reward model's adapter is no part of the policy
                if name != POLICY_ADAPTER:
                    remove_directory(Path(output_dir) / name)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_weights(self, iteration: int) -> None:
        """Puts the weights after an iteration into the model, unless it holds them already."""
        if self._weights_of != iteration:
            if iteration == 0 and not (Path(self.args.output_dir) / "iteration-0" / "start.json").exists():
                raise RuntimeError(
                    "The weights at the start are no longer in memory: a fine-tuning of this trainer broke off. "
                    "Build the trainer anew and call `train` again: it continues where this one stopped."
                )
            self._read_weights(iteration)

    def _read_weights(self, iteration: int) -> None:
        load_weights(self.model, Path(self.args.output_dir) / f"iteration-{iteration}" / "model", self.accelerator)
        self._weights_of = iteration

    # Evaluation

    def _evaluate_policy(self, iteration: int, directory: Path) -> dict:
        """Accuracy on the held-out prompts, and drift; nothing where there are none."""
        dataset = self.held_out_dataset
        if dataset is None:
            return {}
        self._load_weights(iteration)
        everything = list(range(len(dataset)))
        greedy = self._sampling_options(0, temperature=0.0)
        self._sample(dataset, everything, directory, "eval_greedy", None, greedy, iteration, num_samples=1)
        # The same seed in every iteration: the noise of sampling is shared, differences are the policy's.
        options, n = self._sampling_options(self.args.seed), self.args.num_eval_samples
        self._sample(dataset, everything, directory, "eval_sampled", "eval_scores", options, iteration, num_samples=n)
        greedy, sampled, scores = (
            records.read(records.positions(len(dataset)))
            for records in (Records(directory, name) for name in ("eval_greedy", "eval_sampled", "eval_scores"))
        )
        metrics = {}
        if self.accelerator.is_main_process:
            metrics = held_out_metrics(greedy, sampled, scores, dataset["answer"], self.args.answer_how)
        if self.args.measure_drift:
            metrics |= self._drift(iteration, directory)
        return metrics

    def _drift(self, iteration: int, directory: Path) -> dict:
        """Of the first sample of each held-out prompt, each process its share."""
        sampled = Records(directory, "eval_sampled")
        share = range(self.accelerator.process_index, len(self.held_out_dataset), self.accelerator.num_processes)
        records = list(sampled.read(sampled.positions(len(self.held_out_dataset))[list(share)]))
        prompts = [self.held_out_dataset[i]["prompt"] for i in share]

        def sums() -> np.ndarray:
            texts, cuts = [r["completions"][0] for r in records], [r["truncated"][0] for r in records]
            batch_size = self.args.per_device_eval_batch_size
            with self._policy() as policy:
                own = token_sums(policy, self.processing_class, prompts, texts, cuts, batch_size)
            return np.sum(gather_object([own]), axis=0)

        of_policy = of_start = sums()
        if iteration > 0:
            self._read_weights(0)
            of_start = sums()
            self._read_weights(iteration)
        return drift_metrics(of_policy, of_start)

    # The run

    def _identity(self) -> dict:
        """What makes two runs the same: everything that changes their numbers."""
        held_out = None
        if self.held_out_dataset is not None:
            held_out = content_hash(list(self.held_out_dataset["prompt"]), list(self.held_out_dataset["answer"]))
        arguments = result_arguments(self.args)
        return {
            "model": self._start_fingerprint,
            "reward_funcs": self.scorers.identity,
            "prompts": content_hash(list(self.prompt_dataset["prompt"])),
            "held_out_prompts": held_out,
            "arguments": {name: value for name, value in arguments.items() if name not in _NOT_IN_RESULTS},
        }


def _flat(record: dict) -> dict:
    """Nested counts under names of their own, as trackers take them."""
    flat = {name: value for name, value in record.items() if not isinstance(value, dict)}
    nested = ((name, value) for name, value in record.items() if isinstance(value, dict))
    return flat | {f"{name}/{key}": value for name, values in nested for key, value in values.items()}
