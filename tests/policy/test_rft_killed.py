"""A run that is killed in every phase ends with the numbers of one that was never interrupted."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPO_ROOT
from tests.policy import rft_killed
from tests.policy.rft_runs import rft_config

NUM_KILLS = 5  # one a phase; `python -m tests.policy.rft_killed` does as many as it is told


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_in_every_phase(tiny_policy, tmp_path):
    command = [sys.executable, "-m", "tests.policy.rft_killed", str(tmp_path / "run"), tiny_policy[1], "0"]
    done = subprocess.run([*command, str(NUM_KILLS)], cwd=REPO_ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    log = (tmp_path / "run.log").read_text()[-3000:]
    assert found["num_kills"] == NUM_KILLS and found["ends"]["none: finished"] == 1, log
    assert not any("failed" in end for end in found["ends"]), log

    expected = rft_killed.train(tmp_path / "whole", tiny_policy[1])
    assert found["histories"] and all(history == expected for history in found["histories"])
    # A kill loses the chunk in flight at most: nothing that was stored is sampled again.
    config = rft_config(tmp_path / "other", **rft_killed.CONFIG)
    per_prompt = rft_killed.NUM_HELD_OUT * 3 * (1 + config.num_eval_samples)
    needed = 2 * rft_killed.NUM_PROMPTS * config.num_samples + per_prompt
    lost = NUM_KILLS * 4 * config.generation_batch_size
    assert needed * len(found["histories"]) <= found["num_paid"] <= needed * len(found["histories"]) + lost
