"""
Score solutions with a process reward model, all processes together and each by itself.

    score_prm.py <model folder>
"""

import json
import os
import random
import sys
from typing import Any

from accelerate.utils import gather_object

from tests.distributed.launch import RESULT_PREFIX
from trl_erprm import ProcessRewardModel
from trl_erprm.arguments import process_state

# Of several lengths, some without steps, and an odd number of them: shares are not equal. One is too long.
draw = random.Random(0)
PROMPTS = [f"{draw.randint(1, 9)}+{i}\n" for i in range(21)]
STEPS = [[f"{i}+{k}={i + k}" for k in range(draw.randint(0, 6))] for i in range(20)] + [["1+1=2"] * 100]


def error_of(prm: ProcessRewardModel, *args: Any, **kwargs: Any) -> str:
    try:
        prm.score(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return ""


def main(model_folder: str) -> None:
    prm = ProcessRewardModel.from_pretrained(model_folder)
    state = process_state()
    together = {"split_between_processes": True, "none_if_too_long": True, "batch_size": 4}
    scores = prm.score(PROMPTS, STEPS, show_progress=True, **together)
    own = slice(state.process_index, state.process_index + 2)  # solutions of its own, as in reinforcement learning
    result = {
        "num_processes": state.num_processes,
        "device": str(prm.device),
        "scores": gather_object([scores]),
        "of_one": gather_object([prm.score(PROMPTS[:1], STEPS[:1], **together)]),  # fewer than processes
        "of_none": gather_object([prm.score([], [], **together)]),
        "own": gather_object([prm.score(PROMPTS[own], STEPS[own])]),
        # Bad input in the share of one process is an error in all: none waits for the others.
        "errors": gather_object(
            [error_of(prm, PROMPTS[:4], [["1+1=2"], ["1+1=2"], ["1+1=2", ""], []], split_between_processes=True)]
        ),
    }
    if state.is_main_process:
        print(RESULT_PREFIX + json.dumps(result), flush=True)
    state.wait_for_everyone()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as `finish` in launch.py, and for its reason


if __name__ == "__main__":
    main(*sys.argv[1:])
