"""Where a benchmark's models run and what shape they have: options, models of random weights, clocks and memory.

Nothing is downloaded: a model is built from its config, right on the device and in its precision.
"""

import argparse
import copy
import platform
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 8192,
        "tie_word_embeddings": True,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
}
"""Configs of Qwen2's architecture. 0.5b and 7b: those of Qwen2.5-0.5B and Qwen2.5-7B."""

DTYPES = ("float32", "bfloat16", "float16")


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """`--device` and `--dtype`. A device that is not there ends the script when its options are read."""
    parser.add_argument("--device", type=device_here, default="cpu", help="cpu, or cuda for a GPU")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the weights")


def device_here(device: str) -> str:
    """
    The device, if models can run on it here and now.

    Raises:
        `argparse.ArgumentTypeError`: for a name that is neither `"cpu"`, `"cuda"` nor `"cuda:<number>"`, and for a GPU
            that torch does not see.

    Example:

    ```python
    >>> device_here("gpu")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: must be cpu, cuda or cuda:<number>, got 'gpu'.

    ```
    """
    if device == "cpu":
        return device
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if not found:
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:<number>, got {device!r}.")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(found[1] or 0) >= count:
        gpus = "no GPU" if count == 0 else f"{count} of them, from cuda:0 on,"
        raise argparse.ArgumentTypeError(
            f"got {device!r}, but torch {torch.__version__} sees {gpus} here. Run it where there is one, with a torch "
            "that was built for it, or with --device cpu."
        )
    return device


def qwen2_config(shape: str, **changes):
    """Config of Qwen2's architecture in a shape of [`SHAPES`], but for the changes."""
    from transformers import Qwen2Config

    return Qwen2Config(**{"max_position_embeddings": 32_768, "bos_token_id": None, **SHAPES[shape], **changes})


def build_on(auto_class, config, device: str, dtype: str, seed: int):
    """A model of random weights, the same for the same seed and device; `auto_class` as `AutoModelForCausalLM`."""
    import torch

    torch.manual_seed(seed)
    config = copy.deepcopy(config)  # trainers change the config of their model, and with it how fast it generates
    with torch.device(device):
        return auto_class.from_config(config, dtype=getattr(torch, dtype))


def synchronize(device: str) -> None:
    """Waits for what a GPU still has to do; a clock read before would not count it."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def kind_of_time(device: str, num_threads: int) -> str:
    """
    Which time says more: of one thread its processor time, which other work on the machine hardly moves. Threads that
    wait for each other count as busy, and a GPU's work is in no processor time: there it is wall time.
    """
    return "processor time" if device == "cpu" and num_threads == 1 else "wall time"


def clock_of(device: str) -> Callable[[], float]:
    """What times are compared by: processor time on a CPU, wall time on a GPU, whose work no processor time counts."""

    def wall_time() -> float:
        synchronize(device)
        return time.perf_counter()

    return wall_time if device.startswith("cuda") else time.process_time


def memory_held(device: str) -> int:
    """Bytes that this process holds: on the GPU where one is used. From here on a GPU's peak is counted anew."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss


def peak_memory(device: str) -> int:
    """
    Most bytes that this process held: torch's allocations on a GPU, else the operating system's figure. On Linux it is
    read in /proc, since `ru_maxrss` begins with what the process that started this one held.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def describe_layers(num_layers: int, shape: str) -> str:
    """
    What a setting says behind its own text of a model with fewer layers than its shape has; else nothing.

    Example:

    ```python
    >>> describe_layers(4, "0.5b"), describe_layers(24, "0.5b")
    ('; 4 of 24 layers', '')

    ```
    """
    whole = SHAPES[shape]["num_hidden_layers"]
    return "" if num_layers == whole else f"; {num_layers} of {whole} layers"


def describe_model(num_parameters: int, dtype: str) -> str:
    """As the table names a model.

    Example:

    ```python
    >>> describe_model(494_032_768, "bfloat16"), describe_model(130_000, "float32")
    ('494M parameters, bfloat16', '0.13M parameters, float32')

    ```
    """
    millions = num_parameters / 1e6
    size = f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions:.{0 if millions >= 100 else 2}f}M"
    return f"{size} parameters, {dtype}"
