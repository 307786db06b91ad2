"""Kills a fine-tuning run again and again, and lets it finish.

    python -m tests.policy.rft_killed DIRECTORY POLICY SEED NUM_KILLS

Everything is imported once; each start of the run is a fork, which ends by a signal that no code can catch: at some
call of what samples, scores, selects, trains or saves, before it or behind it; at a random sync or rename; or at a
random moment, by the alarm of the kernel. Prints, as JSON, how often each ended so, and the completions paid for.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

from tests.policy.rft_runs import is_right, rft_config
from trl_erprm import RFTTrainer
from trl_erprm.arithmetic import ArithmeticTask
from trl_erprm.policy import rft_run
from trl_erprm.policy.rft_scoring import Scorers
from trl_erprm.rollout.transformers_engine import TransformersEngine

TASK = {"num_operations": 2, "num_train": 150, "num_validation": 10, "num_test": 40}  # as the fixture `tiny_policy`
NUM_PROMPTS, NUM_HELD_OUT = 24, 8
# chunks of 8 prompts (training, sampled) or 32 (greedy); a checkpoint at every second of six steps an iteration
CONFIG = {"generation_batch_size": 8, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2}
# What a run goes through, by phase.
PLACES = {
    "sampling": (TransformersEngine, "generate"),
    "scoring": (Scorers, "score"),
    "selecting": (rft_run._ParquetFile, "_write"),
    "training": (RFTTrainer, "training_step"),
    "checkpoint": (RFTTrainer, "_save_checkpoint"),
    "saving": (RFTTrainer, "save_model"),
    "sync": (os, "fsync"),
    "rename": (os, "replace"),
}


def train(directory: Path, policy: str) -> list[dict]:
    task = ArithmeticTask(**TASK)
    trainer = RFTTrainer(
        policy,
        reward_funcs=is_right,
        args=rft_config(directory, **CONFIG),
        train_dataset=task.dataset("train", NUM_PROMPTS),
        eval_dataset=task.dataset("test", NUM_HELD_OUT),
    )
    return trainer.train()


def kill_at_call(owner: object, name: str, number: int, is_behind: bool) -> None:
    """Makes this process kill itself at call `number` of a function, before or behind it."""
    function, left = getattr(owner, name), number

    def call(*args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0 and not is_behind:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)


def count_completions(descriptor: int) -> None:
    """Writes down how many completions each call of the engine made."""
    generate = TransformersEngine.generate

    def counting(self, prefixes, num_samples, *args, **kwargs):
        os.write(descriptor, f"{len(prefixes) * num_samples}\n".encode())
        return generate(self, prefixes, num_samples, *args, **kwargs)

    TransformersEngine.generate = counting


def start(directory: Path, policy: str, how: str, rng: random.Random, paid: Path) -> str:
    """Starts the run in a fork; "finished", or the name of the signal that ended it."""
    number, is_behind, seconds = rng.randrange(1, 5), rng.random() < 0.5, rng.uniform(0.2, 2.0)
    child = os.fork()
    if child == 0:
        log = os.open(directory.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        count_completions(os.open(paid, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
        if how in PLACES:
            kill_at_call(*PLACES[how], number, is_behind)
        elif how == "alarm":
            signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends the process: there is no handler
        code = 1
        try:
            history = train(directory, policy)
            directory.with_suffix(".json").write_text(json.dumps(history))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return "finished" if os.WEXITSTATUS(status) == 0 else "failed"


def main() -> None:
    directory, policy, rng, num_kills = Path(sys.argv[1]), sys.argv[2], random.Random(int(sys.argv[3])), sys.argv[4]
    paid, ends, done = directory.with_suffix(".paid"), {}, 0
    hows = [*PLACES, "alarm"]
    for number in range(3 * int(num_kills)):
        if done == int(num_kills):
            break
        how = hows[number % len(hows)]
        end = start(directory, policy, how, rng, paid)
        ends[f"{how}: {end}"] = ends.get(f"{how}: {end}", 0) + 1
        done += end.startswith("SIG")
        if end == "finished":  # all that is left of the run was shorter than the wait: another run
            directory.rename(directory.with_name(f"{directory.name}-{number}"))
            directory.with_suffix(".json").rename(directory.with_name(f"{directory.name}-{number}.json"))
    end = start(directory, policy, "none", rng, paid)
    ends[f"none: {end}"] = 1
    histories = [json.loads(path.read_text()) for path in directory.parent.glob(f"{directory.name}*.json")]
    num_paid = sum(map(int, paid.read_text().split()))
    print(json.dumps({"ends": ends, "num_kills": done, "num_paid": num_paid, "histories": histories}))


if __name__ == "__main__":
    main()
