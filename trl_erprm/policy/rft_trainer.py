"""[`RFTTrainer`]: rejection-sampling fine-tuning (RAFT, arXiv 2304.06767; with process rewards, arXiv 2412.11006).

Each iteration samples K completions a prompt from the *current* policy, scores them, keeps the best of each prompt,
and fine-tunes on what was kept. The fine-tuning is [`~trl.SFTTrainer`]'s own `train`, called once an iteration; of its
methods only `_prepare_dataset` is overridden (prompts are not tokenized when the trainer is built, because there is
nothing to learn from yet), and `train`. `tests/test_trl_seams.py` holds them against the installed TRL.

What an iteration writes, under `output_dir/iteration-<k>/` (0 is the policy at the start, evaluated only):

    samples-<process>.jsonl       completions, one line a prompt
    samples_rewards-<process>     their rewards
    selected.jsonl                what was fine-tuned on
    model/                        the policy after the iteration
    fine_tuning.json              written when the policy is saved
    eval_greedy-*, eval_sampled-* completions on held-out prompts, and eval_sampled_rewards-*
    metrics.json                  written last: the iteration is complete

A run that was killed at any moment is started again with the same command and goes on at the phase it was in: what was
sampled is read back, not sampled again, and the numbers are those of an uninterrupted run.

Departures from the paper: truncated and malformed completions are never selected (see [`ProcessReward`]); optimizer
and learning-rate schedule start afresh in each iteration, which the paper's description leaves open.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import SFTTrainer
from trl.data_utils import get_dataset_column_names
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import get_config_model_id

from ..arguments import load_tokenizer, result_arguments
from ..evaluation.best_of_n import best_of_n_accuracy, majority_accuracy, pass_at_n, sampled_accuracy
from ..manifest import JsonlStore, content_hash, open_run, weights_fingerprint, write_atomically
from ..rollout.engine import Completion, Prefix, SamplingOptions
from ..rollout.transformers_engine import TransformersEngine
from ..verify import extract_answer, verify_answer
from .rft_config import RFTConfig

logger = get_logger(__name__)

RewardFunction = Callable[..., list[float | None]]
"""TRL's reward-function protocol: `(prompts, completions, **columns) -> list[float | None]`."""


# What TRL's protocol hands to reward functions itself; a column of such a name (the steps of a worked solution, say)
# is not handed on.
_RESERVED_COLUMNS = {"prompt", "prompts", "completion", "completions", "completion_ids"}


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
            The policy.
        reward_funcs (`Callable` or `list[Callable]`):
            Reward functions in TRL's protocol. Of several, the rewards are added; a completion to which one of them
            gives `None` is not selected.
        args ([`RFTConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Prompts to sample from: the column `prompt` (text or messages); further columns are handed to the reward
            functions, except for `completion` and `completions`, names that the protocol has for what was sampled.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Held-out prompts with their `answer`, evaluated before the first and after every iteration. None of its
            prompts may be in `train_dataset`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy. Loaded from the model's path where it is not given.
        callbacks, quantization_config, peft_config:
            As in [`~trl.SFTTrainer`].

    Logged metrics, once an iteration (accuracies in [0, 1], higher is better):

    - `rft/greedy`, `rft/sampled` with `rft/sampled_low` and `rft/sampled_high` (95 % interval over problems): accuracy
      on the held-out prompts, greedy and of one sample.
    - `rft/best_of_n`, `rft/majority`, `rft/oracle`: of `num_eval_samples` samples, the best by reward, the most
      frequent answer, and any right one.
    - `rft/unparsed_share`: held-out samples from which no answer could be read (lower is better).
    - `rft/reward`: mean reward of the completions selected for fine-tuning.
    - `rft/num_selected`, `rft/num_without_candidate`: prompts fine-tuned on, and prompts of which no completion could
      be scored.
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
        self.reward_funcs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        if not self.reward_funcs:
            raise ValueError("`reward_funcs` is empty: there is nothing to select completions by. Give at least one.")
        _check_prompts(train_dataset, eval_dataset)
        self.prompt_dataset, self.held_out_dataset = train_dataset, eval_dataset
        if processing_class is None and isinstance(model, str):
            processing_class = load_tokenizer(
                model,
                revision=(args.model_init_kwargs or {}).get("revision"),
                trust_remote_code=args.trust_remote_code,
            )
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self.completion_only_loss = True  # selected rows are prompt and completion
        # The iteration whose weights the model holds; 0 is the start, None stands for half-trained weights.
        self._weights_of = 0
        self._start_fingerprint = weights_fingerprint(self.model)

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
        with self.accelerator.main_process_first():
            if self.accelerator.is_main_process:
                open_run(root, self._identity(), kind="rft")
        history = []
        for iteration in range(self.args.num_iterations + 1):
            directory = root / f"iteration-{iteration}"
            finished = directory / "metrics.json"
            if not finished.exists():
                directory.mkdir(parents=True, exist_ok=True)
                record = self._improve(iteration, directory) if iteration else {}
                record = {"iteration": iteration, **record, **self._evaluate_policy(iteration, directory)}
                self.log({f"rft/{name}": value for name, value in record.items()})
                if self.accelerator.is_main_process:
                    write_atomically(finished, json.dumps(record, indent=2) + "\n")
                self.accelerator.wait_for_everyone()
            history.append(json.loads(finished.read_text()))
        self._load_weights(self.args.num_iterations)
        return history

    def _improve(self, iteration: int, directory: Path) -> dict:
        """One iteration: sample, score, select, fine-tune, save."""
        fine_tuned = directory / "fine_tuning.json"
        if not fine_tuned.exists():
            self._load_weights(iteration - 1)
            prompts = self._prompts_of(iteration)
            # One seed an iteration, so that a prompt met again is sampled anew.
            options = self._sampling_options(seed=self.args.seed + 1_000_003 * iteration)
            records = self._sample(prompts, directory, "samples", self.args.num_samples, options, iteration)
            selected, num_without = self._select(prompts, records)
            if self.accelerator.is_main_process:
                write_atomically(directory / "selected.jsonl", "".join(json.dumps(r) + "\n" for r in selected))
            self._weights_of = None  # until the policy is saved: an error on the way leaves them half trained
            training_loss = self._fine_tune(iteration, directory, selected)
            self.save_model(str(directory / "model"))
            record = {
                "reward": float(np.mean([r["reward"] for r in selected])),
                "num_selected": len(selected),
                "num_without_candidate": num_without,
                "training_loss": training_loss,
            }
            if self.accelerator.is_main_process:
                write_atomically(fine_tuned, json.dumps(record) + "\n")
            self.accelerator.wait_for_everyone()
            self._weights_of = iteration
        return json.loads(fine_tuned.read_text())

    def _prompts_of(self, iteration: int) -> Dataset:
        size, per_iteration = len(self.prompt_dataset), self.args.prompts_per_iteration
        if per_iteration is None or per_iteration >= size:
            return self.prompt_dataset
        order = np.random.default_rng(self.args.seed).permutation(size)
        start = (iteration - 1) * per_iteration
        return self.prompt_dataset.select([int(order[i % size]) for i in range(start, start + per_iteration)])

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
        directory: Path,
        name: str,
        num_samples: int,
        options: SamplingOptions,
        iteration: int,
        with_rewards: bool = True,
    ) -> list[dict]:
        """
        Samples and scores completions of every prompt, each process its share, and returns the records of all of them
        in the order of the prompts. What the files in `directory` already hold is not sampled again. Completions are
        stored before they are scored, so that a reward function that fails costs no sampling either.
        """
        rewards_name = f"{name}_rewards"
        self.accelerator.wait_for_everyone()
        sampled = {record["index"]: record for record in _read_records(directory, name)}
        done = set(sampled)
        if with_rewards:
            done &= {record["index"] for record in _read_records(directory, rewards_name)}
        todo = [i for i in range(len(prompts)) if i not in done]
        # A few generation batches at a time: little is lost in a crash, and the engine can still sort by length.
        chunk_size = max(1, 4 * self.args.generation_batch_size // num_samples)
        chunks = [todo[i : i + chunk_size] for i in range(0, len(todo), chunk_size)]
        chunks = chunks[self.accelerator.process_index :: self.accelerator.num_processes]
        store = JsonlStore(directory / f"{name}-{self.accelerator.process_index}.jsonl")
        rewards_store = JsonlStore(directory / f"{rewards_name}-{self.accelerator.process_index}.jsonl")
        self.accelerator.wait_for_everyone()  # all have read before one writes
        with (
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as policy,
            tqdm(
                total=sum(map(len, chunks)),
                desc=f"Iteration {iteration}: {name.replace('_', ' ')}",
                unit="prompt",
                disable=self.args.disable_tqdm or not self.accelerator.is_main_process or not chunks,
                leave=False,
            ) as progress,
        ):
            engine = TransformersEngine(policy, self.processing_class, batch_size=self.args.generation_batch_size)
            for chunk in chunks:
                new = [i for i in chunk if i not in sampled]
                completions = engine.generate([Prefix(prompts[i]["prompt"]) for i in new], num_samples, options)
                records = [_sample_record(i, group) for i, group in zip(new, completions, strict=True)]
                store.append(records)
                if with_rewards:
                    at = {record["index"]: record for record in records} | sampled
                    rewards_store.append(self._rewards([at[i] for i in chunk], [prompts[i] for i in chunk]))
                progress.update(len(chunk))
        self.accelerator.wait_for_everyone()
        rewards = {record["index"]: record for record in _read_records(directory, rewards_name)}
        records = [{**record, **rewards.get(record["index"], {})} for record in _read_records(directory, name)]
        return sorted(records, key=lambda record: record["index"])

    def _rewards(self, records: list[dict], rows: list[dict]) -> Iterator[dict]:
        """The rewards of the completions in `records`, a record a prompt."""
        flat = [(row, text) for row, record in zip(rows, records, strict=True) for text in record["completions"]]
        rewards = np.zeros(len(flat))
        columns = {name: [row[name] for row, _ in flat] for name in rows[0] if name not in _RESERVED_COLUMNS}
        for reward_func in self.reward_funcs:
            values = reward_func(
                prompts=[row["prompt"] for row, _ in flat],
                completions=[_as_completion(row["prompt"], text) for row, text in flat],
                **columns,
            )
            if len(values) != len(flat):
                raise ValueError(
                    f"The reward function {_name_of(reward_func)!r} returned {len(values)} rewards for {len(flat)} "
                    "completions. It must return one for each, in their order."
                )
            rewards += [_checked_reward(value, reward_func) for value in values]
        for record in records:
            own, rewards = np.split(rewards, [len(record["completions"])])
            # A completion that was cut off never competes: where its last step broke off, nothing was judged.
            yield {
                "index": record["index"],
                "rewards": [
                    None if truncated or math.isnan(reward) else float(reward)
                    for reward, truncated in zip(own, record["truncated"], strict=True)
                ],
            }

    @staticmethod
    def _select(prompts: Dataset, records: Iterable[dict]) -> tuple[list[dict], int]:
        """The best completion of each prompt by reward, the first of equals; and how many prompts have none."""
        selected, num_without, num_completions = [], 0, 0
        for record in records:
            num_completions += len(record["rewards"])
            candidates = [i for i, reward in enumerate(record["rewards"]) if reward is not None]
            if not candidates:
                num_without += 1
                continue
            best = max(candidates, key=lambda i: record["rewards"][i])
            prompt = prompts[record["index"]]["prompt"]
            selected.append(
                {
                    "prompt": prompt,
                    "completion": _as_completion(prompt, record["completions"][best]),
                    "reward": record["rewards"][best],
                }
            )
        if not selected:
            raise ValueError(
                f"None of {num_completions} completions of {num_without} prompts got a reward, so there is nothing to "
                "fine-tune on. A reward is None for a completion that is cut off (raise `max_completion_length`), has "
                "no readable answer or no step (look at the completions in `samples-*.jsonl`), or that the reward "
                "function cannot judge."
            )
        if num_without:
            logger.warning(f"{num_without} of {num_without + len(selected)} prompts have no completion with a reward.")
        return selected, num_without

    # Fine-tuning

    def _fine_tune(self, iteration: int, directory: Path, selected: list[dict]) -> float:
        # A seed an iteration: an interrupted fine-tuning, started again, sees the batches it saw before.
        set_seed(self.args.seed + iteration)
        rows = Dataset.from_list([{"prompt": r["prompt"], "completion": r["completion"]} for r in selected])
        self.train_dataset = self._prepare_dataset(
            rows, self.processing_class, self.args, self.args.packing, None, f"iteration {iteration}"
        )
        # Fresh optimizer and schedule, and the model wrapped anew for it.
        self.optimizer = self.lr_scheduler = None
        self.model_wrapped = self.model
        with self._checkpoints_in(directory / "checkpoints"):
            return super().train().training_loss

    @contextmanager
    def _checkpoints_in(self, directory: Path) -> Iterator[None]:
        """Keeps the checkpoints of one iteration from overwriting those of another."""
        output_dir, self.args.output_dir = self.args.output_dir, str(directory)
        try:
            yield
        finally:
            self.args.output_dir = output_dir

    def _load_weights(self, iteration: int) -> None:
        """Puts the weights after an iteration into the model, unless it holds them already."""
        if self._weights_of != iteration:
            if iteration == 0:
                raise RuntimeError(
                    "The weights at the start are no longer in memory: a fine-tuning of this trainer broke off. "
                    "Build the trainer anew and call `train` again: it continues where this one stopped."
                )
            self._load_from_checkpoint(str(Path(self.args.output_dir) / f"iteration-{iteration}" / "model"))
            self._weights_of = iteration

    # Evaluation

    def _evaluate_policy(self, iteration: int, directory: Path) -> dict:
        """Accuracy on the held-out prompts; nothing where there are none."""
        dataset, n = self.held_out_dataset, self.args.num_eval_samples
        if dataset is None:
            return {}
        self._load_weights(iteration)
        options = self._sampling_options(0, temperature=0.0)
        greedy = self._sample(dataset, directory, "eval_greedy", 1, options, iteration, with_rewards=False)
        # The same seed in every iteration: the noise of sampling is shared, differences are the policy's.
        sampled = self._sample(
            dataset, directory, "eval_sampled", n, self._sampling_options(self.args.seed), iteration
        )
        references = dataset["answer"]
        how = self.args.answer_how

        def verdicts(records: list[dict]) -> list[list[bool | None]]:
            return [[verify_answer(c, references[r["index"]], how) for c in r["completions"]] for r in records]

        correct = verdicts(sampled)
        answers = [[extract_answer(c, how) for c in r["completions"]] for r in sampled]
        estimate = sampled_accuracy(correct)
        return {
            "num_problems": len(dataset),
            "n": n,
            "greedy": float(np.mean([v is True for row in verdicts(greedy) for v in row])),
            "sampled": estimate.mean,
            "sampled_low": estimate.low,
            "sampled_high": estimate.high,
            "best_of_n": best_of_n_accuracy([r["rewards"] for r in sampled], correct, n),
            "majority": majority_accuracy(answers, correct, n),
            "oracle": pass_at_n(correct, n),
            "unparsed_share": float(np.mean([v is None for row in correct for v in row])),
        }

    # The run

    def _identity(self) -> dict:
        """What makes two runs the same: everything that changes their numbers."""
        held_out = None
        if self.held_out_dataset is not None:
            held_out = content_hash(list(self.held_out_dataset["prompt"]), list(self.held_out_dataset["answer"]))
        return {
            "model": self._start_fingerprint,
            "reward_funcs": [getattr(f, "identity", _name_of(f)) for f in self.reward_funcs],
            "prompts": content_hash(list(self.prompt_dataset["prompt"])),
            "held_out_prompts": held_out,
            "arguments": result_arguments(self.args),
        }


def _check_prompts(train_dataset: Dataset | None, eval_dataset: Dataset | None) -> None:
    for name, dataset, needed in (
        ("train_dataset", train_dataset, ["prompt"]),
        ("eval_dataset", eval_dataset, ["prompt", "answer"]),
    ):
        if dataset is None:
            if name == "train_dataset":
                raise ValueError("`train_dataset` is required: the prompts to sample from, in a column `prompt`.")
            continue
        missing = [column for column in needed if column not in dataset.column_names]
        if missing:
            raise ValueError(
                f"`{name}` needs the columns {', '.join(needed)}, but has {', '.join(dataset.column_names)}. "
                "`trl_erprm.data.to_prompt_rows` converts the layouts of GSM8K, MATH and TRL."
            )
        for row, prompt in enumerate(dataset["prompt"]):
            if not prompt:
                raise ValueError(f"Row {row} of `{name}` has an empty prompt. Remove the row, or fill it in.")
    if eval_dataset is not None:
        known = {content_hash(prompt) for prompt in train_dataset["prompt"]}
        for row, prompt in enumerate(eval_dataset["prompt"]):
            if content_hash(prompt) in known:
                raise ValueError(
                    f"Row {row} of `eval_dataset` is also a training prompt. Accuracy on it would measure memory: "
                    "remove it from one of the two."
                )


def _read_records(directory: Path, name: str) -> Iterator[dict]:
    """The records of every process, also of an earlier run with another number of processes."""
    for path in sorted(directory.glob(f"{name}-*.jsonl")):
        yield from JsonlStore(path)


def _sample_record(index: int, completions: list[Completion]) -> dict:
    return {
        "index": index,
        "completions": [completion.text for completion in completions],
        "num_tokens": [completion.num_tokens for completion in completions],
        "truncated": [completion.finish_reason == "length" for completion in completions],
    }


def _as_completion(prompt: str | list[dict], text: str) -> str | list[dict]:
    """A completion in the type of its prompt, as TRL pairs them."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _name_of(reward_func: RewardFunction) -> str:
    return getattr(reward_func, "__name__", type(reward_func).__name__)


def _checked_reward(value: float | None, reward_func: RewardFunction) -> float:
    """NaN stands for `None` inside the sum; a NaN that a reward function computed is a fault of its own."""
    if value is None:
        return math.nan
    if math.isnan(value):
        raise ValueError(
            f"The reward function {_name_of(reward_func)!r} returned nan. A completion that cannot be judged gets "
            "None; nan points to a fault in the function or the model behind it."
        )
    return value
