"""Shapes, precision and device of the benchmarks' models; what is timed and counted on a GPU, a stand-in for one."""

import doctest
import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from benchmarks import _devices
from benchmarks._devices import (
    build_on,
    clock_of,
    device_here,
    kind_of_time,
    memory_held,
    peak_memory,
    qwen2_config,
    synchronize,
)
from benchmarks._measurements import read_measurements

ROOT = Path(_devices.__file__).parents[1]
MIB = 2**20


@pytest.fixture
def script(monkeypatch):
    """A script of benchmarks/ as a module, which finds its siblings as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def cuda(monkeypatch) -> list[str]:
    """What is asked of `torch.cuda`, in order; it held 5 MiB at most, and 3 when asked."""
    asked = []

    def answer(name, value=None):
        monkeypatch.setattr(torch.cuda, name, lambda device: asked.append(f"{name} {device}") or value)

    answer("synchronize")
    answer("reset_peak_memory_stats")
    answer("memory_allocated", 3 * MIB)
    answer("max_memory_allocated", 5 * MIB)
    return asked


def test_examples():
    outcome = doctest.testmod(_devices)
    assert outcome.attempted > 0
    assert outcome.failed == 0


# Models


@pytest.mark.parametrize(("shape", "billions"), [("0.5b", 0.494), ("7b", 7.616), ("small", 0.000648)])
def test_shapes_have_the_parameters_of_their_names(shape, billions):
    model = build_on(AutoModelForCausalLM, qwen2_config(shape), "meta", "bfloat16", seed=0)
    assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=2e-3)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


def test_models_are_those_of_their_seed_in_their_precision():
    config = qwen2_config("small", num_labels=2, num_hidden_layers=1)

    def weights(seed: int, dtype: str = "float32") -> torch.Tensor:
        return build_on(AutoModelForTokenClassification, config, "cpu", dtype, seed).score.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert weights(1, "float16").dtype == torch.float16
    assert weights(1).shape == (2, 64)


def test_models_of_one_config_do_not_share_it():
    config = qwen2_config("small", num_hidden_layers=1)
    first, second = (build_on(AutoModelForCausalLM, config, "cpu", "float32", seed=0) for _ in range(2))
    first.config.use_cache = False  # as trainers do
    assert second.config.use_cache and config.use_cache


# Time and memory


@pytest.mark.parametrize(
    ("device", "num_threads", "kind"),
    [("cpu", 1, "processor time"), ("cpu", 2, "wall time"), ("cuda", 1, "wall time"), ("cuda:1", 1, "wall time")],
)
def test_kind_of_time(device, num_threads, kind):
    assert kind_of_time(device, num_threads) == kind


def test_clock_of_a_gpu_waits_for_it(cuda, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: len(cuda))
    assert clock_of("cuda:0")() == 1  # read behind the wait
    assert cuda == ["synchronize cuda:0"]
    synchronize("cpu")
    assert clock_of("cpu") is time.process_time
    assert len(cuda) == 1


def test_memory_of_a_gpu_is_counted_from_when_it_was_asked(cuda):
    assert memory_held("cuda") == 3 * MIB
    assert peak_memory("cuda") == 5 * MIB
    assert cuda == ["reset_peak_memory_stats cuda", "memory_allocated cuda", "max_memory_allocated cuda"]


def test_peak_memory_of_a_process_goes_up_with_what_it_holds():
    held, before = memory_held("cpu"), peak_memory("cpu")
    assert held <= before
    more = torch.ones(int(before - held) // 4 + 50 * MIB // 4)
    assert 40 * MIB < peak_memory("cpu") - before < 80 * MIB
    del more
    assert peak_memory("cpu") - before > 40 * MIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere a peak begins with the parent's")
def test_peak_memory_is_the_process_its_own():
    """Of one that a larger one has started."""
    more = torch.ones(300 * MIB // 4)
    code = "from benchmarks._devices import peak_memory; print(peak_memory('cpu'))"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert 4 * MIB < int(child.stdout) < more.nbytes


# The options of the scripts


def test_scoring_loads_the_shape_in_its_precision(script, tmp_path):
    prm_scoring = script("prm_scoring")
    task = {"directory": str(tmp_path), "data": str(tmp_path), "seed": 0, "device": "cpu", "dtype": "bfloat16"}
    task |= {"shape": "small", "num_layers": 1, "num_solutions": 6, "batch_size": 4}
    prm_scoring.prepare(task)
    prm = prm_scoring.load_prm(task)
    assert prm.model.dtype == torch.bfloat16
    assert (prm.model.config.hidden_size, prm.model.config.num_hidden_layers) == (64, 1)
    assert prm_scoring.load_prm({**task, "num_layers": None}).model.config.num_hidden_layers == 2

    sides = {side: prm_scoring.score_solutions({**task, "order": "shuffled", "side": side}) for side in
             ("reference", "ours, no sharing")}  # fmt: skip
    assert all(run["num_parameters"] == prm.model.num_parameters() for run in sides.values())
    assert all(run["num_layers"] == 1 for run in sides.values())
    difference = prm_scoring.largest_difference(*(run["scores"] for run in sides.values()))
    assert 0 < difference < 0.05  # what the scorer says of bfloat16
    prm_scoring.check_difference(task, 2e-4, "reference")
    with pytest.raises(AssertionError, match="reference: scores differ by 0.0002"):
        prm_scoring.check_difference({**task, "dtype": "float32"}, 2e-4, "reference")
    scores = torch.tensor(sum(sides["reference"]["scores"], []))
    assert scores.std() > 1e-3  # else no difference would show


def test_ratios_of_scoring(script):
    """Two rounds, by hand: processor time 10 / 4 and 10 / 2, memory 100 / 400, above the model 30 / 300."""
    prm_scoring = script("prm_scoring")

    def side(side: str, cpu_seconds: float, peak_mb: float, above: float, difference: float) -> dict:
        run = {"order": "shuffled", "side": side, "num_parameters": 494_000_000, "seconds": 7.0}
        run["num_layers"] = 4
        run |= {"cpu_seconds": cpu_seconds, "peak_mb": peak_mb, "above_model_mb": above}
        return run | {"difference": difference}

    rounds = [
        [side("reference", 10.0, 400.0, 300.0, 0.0), side("ours", seconds, 100.0, 30.0, 1e-6)]
        for seconds in (4.0, 2.0)
    ]
    options = {"num_threads": 1, "dtype": "float32", "num_solutions": 8, "shape": "0.5b"}
    on_cpu = prm_scoring.argparse.Namespace(device="cpu", **options)
    rows = prm_scoring.reference_rows(rounds, on_cpu)
    assert [(row.measured.split(";")[0], row.value, row.low, row.high) for row in rows] == [
        ("speed by processor time", 3.75, 2.5, 5.0),
        ("peak memory", 0.25, 0.25, 0.25),
        ("memory above the loaded model", 0.1, 0.1, 0.1),
        ("largest difference of a score", 1e-6, 1e-6, 1e-6),
    ]
    assert rows[0].measured.endswith("494M parameters, float32")
    assert {row.setting for row in rows} == {"8 solutions shuffled; ours; 4 of 24 layers"}
    for run in rounds[0]:
        run["num_layers"] = 24
    assert prm_scoring.reference_rows(rounds, on_cpu)[0].setting == "8 solutions shuffled; ours"
    on_gpu = prm_scoring.argparse.Namespace(device="cuda", **options)
    assert prm_scoring.reference_rows(rounds, on_gpu)[0].shown() == "1.00 x (1.00 to 1.00), 2 rounds"


def test_training_loads_the_shape_in_its_precision(script, tmp_path):
    prm_training = script("prm_training")
    task = {"directory": str(tmp_path), "model": str(tmp_path / "model"), "data": str(tmp_path), "seed": 0}
    task |= {"device": "cpu", "dtype": "bfloat16", "shape": "small", "num_rows": 48, "batch_size": 8}
    task |= {"max_length": 256, "gradient_checkpointing": False, "mode": "padding_free"}
    facts = prm_training.prepare(task)
    model, rows, _, arguments = prm_training.load(task)
    assert facts["num_parameters"] == model.num_parameters()
    assert (model.dtype, model.config.num_labels, model.config.hidden_size) == (torch.bfloat16, 2, 64)
    assert len(rows) == 48
    assert arguments["use_cpu"]
    assert not prm_training.load({**task, "device": "meta"})[3]["use_cpu"]

    run = prm_training.ours(task)
    assert len(run["losses"]) == 6
    assert run["padding"] == 0
    assert run["tokens_per_cpu_second"] > 0
    other = prm_training.ours({**task, "mode": "padded"})
    assert other["padding"] > 0.05
    assert prm_training.loss_gap(run, other) < 0.02  # the same model, rows and order
    report = {"settings": {**task, "ours": ["padding_free"], "num_threads": 1}, "facts": facts}
    trl = {**other, "tokens_per_cpu_second": run["tokens_per_cpu_second"] / 2, "peak_memory_mb": 1.0}
    measured = prm_training.measurements({**report, "rounds": [{"trl": trl, "padding_free": run}]})
    assert measured[0].shown() == "2.00 x"
    assert [row.measured.split(";")[0] for row in measured] == [
        *("useful tokens/s by processor time", "peak memory"),
        *("largest difference of a step's loss", "padding in the batches"),
    ]
    assert measured[2].value == prm_training.loss_gap(run, trl)


def test_rollouts_run_with_the_options_given(script, tmp_path, monkeypatch):
    rollouts = script("rollouts")
    options = (
        "--models tiny --dtype bfloat16 --prefix_lengths 8 --max_new_tokens 8 --tiny_prefixes 2 2 --num_samples 2"
    )
    output = ["--num_rounds", "2", "--memory_prefixes", "--output", str(tmp_path / "rollouts.json")]
    monkeypatch.setattr(sys, "argv", ["benchmarks/rollouts.py", *options.split(), *output])
    dtypes = []
    measure = rollouts.measure
    monkeypatch.setattr(
        rollouts, "measure", lambda side, model, *task: dtypes.append(model.dtype) or measure(side, model, *task)
    )
    rollouts.main()
    assert set(dtypes) == {torch.bfloat16}
    run = read_measurements(tmp_path / "rollouts_tiny.json")
    assert [row.setting for row in run.rows] == [
        "fixed lengths, prefixes of 8 tokens",
        "log-normal lengths, prefixes of 8 tokens",
    ]
    assert all("`tiny`" in row.measured and row.against.endswith("num_return_sequences=2)`") for row in run.rows)
    assert all(row.low <= row.value <= row.high and row.note == "2 rounds" for row in run.rows)
    assert run.command == f"python benchmarks/rollouts.py {options} --num_rounds 2 --memory_prefixes"
    assert json.loads((tmp_path / "rollouts_tiny.json").read_text())["machine"]["gpu"] is None


@pytest.mark.parametrize(("name", "behind"), [("tiny", ""), ("half", "; 4 of 24 layers"), ("0.5b", "")])
def test_rollouts_say_where_layers_are_missing(name, behind, script):
    rollouts = script("rollouts")
    model = rollouts.build(name, "meta", "bfloat16")[0]
    side = {"rollouts_per_cpu_second": 2.0}
    options = rollouts.argparse.Namespace(num_samples=2, dtype="bfloat16", device="cpu", num_threads=1)
    [row] = rollouts.speed_rows(model, name, 64, "fixed", [{"ours": side, "plain": side}], options)
    assert row.setting == f"fixed lengths, prefixes of 64 tokens{behind}"


@pytest.mark.parametrize(("name", "num_layers"), [("half", 4), ("0.5b", 24)])
def test_rollouts_build_the_shape(name, num_layers, script):
    model, tokenizer, text = script("rollouts").build(name, "meta", "bfloat16")
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.dtype) == (num_layers, 896, torch.bfloat16)
    ids = tokenizer(text(50))["input_ids"]
    assert len(ids) == 50
    assert len(set(ids)) > 40
    assert min(ids) > 1  # neither padding nor an end


def test_overhead_of_grpo_runs_with_the_options_given(script, tmp_path, monkeypatch):
    overhead = script("step_grpo_overhead")
    options = "--shape small --dtype bfloat16 --batch_size 8 --max_completion_length 4 --num_steps 1 --num_rounds 2"
    places = ["--data", str(tmp_path), "--output", str(tmp_path / "overhead.json")]
    monkeypatch.setattr(sys, "argv", ["benchmarks/step_grpo_overhead.py", *options.split(), *places])
    built = []
    monkeypatch.setattr(
        overhead, "build_on", lambda *args, **kwargs: built.append(build_on(*args, **kwargs)) or built[-1]
    )
    overhead.main()
    assert [(type(m).__name__, m.dtype, m.config.hidden_size) for m in built] == [
        ("Qwen2ForTokenClassification", torch.bfloat16, 64),
        *[("Qwen2ForCausalLM", torch.bfloat16, 64)] * 4,  # two rounds of two trainers
    ]
    more, own = read_measurements(tmp_path / "overhead.json").rows
    assert more.measured == "processor time of a step beyond GRPOTrainer's"
    assert more.setting == "8 completions of 4 tokens; 0.65M parameters, bfloat16"
    assert more.low <= more.value <= more.high and own.note == "2 rounds"
    assert more.value == pytest.approx((more.low + more.high) / 2, abs=0.01)


# Options that cannot be, before any work


@pytest.fixture
def refused(monkeypatch, capsys, script):
    """What a script says of options that it ends with; it must start no process and load no model."""

    def end(name: str, options: str) -> str:
        module = script(name)
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *options.split()])
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail(f"{name} has begun to work"))
        with pytest.raises(SystemExit) as error:
            module.main()
        assert error.value.code == 2
        return capsys.readouterr().err

    return end


@pytest.mark.parametrize("name", ["prm_scoring", "prm_training", "rollouts", "step_grpo_overhead"])
def test_a_device_that_is_not_there(name, refused, monkeypatch):
    needed = "--trl_python p " if name == "prm_training" else ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = refused(name, f"{needed}--device cuda")
    assert "argument --device: got 'cuda', but torch" in error and "sees no GPU here" in error
    assert "must be cpu, cuda or cuda:<number>, got 'gpu'" in refused(name, f"{needed}--device gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "sees 2 of them, from cuda:0 on, here" in refused(name, f"{needed}--device cuda:2")


def test_devices_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_here(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rft", "", "give one or more of --study, --overhead and --memory"),
        ("rft", "--seeds 1", "give one or more of --study, --overhead and --memory"),
        ("prm_scoring", "--num_layers 0", "--num_layers must be from 1 to 24, those of 0.5b, got 0"),
        ("prm_scoring", "--num_layers 3 --shape small", "--num_layers must be from 1 to 2, those of small, got 3"),
        ("prm_scoring", "--num_solutions 5", "--num_solutions must be a multiple of 32, .*got 5"),
        ("prm_scoring", "--num_solutions 0", "--num_solutions must be a multiple of 32, .*got 0"),
    ],
)
def test_options_that_would_do_nothing(name, options, message, refused):
    assert re.search(message, refused(name, options).replace("\n", " "))


# Results that a later run takes up


def test_rft_stores_where_an_arm_was_made(script, tmp_path, monkeypatch):
    """When it begins, and not when it is taken up."""
    rft = script("rft")
    monkeypatch.setattr(rft, "RFTTrainer", lambda *args, **kwargs: SimpleNamespace(train=lambda: [{"iteration": 0}]))
    task = SimpleNamespace(is_well_formed=None, dataset=lambda *args: None)
    prepared = SimpleNamespace(task=task, policy_dir=tmp_path)

    def run_at(machine: str) -> dict | None:
        monkeypatch.setattr(rft, "origin", lambda num_threads: {"machine": machine})
        rft.run_arm(prepared, tmp_path, 0, "random")
        return rft.stored_origin(tmp_path / "rft-random")

    assert run_at("first") == run_at("second") == {"machine": "first"}
    (tmp_path / "rft-random" / "origin.json").unlink()  # made before origins were stored
    assert run_at("third") is None


def test_grpo_takes_up_runs_with_their_machine(script, tmp_path, monkeypatch):
    step_grpo = script("step_grpo")
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    stages = importlib.import_module("stages")
    monkeypatch.setattr(stages, "prepare", lambda root, seed: SimpleNamespace(task=None))
    monkeypatch.setattr(step_grpo, "plot", lambda *args: None)
    curve = {"samples": [0, 16, 32], "accuracy": [0.25, 0.5, 0.75]}
    monkeypatch.setattr(step_grpo, "train", lambda *args: dict(curve))
    output = tmp_path / "f.json"
    options = ["--seeds", "0", "--methods", step_grpo.BASELINE, "--output_dir", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/step_grpo.py", *options])
    step_grpo.main()
    made = read_measurements(output)
    monkeypatch.setattr("_measurements.installed_versions", lambda: {"torch": "9.9"})  # the machine has changed since
    step_grpo.main()
    taken_up = read_measurements(output)
    assert (taken_up.seconds, taken_up.origin_known, taken_up.versions) == (None, True, made.versions)
    path = tmp_path / "seed-0" / "results.json"
    path.write_text(json.dumps({step_grpo.BASELINE: curve}))  # as before origins were stored
    step_grpo.main()
    taken_up = read_measurements(output)
    assert (taken_up.origin_known, taken_up.versions) == (False, {"torch": "9.9"})
