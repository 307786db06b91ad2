"""The launcher of the distributed tests: it starts what it is told, and a failure cannot pass for a success."""

import subprocess
import time

import psutil
import pytest

from tests.distributed.launch import LaunchError, launch, read_result

pytestmark = pytest.mark.distributed


@pytest.fixture
def write_script(tmp_path):
    def write(source: str):
        path = tmp_path / "script.py"
        path.write_text(source)
        return path

    return write


ENVIRONMENT = """
import json, os, sys
names = ["RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION"]
if os.environ.get("RANK", "0") == "0":
    print("RESULT", json.dumps({"args": sys.argv[1:]} | {name: os.environ.get(name) for name in names}))
"""


def test_starts_two_offline_processes(write_script, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # would turn DeepSpeed and FSDP off
    monkeypatch.setenv("WORLD_SIZE", "4")
    result = read_result(launch("ddp", write_script(ENVIRONMENT), "--some", 1))
    assert result == {
        "args": ["--some", "1"],
        "RANK": "0",
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": None,
        "ACCELERATE_MIXED_PRECISION": "no",
    }


def test_cpu_config_starts_one_process(write_script):
    result = read_result(launch("cpu", write_script(ENVIRONMENT)))
    assert (result["WORLD_SIZE"], result["ACCELERATE_USE_CPU"]) == (None, "True")


def test_failure_of_the_second_process_shows_its_stderr(write_script):
    script = write_script("import os\nif os.environ['RANK'] == '1':\n    raise ValueError('the second one fell')")
    with pytest.raises(LaunchError, match="the second one fell"):
        launch("ddp", script)


def test_time_limit_ends_every_process(write_script, tmp_path):
    script = write_script(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(str(os.getpid()))\n"
        "print('waiting for nothing', file=sys.stderr, flush=True)\n"
        "time.sleep(120)\n"
    )
    start = time.monotonic()
    with pytest.raises(LaunchError, match="(?s)did not end within 15 s.*waiting for nothing"):
        launch("ddp", script, tmp_path, timeout=15)
    assert time.monotonic() - start < 60
    for rank in "01":
        pid = int((tmp_path / rank).read_text())
        # gone, or dead and not yet collected by its parent
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("stdout", ["", "RESULT {}\nRESULT {}\n"])
def test_a_result_is_printed_once(stdout):
    with pytest.raises(LaunchError, match="expected one line"):
        read_result(subprocess.CompletedProcess([], 0, stdout, ""))
