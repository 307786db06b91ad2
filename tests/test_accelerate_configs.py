"""The files in accelerate_configs/ say what they mean, and accelerate reads every key of them."""

import dataclasses
import warnings
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

FOLDER = Path(__file__).resolve().parents[1] / "accelerate_configs"
# name -> (distributed type, processes, mixed precision)
EXPECTED = {
    "cpu": (DistributedType.NO, 1, "no"),
    "single_gpu": (DistributedType.NO, 1, "bf16"),
    "ddp": (DistributedType.MULTI_GPU, 2, "bf16"),
    "zero1": (DistributedType.DEEPSPEED, 2, "bf16"),
    "zero2": (DistributedType.DEEPSPEED, 2, "bf16"),
    "zero3": (DistributedType.DEEPSPEED, 2, "bf16"),
    "fsdp2": (DistributedType.FSDP, 2, "bf16"),
}


def launch_arguments(name: str, *options: str):
    """What `accelerate launch` makes of a file and of its own command line."""
    parser = launch_command_parser()
    arguments, _, _ = _validate_launch_command(
        parser.parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), *options, "script.py"])
    )
    return arguments


def test_folder_holds_the_expected_files():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_loads_without_a_warning_and_means_what_it_says(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == EXPECTED[name]
    assert config.use_cpu == (name == "cpu")


@pytest.mark.parametrize("name", EXPECTED)
def test_every_key_is_known_to_accelerate(name):
    """The loader refuses unknown keys at the top; nested ones it would pass on without a word."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(content) <= {field.name for field in dataclasses.fields(ClusterConfig)}
    options = vars(launch_command_parser().parse_args(["script.py"]))
    for section in ("deepspeed_config", "fsdp_config"):
        assert set(content.get(section, {})) <= set(options)


@pytest.mark.parametrize("name", EXPECTED)
def test_launch_uses_the_strategy(name, caplog):
    arguments = launch_arguments(name)
    assert arguments.num_processes == EXPECTED[name][1]
    assert arguments.use_deepspeed == name.startswith("zero")
    assert arguments.use_fsdp == (name == "fsdp2")
    assert arguments.multi_gpu == (name == "ddp")
    if name.startswith("zero"):
        assert arguments.zero_stage == int(name[-1])
        assert arguments.gradient_accumulation_steps == arguments.gradient_clipping == "auto"
    if name == "zero3":
        assert arguments.zero3_save_16bit_model is True
    if name == "fsdp2":
        assert arguments.fsdp_version == 2
        assert arguments.fsdp_state_dict_type == "FULL_STATE_DICT"
    assert "had defaults used instead" not in caplog.text


def test_command_line_overrides_the_file():
    arguments = launch_arguments("zero3", "--num_processes", "8", "--mixed_precision", "no")
    assert (arguments.num_processes, arguments.mixed_precision) == (8, "no")
