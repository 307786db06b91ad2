"""`trl_erprm.policy.rft_run`, `rft_training` and `rft_weights`: files that were cut off, damaged or of another run."""

import json
import tracemalloc

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.policy.rft_runs import read_parquet
from trl_erprm.policy.rft_run import Records, remove_directory, write_selection
from trl_erprm.policy.rft_training import FilledRandomSampler, LossMeter, with_fillers
from trl_erprm.policy.rft_weights import load_weights
from trl_erprm.policy.selection import SelectionRule


class TestRecords:
    def test_of_any_number_of_processes(self, tmp_path):
        """Process 10 appeared after a first run with three: positions taken before still hold."""
        records = Records(tmp_path, "samples")
        records.store(2).append([{"index": 3, "x": "c"}, {"index": 0, "x": "a"}])
        records.store(0).append([{"index": 4, "x": "d"}])
        before = records.positions(6)
        records.store(10).append([{"index": 1, "x": "b"}])
        assert [r["x"] for r in records.read(before[[0, 3, 4]])] == ["a", "c", "d"]
        assert [r["x"] for r in records.read(records.positions(6)[[4, 1, 0]])] == ["d", "b", "a"]
        assert (records.positions(6) < 0).tolist() == [False, False, True, False, False, True]

    def test_a_torn_line_does_not_count(self, tmp_path):
        records = Records(tmp_path, "samples")
        records.store(0).append([{"index": 0, "x": 1}, {"index": 1, "x": 1}])
        with open(records.store(0).path, "ab") as file:
            file.write(b'{"index":2,"comple')
        assert (records.positions(3) >= 0).tolist() == [True, True, False]
        records.store(0).append([{"index": 2, "x": 1}])
        assert [r["index"] for r in records.read(records.positions(3))] == [0, 1, 2]

    @pytest.mark.parametrize("line", [b'{"other":1,"x":2}\n', b'{"index":9,"x":2}\n', b"\xff\n"])
    def test_records_of_another_run(self, tmp_path, line):
        (tmp_path / "samples-0.jsonl").write_bytes(line)
        with pytest.raises(
            ValueError, match="must hold records of the run's 3 prompts, got .* delete the iteration's"
        ):
            Records(tmp_path, "samples").positions(3)


def store(directory, num_prompts, num_samples=4, length=1000):
    """Records of a phase that is complete."""
    directory.mkdir()
    for i in range(num_prompts):
        texts = [f"{i}+{j}\n" + "x" * length for j in range(num_samples)]
        sample = {
            "index": i,
            "completions": texts,
            "num_tokens": [9] * num_samples,
            "truncated": [False] * num_samples,
        }
        scores = [float((i + j) % num_samples) for j in range(num_samples)]
        Records(directory, "samples").store(i % 2).append([sample])
        Records(directory, "scores").store(i % 2).append([{"index": i, "scores": scores, "by_scorer": [scores]}])


def test_selection_streams(tmp_path, monkeypatch):
    """The memory of a selection does not grow with the completions: some bytes a prompt say where its line is."""
    monkeypatch.setattr("trl_erprm.policy.rft_run.ROWS_AT_ONCE", 64)
    peaks = []
    for num_prompts in (40, 400):
        directory = tmp_path / str(num_prompts)
        store(directory, num_prompts)
        prompts = Dataset.from_dict({"prompt": [f"{i}\n" for i in range(num_prompts)]})
        tracemalloc.start()
        summary = write_selection(directory, prompts, range(num_prompts), ["length"], SelectionRule(), seed=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary["num_selected"] == num_prompts and summary["reward"] == 3.0
        rows = read_parquet(directory / "selection.parquet")
        assert [row["sample"] for row in rows] == [(3 - i) % 4 for i in range(num_prompts)]
        assert json.loads((directory / "selection.json").read_text()) == summary
    texts = 360 * 4 * 1000  # characters of the completions that the second selection has more
    assert peaks[1] - peaks[0] < 0.1 * texts


def test_messages_are_kept_as_messages(tmp_path):
    store(tmp_path / "run", 2)
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": f"{i}"}]} for i in range(2)])
    write_selection(tmp_path / "run", prompts, range(2), ["length"], SelectionRule(), seed=0)
    [row, _] = read_parquet(tmp_path / "run" / "selection.parquet")
    assert row["prompt"] == [{"role": "user", "content": "0"}]
    assert row["completion"] == [{"role": "assistant", "content": "0+3\n" + "x" * 1000}]


def test_remove_directory(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("")
    (tmp_path / ".model.removed").mkdir()  # what a kill in the middle of it has left
    remove_directory(tmp_path / "model")
    remove_directory(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


class TestTraining:
    def test_fillers_hold_nothing_to_learn(self):
        rows = Dataset.from_dict({"input_ids": [[1, 2], [3]], "labels": [[-100, 2], [3]]})
        filled = with_fillers(rows, 3)
        assert filled["input_ids"][:] == [[1, 2], [3]] + [[1, 2]] * 3
        assert filled["labels"][:] == [[-100, 2], [3]] + [[-100, -100]] * 3
        assert with_fillers(rows, 0) is rows

    def test_the_order_is_that_of_one_process(self):
        torch.manual_seed(5)
        sampler = FilledRandomSampler(5, 3)
        first, second = list(sampler), list(sampler)
        assert len(sampler) == 8 and first[5:] == second[5:] == [5, 6, 7]
        assert sorted(first[:5]) == sorted(second[:5]) == list(range(5)) and first != second
        sampler.set_epoch(0)
        assert list(sampler) == first

    def test_loss_meter(self, tmp_path):
        meter = LossMeter()
        meter.add(torch.tensor(0.5))
        meter.add(torch.tensor(0.25))
        state = {"stateful_callbacks": {"LossMeter": meter.state()}}
        (tmp_path / "trainer_state.json").write_text(json.dumps(state))
        other = LossMeter()
        other.read(str(tmp_path))
        assert float(other.total) == 0.75


class TestWeights:
    def test_in_place(self, tiny_policy):
        model = AutoModelForCausalLM.from_pretrained(tiny_policy[1])
        saved = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        load_weights(model, tiny_policy[1], Accelerator())
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())

    def test_of_another_model(self, tiny_policy, tmp_path):
        from trl_erprm.arithmetic import build_model

        build_model(num_layers=3).save_pretrained(tmp_path / "deep")
        build_model(num_layers=1).save_pretrained(tmp_path / "flat")
        build_model(hidden_size=32).save_pretrained(tmp_path / "thin")
        model = AutoModelForCausalLM.from_pretrained(tiny_policy[1])
        with pytest.raises(ValueError, match="holds the weight 'model.layers.2.*, which the policy does not have"):
            load_weights(model, tmp_path / "deep", Accelerator())
        with pytest.raises(ValueError, match="lacks the weight 'model.layers.1.* of the policy"):
            load_weights(model, tmp_path / "flat", Accelerator())
        with pytest.raises(ValueError, match="A saved weight has the shape"):
            load_weights(model, tmp_path / "thin", Accelerator())
        with pytest.raises(ValueError, match="has no model.safetensors: the policy of this iteration was removed"):
            load_weights(model, tmp_path, Accelerator())
