"""A run that is killed 50 times ends as one that was never interrupted."""

import errno
import json
import os
import subprocess
import sys

import pytest
from datasets import Dataset

from tests.conftest import REPO_ROOT
from tests.labeling import killed
from tests.labeling.test_monte_carlo import CONFIG, BernoulliEngine, rows
from trl_erprm.labeling import MonteCarloLabeler
from trl_erprm.manifest import JsonlStore


def untimed(record):
    return {name: value for name, value in record.items() if name != "seconds"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("mode", list(killed.MODES))
def test_killed_50_times(tmp_path, mode):
    command = [sys.executable, "-m", "tests.labeling.killed", str(tmp_path / "run"), mode, "0"]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_kills"] == killed.NUM_KILLS and found["ends"]["none: finished"] == 1
    assert not any("failed" in end for end in found["ends"]), found["ends"]
    assert all(f"{how}: " in " ".join(found["ends"]) for how in ("event", "alarm", "one_of_two"))

    expected = killed.label(tmp_path / "whole", mode)
    assert (tmp_path / "run" / "labels.jsonl").read_bytes() == (tmp_path / "whole" / "labels.jsonl").read_bytes()
    assert Dataset.from_list(JsonlStore(tmp_path / "run" / "labels.jsonl").read()).to_list() == expected.to_list()
    # Every sample is recorded once, by whole lines.
    for kind, name in (("rollouts", ("prefix", "first_sample")), ("solutions", ("prompt",))):
        records = {}
        for path in sorted((tmp_path / "run").glob(f"{kind}-*.jsonl")):
            assert path.read_bytes().endswith(b"\n")
            for record in map(untimed, JsonlStore(path)):
                assert records.setdefault(tuple(record[key] for key in name), record) == record
        of_whole = map(untimed, JsonlStore(tmp_path / "whole" / f"{kind}-0.jsonl"))
        whole = {tuple(r[key] for key in name): r for r in of_whole}
        assert records == whole
    # A kill loses the chunk in flight at most: here one prefix, or one prompt.
    num_needed = sum(r["num_rollouts"] for r in JsonlStore(tmp_path / "whole" / "rollouts-0.jsonl")) + 3 * 12
    largest = 4 if mode != "fixed" else killed.config_of(mode).num_rollouts
    assert num_needed <= found["num_paid"] <= num_needed + killed.NUM_KILLS * largest


class TestFullDisk:
    GIVEN = [{"prompt": f"p{i}", "completions": ["a", "b", "#1"]} for i in range(6)]

    def fill_disk(self, monkeypatch, free):
        """From now on files take `free` bytes more, in all."""
        import io

        from trl_erprm import manifest

        class File(io.FileIO):
            def write(self, data):
                nonlocal free
                part = bytes(data)[:free]
                if not part:
                    raise OSError(errno.ENOSPC, "No space left on device")
                free -= len(part)
                return super().write(part)

        def opened(path, mode="r", buffering=-1, **more):
            return File(path, mode.replace("b", "")) if buffering == 0 else open(path, mode, buffering, **more)

        monkeypatch.setattr(manifest, "open", opened, raising=False)

    @pytest.mark.parametrize("free", [0, 100, 700, 1300])
    def test_a_clear_error_and_a_run_that_continues(self, monkeypatch, tmp_path, free):
        def engine():
            return BernoulliEngine(lambda prefix: 0.5)

        expected = MonteCarloLabeler(engine(), CONFIG).label(rows(*self.GIVEN), tmp_path / "whole")
        first = engine()
        with monkeypatch.context() as patch:
            self.fill_disk(patch, free)
            with pytest.raises(OSError, match="2 new records could not be written .No space left on device") as caught:
                MonteCarloLabeler(first, CONFIG).label(rows(*self.GIVEN), tmp_path / "run")
        assert caught.value.errno == errno.ENOSPC and caught.value.filename.endswith("rollouts-0.jsonl")
        assert "start the same command again: it continues" in str(caught.value)
        stored = JsonlStore(tmp_path / "run" / "rollouts-0.jsonl").read()
        assert len(stored) == len(first.samples) // 4 - 2  # all but the chunk in flight
        second = engine()
        assert MonteCarloLabeler(second, CONFIG).label(rows(*self.GIVEN), tmp_path / "run").to_list() == (
            expected.to_list()
        )
        assert len(second.samples) == (12 - len(stored)) * 4
