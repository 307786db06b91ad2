"""
Run a script under `accelerate launch` without a GPU: one of accelerate_configs/, processes that talk through gloo.

The script says `use_cpu=True, bf16=False` in its training arguments, and ends with `finish(trainer, result)`.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

if TYPE_CHECKING:
    from transformers import Trainer

REPO_ROOT = Path(__file__).resolve().parents[2]
CONFIG_FOLDER = REPO_ROOT / "accelerate_configs"
FSDP2_ON_CPU = Path(__file__).with_name("fsdp2_on_cpu.py")
# DeepSpeed compiles an extension at its first run on a CPU. It is kept with the environment, not in the user's cache.
EXTENSIONS_FOLDER = Path(sys.prefix) / "torch_extensions"
RESULT_PREFIX = "RESULT "
# What a launcher sets for its processes. Inherited, it would change or break another launch.
INHERITED_PREFIXES = ("ACCELERATE_", "DEEPSPEED_", "FSDP_", "TORCHELASTIC_")
INHERITED_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LaunchError(RuntimeError):
    """The launched script failed or ran out of time."""


def has_compiler() -> bool:
    """Whether DeepSpeed can run on a CPU: it compiles its shared-memory collectives at the first run."""
    return shutil.which(os.environ.get("CXX", "c++")) is not None


def launch_environment() -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(INHERITED_PREFIXES) and name not in INHERITED_NAMES
    }
    environment.update(
        PATH=os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")]),  # ninja, for DeepSpeed
        PYTHONPATH=os.pathsep.join(filter(None, [str(REPO_ROOT), environment.get("PYTHONPATH")])),
        CUDA_VISIBLE_DEVICES="",
        DS_ACCELERATOR="cpu",
        TORCH_EXTENSIONS_DIR=str(EXTENSIONS_FOLDER),
        OMP_NUM_THREADS="1",  # processes with several threads each slow each other down many times over
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
    )
    return environment


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, also those in sessions of their own, as torch's launcher makes them."""
    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def launch(
    config_name: str,
    script: str | Path,
    *args: object,
    num_processes: int | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """
    Run `script` with `args` under `accelerate launch` on the CPU and wait for it.

    Args:
        config_name (`str`): file in accelerate_configs/, without ".yaml".
        script (`str` or `Path`): script to run.
        args: arguments of the script.
        num_processes (`int`, *optional*): number of processes; by default as in the file.
        timeout (`float`, *optional*, defaults to `300`): seconds after which every process of the launch is killed.

    Returns:
        `subprocess.CompletedProcess`: with the text of stdout and stderr.

    Raises:
        LaunchError: if a process fails or the time is up; the message ends with stderr.
    """
    config_file = CONFIG_FOLDER / f"{config_name}.yaml"
    config = yaml.safe_load(config_file.read_text())
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
    command += ["--num_processes", num_processes or config["num_processes"], "--mixed_precision", "no"]
    command += ["--main_process_port", 0]  # a free one
    if config["distributed_type"] == "FSDP":
        command.append(FSDP2_ON_CPU)
    command = [str(part) for part in [*command, script, *args]]

    process = subprocess.Popen(
        command,
        cwd=REPO_ROOT,
        env=launch_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException as error:
        kill_tree(process.pid)
        stdout, stderr = process.communicate()
        for lock in EXTENSIONS_FOLDER.glob("*/*/lock"):  # a killed build leaves it, and the next run would wait for it
            lock.unlink(missing_ok=True)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise LaunchError(f"{' '.join(command)}\ndid not end within {timeout} s. stderr:\n{stderr}") from None
    if process.returncode != 0:
        raise LaunchError(f"{' '.join(command)}\nended with status {process.returncode}. stderr:\n{stderr}")
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def finish(trainer: "Trainer", result: dict[str, Any]) -> None:
    """
    Print `result` from the main process, together with what the run was wrapped in, and end all processes together.

    It does not return. A process that left while another still works would break the other's collectives.
    """
    accelerator = trainer.accelerator
    strategy = {
        "distributed_type": accelerator.distributed_type.value,
        "num_processes": accelerator.num_processes,
        "wrapper": type(trainer.model_wrapped).__name__,
        "zero_stage": getattr(accelerator.state.deepspeed_plugin, "zero_stage", None),
    }
    if accelerator.is_main_process:
        print(RESULT_PREFIX + json.dumps(result | strategy), flush=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    # Once in some thirty runs a thread of gloo or DeepSpeed aborts the interpreter while that takes itself down
    # ("terminate called without an active exception"). All is done by then, so it is left standing.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def read_result(completed: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The result that the script printed with `finish`."""
    lines = [line for line in completed.stdout.splitlines() if line.startswith(RESULT_PREFIX)]
    if len(lines) != 1:
        raise LaunchError(f"expected one line {RESULT_PREFIX!r}, got {len(lines)}. stdout:\n{completed.stdout}")
    return json.loads(lines[0].removeprefix(RESULT_PREFIX))
