"""Where the study runs: its devices, and a harder task for them; all of it on a tiny task of that kind."""

import doctest
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.study import __main__ as command
from benchmarks.study import devices, figures, measures, policies, prms, report, runner
from benchmarks.study.config import PARTS, StudyConfig, read_config
from benchmarks.study.pool import Pool
from benchmarks.study.units import Unit, list_units
from trl_erprm.arithmetic import VALUES, ArithmeticTask, build_model, build_tokenizer
from trl_erprm.manifest import content_hash

STUDY = Path(__file__).resolve().parents[2] / "benchmarks" / "study"
TINY = {
    "modulus": 13,
    "num_operations": 2,
    "num_distractors": 1,
    "num_train": 2000,
    "num_validation": 1,
    "num_test": 20,
    "hidden_size": 32,
    "num_layers": 2,
    "policy_steps": 400,
    "policy_batch_size": 64,
    "policy_learning_rate": 1.0e-2,
}


class Asked(Exception):
    """Ends a unit where its device has been handed on."""


@pytest.fixture
def on_gpu(monkeypatch, tmp_path) -> StudyConfig:
    """The study for a GPU, where torch says that there is one that has bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    return read_config(STUDY / "gpu.yaml", output_dir=str(tmp_path / "study"))


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_examples():
    assert doctest.testmod(devices, optionflags=doctest.NORMALIZE_WHITESPACE) == (0, 1)


# The config


def test_config_for_a_gpu_has_the_same_settings(on_gpu):
    full, own = (yaml.safe_load((STUDY / name).read_text()) for name in ("config.yaml", "gpu.yaml"))
    assert own.keys() - full.keys() == {"device"}
    for name in ("labeling", "prm", "best_of_n", "rft", "grpo"):
        assert full[name].keys() == own[name].keys(), name
    assert len(on_gpu.seeds) >= 3
    task, policy = on_gpu.task("hard", seed=20), on_gpu.policy("hard")
    model = build_model(policy["hidden_size"], policy["num_layers"], task=task)
    assert 10e6 < sum(parameter.numel() for parameter in model.parameters()) < 15e6
    right = np.mean([task.exact_value(problem) for problem in task.problems("test")])
    assert right == pytest.approx(0.53, abs=0.05)  # as the file says
    units = list_units(on_gpu, PARTS)
    assert [sum(unit.kind == kind for unit in units) for kind in ("labels", "prm", "rft", "grpo")] == [3, 39, 15, 15]


@pytest.mark.parametrize(
    ("name", "difficulty", "expected"),
    [
        ("config.yaml", "default", "d82abd7362c2b975"),
        ("config.yaml", "long", "b3d0d8803d060835"),
        ("small.yaml", "default", "35ee51e26af8b29a"),
    ],
)
def test_what_a_study_on_a_cpu_is_does_not_change_between_versions(name, difficulty, expected):
    """Directories of studies rest on it: where this fails, they cannot go on."""
    config = read_config(STUDY / name)
    assert config.device == "cpu"
    assert content_hash(config.identity(difficulty))[:16] == expected
    on_gpu = read_config(STUDY / name, device="cuda").identity(difficulty)
    assert on_gpu == {**config.identity(difficulty), "device": "cuda"}


def test_fields_of_the_policy():
    config = read_config(STUDY / "small.yaml", difficulties={"hard": TINY, "default": {"policy_steps": 600}})
    assert config.policy("default") == {"num_steps": 600}
    assert config.policy("hard") == {
        "num_steps": 400,
        "batch_size": 64,
        "learning_rate": 1e-2,
        "hidden_size": 32,
        "num_layers": 2,
    }
    task = config.task("hard", seed=4)
    assert (task.modulus, task.num_distractors, task.seed) == (13, 1, 4)
    assert config.task("default", seed=0).num_distractors == 0


@pytest.mark.parametrize(("num_operations", "num_distractors"), [(5, 0), (8, 3), (20, 3), (30, 0)])
def test_rows_are_long_enough(num_operations, num_distractors):
    settings = {"modulus": 31, "num_operations": num_operations, "num_distractors": num_distractors}
    config = read_config(STUDY / "small.yaml", difficulties={"hard": settings})
    task = config.task("hard", seed=0)
    tokenizer, problem = build_tokenizer(task), task.problems("test")[0]
    num_tokens = [len(tokenizer(text)["input_ids"]) for text in (f"{problem}\n", "\n".join(task.solve(problem)))]
    assert num_tokens[1] == config.max_new_tokens("hard") - 10
    assert config.max_length("hard") == max(128, sum(num_tokens) + 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "gpu"}, "`device` must be one of 'cpu', 'cuda', got 'gpu'"),
        ({"difficulties": {"hard": {"hidden": 64}}}, "'hard' holds hidden, but may hold modulus, .*hidden_size"),
        ({"difficulties": {"hard": {"seed": 1}}}, "'hard' holds seed, but may hold modulus"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(STUDY / "small.yaml", **changes)


# Devices


def test_trainer_arguments(on_gpu, monkeypatch):
    on_cpu = devices.trainer_arguments("cpu")
    assert on_cpu["use_cpu"] is True and on_cpu["bf16"] is False
    on_cuda = devices.trainer_arguments("cuda")
    assert on_cuda == {**on_cpu, "use_cpu": False, "bf16": True}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert devices.trainer_arguments("cuda") == {**on_cpu, "use_cpu": False}


@pytest.mark.parametrize(("device", "precision"), [("cpu", []), ("cuda", ["high"])])
def test_processes(device, precision, monkeypatch):
    threads, precisions = [], []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    devices.prepare_process(device)
    assert (threads, precisions) == ([1], precision)


@pytest.mark.parametrize(("device", "released"), [("cpu", []), ("cuda", [True, True])])
@pytest.mark.parametrize("fails", [False, True])
def test_memory_is_given_back_behind_each_unit(device, released, fails, on_gpu, monkeypatch):
    def work(config, unit):
        if fails:
            raise RuntimeError("out of memory")
        return {}

    found = []
    monkeypatch.setattr(devices.gc, "collect", lambda: found.append(True))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append(True))
    monkeypatch.setattr(prms, "make_labels", work)
    unit = Unit("labels", "hard", 20)
    error = runner.run_unit(replace(on_gpu, device=device), unit)
    assert ("out of memory" in error) is fails
    assert unit.path(on_gpu.output_dir).exists() is not fails
    assert found == released


def test_without_matplotlib_there_are_tables(tmp_path, monkeypatch, capsys):
    config = read_config(STUDY / "small.yaml", output_dir=str(tmp_path / "study"))
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    assert "What it took" in report.write_report(config).read_text()
    assert "matplotlib is missing" in capsys.readouterr().out


def test_without_a_gpu_nothing_is_begun(no_gpu, tmp_path, monkeypatch, capsys):
    def run_units(*_):
        raise AssertionError("begun")

    monkeypatch.setattr(command, "run_units", run_units)
    root = tmp_path / "study"
    for arguments in (
        ["--config", str(STUDY / "gpu.yaml")],
        ["--config", str(STUDY / "small.yaml"), "--device", "cuda"],
    ):
        with pytest.raises(SystemExit) as ended:
            command.main([*arguments, "--output_dir", str(root)])
        assert ended.value.code == 2
        assert '`device` is "cuda", but torch' in capsys.readouterr().err
        assert not root.exists()


def test_every_unit_runs_on_the_device(on_gpu, monkeypatch):
    """What each unit hands on, up to where a GPU would be needed."""
    asked = []

    def ask(*args, **kwargs):
        asked.append(kwargs if kwargs else args[-1])
        raise Asked

    root = Unit("labels", "hard", 20).directory(on_gpu.output_dir)
    (root / "labels").mkdir(parents=True)
    (root / "labels" / "labels.jsonl").write_text("")
    problem = on_gpu.task("hard", 20).problems("test")[0]
    Pool.of_texts(on_gpu.task("hard", 20), [problem], [["#1"]]).save(root / "pool.json")
    monkeypatch.setattr(prms, "train_policy", ask)
    monkeypatch.setattr(prms, "ERPRMConfig", ask)
    monkeypatch.setattr(policies, "RFTConfig", ask)
    monkeypatch.setattr(policies, "StepGRPOConfig", ask)
    monkeypatch.setattr(measures, "load_policy_engine", ask)
    monkeypatch.setattr(measures.ProcessRewardModel, "from_pretrained", ask)
    unit = Unit("prm", "hard", 20, "soft", 16)
    for work in (
        prms.make_labels,
        prms.train_prm,
        policies.run_rft,
        policies.run_grpo,
        measures.make_pool,
        measures.measure_prm,
    ):
        with pytest.raises(Asked):
            work(on_gpu, unit)
    policy, prm, rft, grpo, pool, scorer = asked
    assert policy == {"seed": 20, "device": "cuda", "bf16": True, **on_gpu.policy("hard")}
    for args in (prm, rft, grpo):
        assert args["use_cpu"] is False and args["bf16"] is True
    assert prm["max_length"] == rft["max_length"] == on_gpu.max_length("hard")
    assert rft["generation_batch_size"] == devices.BATCH_SIZES["cuda"].generation
    assert pool == "cuda"
    assert scorer == {"device": "cuda", "dtype": "float32"}
    monkeypatch.setattr(policies, "ProcessReward", ask)
    with pytest.raises(Asked):
        policies._process_reward(on_gpu, unit)
    assert (asked[-1]["device"], asked[-1]["batch_size"]) == ("cuda", devices.BATCH_SIZES["cuda"].scoring)


def test_the_policy_that_samples_is_on_the_device(tmp_path, monkeypatch):
    """On torch's device without memory, as there is no GPU."""
    task = ArithmeticTask(modulus=3, num_operations=2, num_train=2, num_validation=1, num_test=1)
    build_model(32, 1, task=task).save_pretrained(tmp_path / "policy")
    build_tokenizer(task).save_pretrained(tmp_path / "policy")
    monkeypatch.setitem(devices.BATCH_SIZES, "meta", devices.BatchSizes(generation=3, scoring=1, chunk=1))
    engine = prms.load_policy_engine(tmp_path, "meta")
    assert {parameter.device.type for parameter in engine.model.parameters()} == {"meta"}
    assert engine.batch_size == 3
    on_cpu = prms.load_policy_engine(tmp_path, "cpu")
    assert {parameter.device.type for parameter in on_cpu.model.parameters()} == {"cpu"}


# All of it, on a harder task


def test_a_tiny_study_of_a_harder_task(no_gpu, tmp_path, monkeypatch, capsys):
    values = yaml.safe_load((STUDY / "gpu.yaml").read_text())
    values |= {"output_dir": str(tmp_path / "study"), "seeds": [0], "num_rollouts": [4]}
    values |= {"labels": ["soft"], "policy_labels": ["soft"], "difficulties": {"hard": TINY}}
    values["labeling"] |= {"num_prompts": 500, "solutions_per_prompt": 2}
    values["prm"] |= {"num_train_epochs": 15, "warmup_steps": 10, "learning_rate": 5e-3}
    values["best_of_n"] |= {"num_problems": 20, "num_candidates": 8, "sizes": [4, 8]}
    values["rft"] |= {"num_eval_problems": 8, "num_iterations": 1, "prompts_per_iteration": 16, "num_samples": 2}
    values["grpo"] |= {"num_eval_problems": 8, "num_generations": 2, "max_steps": 2, "eval_steps": 1}
    values["grpo"] |= {"per_device_train_batch_size": 4, "num_generations_eval": 1}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(runner, "ProcessPoolExecutor", lambda num_jobs, *_: ThreadPoolExecutor(num_jobs))
    for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")  # set back at the end: the command changes them

    assert command.main(["--config", str(path), "--device", "cpu"]) == 0, capsys.readouterr().out
    root = tmp_path / "study" / "hard" / "seed-0"
    units = {file.stem: json.loads(file.read_text()) for file in (root / "units").glob("*.json")}
    assert set(units) == {"labels", "pool", *(f"{kind}-soft-4" for kind in ("prm", "scores", "rft", "grpo"))}
    assert "device" not in json.loads((root.parent / "manifest.json").read_text())["config"]

    model = AutoModelForCausalLM.from_pretrained(root / "policy")
    task = read_config(path, device="cpu").task("hard", 0)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 2)
    assert len(AutoTokenizer.from_pretrained(root / "policy")) == len(build_tokenizer(task)) == model.vocab_size
    rows = [json.loads(line) for line in (root / "labels" / "labels.jsonl").read_text().splitlines()]
    assert all(row["prompt"].count("?") == 1 and row["prompt"].count("\n") == 2 for row in rows)
    # answers that are letters are read and compared, and the policy has learnt which line is asked for
    by_letter = [row["outcome"] or 0.0 for row in rows if row["answer"] in VALUES[10:]]
    assert len(by_letter) > 100 and np.mean(by_letter) > 0.25
    assert units["labels"]["unparsed_share"] < 0.1
    assert units["labels"]["share_error"]["4"] < 0.4
    pool = Pool.load(root / "pool.json", task)
    assert pool.is_correct.mean() == units["pool"]["sampled"] > 0.4
    assert units["pool"]["malformed"] < 0.3
    assert set(VALUES[10:13]) <= {answer for answers in pool.answers for answer in answers}
    assert units["scores-soft-4"]["step_auroc"] > 0.6
    assert units["rft-soft-4"]["history"][0]["sampled"] > 0.4
    assert units["grpo-soft-4"]["history"][0]["sampled"] > 0.2

    # fewer rollouts, asked for afterwards, need no rollout
    path.write_text(yaml.safe_dump({**values, "num_rollouts": [4, 2]}))
    assert command.main(["--config", str(path), "--report_only"]) == 0
    report_path = tmp_path / "study" / "report.md"
    error = f"{units['labels']['share_error']['4']:.3f}"
    assert f"| {error}, not measured |" in report_path.read_text()
    assert command.main(["--config", str(path), "--device", "cpu", "--parts", "labels"]) == 0
    labels = json.loads((root / "units" / "labels.json").read_text())
    assert {**labels, "share_error": units["labels"]["share_error"]} == units["labels"]
    errors = labels["share_error"]
    assert errors["4"] == units["labels"]["share_error"]["4"] < errors["2"]
    assert f"| {error}, {errors['2']:.3f} |" in report_path.read_text()
