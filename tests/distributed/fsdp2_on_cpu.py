"""
Run a script with FSDP2 on the CPU:

    accelerate launch --config_file accelerate_configs/fsdp2.yaml --mixed_precision no fsdp2_on_cpu.py script.py ...

Accelerate (1.15) shards a model only where it finds an accelerator; on a CPU it wraps the model in DDP, without a
word. Here it is told of several devices, all of which are the CPU. PyTorch's FSDP2 itself runs on gloo.
"""

import os
import runpy
import sys


def pretend_devices() -> None:
    import torch.distributed as dist
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def prepare_backend(self, cpu=False, sagemaker_dp=False, backend=None):
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = prepare_backend


if __name__ == "__main__":
    pretend_devices()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
