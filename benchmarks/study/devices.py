"""Where a study runs: what its engines and trainers are told on a CPU and on a GPU."""

import gc
from dataclasses import dataclass
from typing import Any

from trl_erprm.choices import check_choice

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class BatchSizes:
    """
    Rows that go through a model at once where nothing is trained. No result depends on them.

    Attributes:
        generation (`int`): rollouts and candidates.
        scoring (`int`): solutions a PRM scores.
        chunk (`int`): prefixes that are labelled, and recorded, together.
    """

    generation: int
    scoring: int
    chunk: int


BATCH_SIZES = {
    "cpu": BatchSizes(generation=512, scoring=256, chunk=512),
    # A step of so small a model takes a GPU as long for 500 rows as for some thousand: what takes time is to start its
    # kernels. 4,096 rows of 100 tokens hold 10 GB of keys and values in 6 layers of width 384, float32.
    "cuda": BatchSizes(generation=4096, scoring=1024, chunk=4096),
}


def check_device(device: str) -> None:
    """
    Raises `ValueError` unless a study can run on the device, here and now: before any work.

    Example:

    ```python
    >>> check_device("gpu")
    Traceback (most recent call last):
        ...
    ValueError: `device` must be one of 'cpu', 'cuda', got 'gpu'. Did you mean 'cpu'?

    ```
    """
    check_choice("device", device, DEVICES)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                f'`device` is "cuda", but torch {torch.__version__} sees no GPU here. Run it where there is one, with '
                'a torch that was built for it, or with device "cpu", for which config.yaml and small.yaml are made.'
            )


def multiplies_in_bf16(device: str) -> bool:
    """
    Whether training multiplies matrices in bfloat16: on a GPU that has it. Weights and optimizer stay in float32.

    On a CPU models of a few hundred thousand parameters gain nothing from it.
    """
    if device == "cpu":
        return False
    import torch

    return torch.cuda.is_bf16_supported()


def trainer_arguments(device: str) -> dict[str, Any]:
    """Arguments of every trainer of the study."""
    return {
        "use_cpu": device == "cpu",
        "bf16": multiplies_in_bf16(device),
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }


def prepare_process(device: str) -> None:
    """
    At the start of a process that works: one thread, as so small a model gains nothing from more; on a GPU, products
    of float32 matrices in TF32, whose rounding is far below the differences between two seeds.
    """
    import torch

    torch.set_num_threads(1)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")


def release_memory(device: str) -> None:
    """Behind a unit: gives the GPU's memory back, which a process would keep from the others that share it."""
    if device == "cuda":
        import torch

        gc.collect()  # trainers and their models refer to one another
        torch.cuda.empty_cache()
