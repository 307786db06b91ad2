"""What StepGRPOTrainer costs beyond GRPOTrainer with the same process reward, in a share of a GRPO step.

    python benchmarks/step_grpo_overhead.py
    python benchmarks/step_grpo_overhead.py --device cuda --dtype bfloat16 --shape 0.5b

Both trainers generate, score and learn on the same prompts with models of random weights and a byte-level tokenizer,
in turn, several rounds; the median time of a step is compared: processor time on a CPU, wall time on a GPU. Beside it,
within StepGRPOTrainer, the time from the end of the rewards to the end of `_generate_and_score_completions`: mapping
steps to tokens, advantages, gathering. The smaller the model, the larger that share. Policy and PRM have the same
`--shape`: `llama` takes `--hidden_size` and `--num_layers`.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _devices import SHAPES, add_device_arguments, build_on, clock_of, describe_model, qwen2_config
from _measurements import Measurement, over_rounds, write_measurements
from _rows import build_tokenizer, llama_config, load_solutions
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from trl_erprm import ProcessReward, ProcessRewardModel, StepGRPOConfig, StepGRPOTrainer
from trl_erprm.prm.formats import load_format

WARM_UP = 2  # steps that are not timed


def timed(trainer_class, clock):
    class Timed(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.steps, self.parent_end, self.own = [], 0.0, []

        def training_step(self, *args, **kwargs):
            start = clock()
            loss = super().training_step(*args, **kwargs)
            self.steps.append(clock() - start)
            return loss

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            self.own.append(clock() - self.parent_end)
            return output

        def _calculate_rewards(self, *args):
            rewards = super()._calculate_rewards(*args)
            self.parent_end = clock()
            return rewards

    return Timed


def step_seconds(trainer_class, policy, tokenizer, prm, prompts, args, output_dir) -> tuple[float, float]:
    """Median time of a step, and what passes in it between rewards and loss."""
    config_class = GRPOConfig if trainer_class is GRPOTrainer else StepGRPOConfig
    config = config_class(
        output_dir,
        per_device_train_batch_size=args.batch_size,
        num_generations=8,
        max_completion_length=args.max_completion_length,
        max_steps=args.num_steps + WARM_UP,
        learning_rate=0.0,  # so that all rounds sample the same
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        use_cpu=args.device == "cpu",
        bf16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = timed(trainer_class, clock_of(args.device))(
        policy,
        ProcessReward(prm, require_answer=False),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return statistics.median(trainer.steps[WARM_UP:]), statistics.median(trainer.own[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with bon_gsm8k, if at hand")
    parser.add_argument("--shape", choices=["llama", *SHAPES], default="llama")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--num_layers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_completion_length", type=int, default=128)
    parser.add_argument("--num_steps", type=int, default=4)
    parser.add_argument("--num_rounds", type=int, default=3)
    add_device_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/step_grpo_overhead.json"))
    args = parser.parse_args()
    started = time.time()
    torch.set_num_threads(1)

    rng = random.Random(0)
    solutions, kind = load_solutions(args.data, rng)
    texts = ["\n".join([prompt, *steps]) for prompt, steps in solutions[:400]]
    tokenizer = build_tokenizer(texts, 4000)
    if args.shape == "llama":
        config = llama_config(tokenizer, args.hidden_size, args.num_layers)
    else:
        ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = qwen2_config(args.shape, num_labels=2, **ends)
    head = build_on(AutoModelForTokenClassification, config, args.device, args.dtype, seed=1)
    prm = ProcessRewardModel(head, tokenizer, load_format("trl"))
    prompts = [prompt + "\n" for prompt, _ in solutions[:64]]

    rounds = []
    for number in range(args.num_rounds):
        seconds = []
        for trainer_class in (GRPOTrainer, StepGRPOTrainer):
            policy = build_on(AutoModelForCausalLM, config, args.device, args.dtype, seed=0)
            with tempfile.TemporaryDirectory() as output_dir:
                seconds.append(step_seconds(trainer_class, policy, tokenizer, prm, prompts, args, output_dir))
        (grpo, before), (step_grpo, after) = seconds
        rounds.append((step_grpo / grpo, (after - before) / grpo))
        print(f"round {number}: GRPO {grpo:.2f} s a step, StepGRPO {step_grpo:.2f} s ({step_grpo / grpo:.3f} times)")
    ratios, shares = zip(*rounds, strict=True)
    ratio, own = statistics.median(ratios), statistics.median(shares)
    kind_of_time = "processor time" if args.device == "cpu" else "wall time"
    model = describe_model(policy.num_parameters(), args.dtype)
    print(
        f"\n{kind}, {args.batch_size} completions of {args.max_completion_length} tokens, {model}: {ratio:.3f} times "
        f"the {kind_of_time} of a GRPO step; {100 * own:.2f} % of a step between rewards and loss"
    )
    setting = f"{args.batch_size} completions of {args.max_completion_length} tokens; {model}"
    more, own_shares = [100 * (r - 1) for r in ratios], [100 * share for share in shares]
    rows = [
        Measurement(
            "GRPO on steps", f"{kind_of_time} of a step beyond GRPOTrainer's", "GRPOTrainer", setting, unit="%",
            **over_rounds(more, 100 * (ratio - 1)),
        ),
        Measurement(
            "GRPO on steps", "part of a step between rewards and loss beyond GRPOTrainer's", "GRPOTrainer's step",
            setting, unit="%", **over_rounds(own_shares, 100 * own),
        ),
    ]  # fmt: skip
    write_measurements(args.output, rows, started, num_threads=1, device=args.device)


if __name__ == "__main__":
    main()
