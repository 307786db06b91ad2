"""Kills a labelling run again and again, and lets it finish: `python -m tests.labeling.killed DIRECTORY MODE SEED`.

Everything is imported once; each start of the run is a fork, which ends by a signal that no code can catch:

- at a random event: an engine call, a write (after a random part of its bytes), a sync, or a rename;
- at a random moment, by the alarm of the kernel;
- as one of two processes, of which the other is not there, by the same alarm.

Prints, as JSON, how often each ended so, and the number of rollouts that the starts paid for.
"""

import io
import json
import os
import random
import signal
import sys
from pathlib import Path

from tests.labeling.test_monte_carlo import CONFIG, BernoulliEngine, rows
from trl_erprm import manifest
from trl_erprm.labeling import LabelingConfig, MonteCarloLabeler, monte_carlo
from trl_erprm.rollout import Completion

NUM_KILLS = 50
MODES = {
    "fixed": {},
    "adaptive": {  # all that asks for rollouts in several turns
        "num_rollouts": 32,
        "label_tolerance": 0.5,
        "eta": 5.0,
        "label_steps": "until_hopeless",
        "keep_rollouts": True,
    },
}


def config_of(mode: str) -> LabelingConfig:
    return LabelingConfig(**{**vars(CONFIG), "solutions_per_prompt": 3, "prefixes_per_chunk": 1, **MODES[mode]})


GIVEN = [{"prompt": f"p{i}"} for i in range(12)]


class Engine(BernoulliEngine):
    """Solutions of four steps, rollouts right with a probability that depends on the prefix."""

    def __init__(self, on_call=lambda number: None):
        super().__init__(lambda prefix: (len(prefix.completion) * 7 + len(prefix.prompt)) % 5 / 5)
        self.on_call = on_call

    def generate(self, prefixes, num_samples, options, first_sample=0):
        self.on_call(len(prefixes) * num_samples)
        result = super().generate(prefixes, num_samples, options, first_sample)
        for prefix, of_prefix in zip(prefixes, result, strict=True):
            if not prefix.completion:
                of_prefix[:] = [
                    Completion(f"a{i % 2}\nb{'b' * i}\nc\n{c.text}", 9, "stop") for i, c in enumerate(of_prefix)
                ]
        return result


def label(directory, mode, on_call=lambda number: None):
    return MonteCarloLabeler(Engine(on_call), config_of(mode)).label(rows(*GIVEN), directory)


def kill_at_event(number: int, rng: random.Random) -> None:
    """Makes this process kill itself at event `number` from now on."""
    left = number

    def is_last() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class File(io.FileIO):
        def write(self, data):
            if is_last():
                super().write(bytes(data)[: rng.randrange(len(data) + 1)])
                kill()
            return super().write(data)

    def opened(path, mode="r", buffering=-1, **more):
        if buffering == 0:
            return File(path, mode.replace("b", ""))
        return open(path, mode, buffering, **more)

    def ended(function):
        def call(*args, **kwargs):
            if is_last():
                if rng.random() < 0.5:
                    function(*args, **kwargs)
                kill()
            return function(*args, **kwargs)

        return call

    manifest.open = opened
    os.fsync, os.replace = ended(os.fsync), ended(os.replace)
    Engine.generate = ended(Engine.generate)


class OneOfTwo:
    """A process whose neighbour never comes."""

    num_processes = 2
    is_main_process = False

    def __init__(self, index):
        self.process_index = index
        self.is_main_process = index == 0

    def wait_for_everyone(self):
        pass


def start(directory: Path, mode: str, how: str, rng: random.Random, paid: Path) -> str:
    """Starts the run in a fork; "finished", or the name of the signal that ended it."""
    number, seconds, index = rng.randrange(1, 12), rng.uniform(0.01, 0.2), rng.randrange(2)
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        if how == "event":
            kill_at_event(number, rng)
        elif how != "none":
            if how == "one_of_two":
                monte_carlo.process_state = lambda: OneOfTwo(index)
            signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends the process: there is no handler
        descriptor = os.open(paid, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        code = 1
        try:
            label(directory, mode, lambda number: os.write(descriptor, f"{number}\n".encode()))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return "finished" if os.WEXITSTATUS(status) == 0 else "failed"


def main() -> None:
    directory, mode, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rng = random.Random(seed)
    ends: dict[str, int] = {}
    paid = directory.with_suffix(".paid")
    num_kills = num_starts = 0
    while num_kills < NUM_KILLS:
        how = rng.choice(["event", "event", "event", "alarm", "one_of_two"])
        end = start(directory, mode, how, rng, paid)
        ends[f"{how}: {end}"] = ends.get(f"{how}: {end}", 0) + 1
        num_kills += end.startswith("SIG")
        num_starts += 1
        if num_starts > 3 * NUM_KILLS:
            break
    end = start(directory, mode, "none", rng, paid)
    ends[f"none: {end}"] = 1
    numbers = [int(line) for line in paid.read_text().splitlines()]
    print(json.dumps({"ends": ends, "num_kills": num_kills, "num_paid": sum(numbers), "num_calls": len(numbers)}))


if __name__ == "__main__":
    main()
