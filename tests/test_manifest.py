import copy
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch

from trl_erprm import manifest
from trl_erprm.manifest import (
    JsonlStore,
    checkpoint_to_resume,
    content_hash,
    finish_run,
    last_checkpoint,
    open_run,
    weight_files_fingerprint,
    weights_fingerprint,
    write_atomically,
)

CONFIG = {"num_rollouts": 16, "sampling": {"temperature": 1.0, "stop": ["\n\n"]}}


def test_content_hash_is_stable_across_versions_and_processes():
    # Stored runs are found by these values: they must never change.
    assert content_hash("4*3=", 7) == "88da6278c007fc375c5f77b43128b629bae6d310126fe7fae961e057e5bf8e17"
    code = "from trl_erprm.manifest import content_hash; print(content_hash('é', {'b': [1, None], 'a': 0.1}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {(content_hash("é", {"a": 0.1, "b": [1, None]}) + "\n").encode()}


@pytest.mark.parametrize(
    ("left", "right"),
    [(("ab", "c"), ("a", "bc")), ((1,), ("1",)), ((1,), (True,)), (([],), ()), (("a", "b"), (["a", "b"],))],
)
def test_content_hash_tells_different_content_apart(left, right):
    assert content_hash(*left) != content_hash(*right)


def test_content_hash_takes_any_text_and_refuses_objects():
    assert len(content_hash("\ud800")) == 64  # half a surrogate pair
    assert content_hash((1, 2)) == content_hash([1, 2])
    with pytest.raises(TypeError, match="must be text, numbers, None, lists or dictionaries"):
        content_hash({1, 2})


class TestOpenRun:
    def test_claims_an_absent_directory(self, tmp_path):
        assert open_run(tmp_path / "a" / "b", CONFIG, "label") is False
        found = json.loads((tmp_path / "a" / "b" / "manifest.json").read_text())
        assert found["kind"] == "label"
        assert found["config"] == CONFIG
        assert {"python", "torch", "transformers"} <= found["versions"].keys()
        assert found["started"].endswith("+00:00")

    def test_resumes_the_same_run(self, tmp_path):
        open_run(tmp_path, CONFIG, "label")
        before = (tmp_path / "manifest.json").read_bytes()
        (tmp_path / "rollouts-0.jsonl").write_text("")
        assert open_run(tmp_path, json.loads(json.dumps(CONFIG)), "label") is True
        assert (tmp_path / "manifest.json").read_bytes() == before

    def test_tuples_equal_lists_and_nan_equals_nan(self, tmp_path):
        open_run(tmp_path, {"stop": ("a",), "x": float("nan"), "eta": float("inf")}, "label")
        assert open_run(tmp_path, {"stop": ["a"], "x": float("nan"), "eta": float("inf")}, "label") is True

    def test_refuses_another_config_and_names_each_difference(self, tmp_path):
        open_run(tmp_path, {**CONFIG, "old": 1}, "label")
        changed = {"num_rollouts": 8, "sampling": {"temperature": 1.0, "stop": []}, "new": None}
        with pytest.raises(ValueError) as caught:
            open_run(tmp_path, changed, "label")
        message = str(caught.value)
        assert "`num_rollouts` is 16 there and 8 now" in message
        assert "`sampling.stop` is ['\\n\\n'] there and [] now" in message
        assert "`old` is 1 there and absent now" in message
        assert "`new` is absent there and None now" in message
        assert "temperature" not in message
        assert "Pass another `output_dir`" in message

    def test_true_is_not_one(self, tmp_path):
        open_run(tmp_path, {"x": 1}, "label")
        with pytest.raises(ValueError, match="`x` is 1 there and True now"):
            open_run(tmp_path, {"x": True}, "label")

    def test_refuses_another_kind(self, tmp_path):
        open_run(tmp_path, CONFIG, "label")
        with pytest.raises(ValueError, match="holds a run of kind 'label', not 'rft'. Pass another `output_dir`"):
            open_run(tmp_path, CONFIG, "rft")

    def test_refuses_a_directory_with_other_files(self, tmp_path):
        for name in "abcdefg":
            (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=r"holds other files \(a, b, c, d, e and 2 more\) and no manifest.json"):
            open_run(tmp_path, CONFIG, "label")
        assert not (tmp_path / "manifest.json").exists()

    def test_refuses_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="must be a directory, got the file"):
            open_run(tmp_path / "file", CONFIG, "label")

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "label"}', '{"kind": "label", "config": 1}', "\xff"])
    def test_refuses_a_broken_manifest(self, tmp_path, text):
        (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match="must be a manifest with `kind` and `config`"):
            open_run(tmp_path, CONFIG, "label")

    def test_refuses_a_config_that_is_not_json(self, tmp_path):
        with pytest.raises(TypeError, match="`config` must hold plain JSON values"):
            open_run(tmp_path, {"model": object()}, "label")
        assert list(tmp_path.iterdir()) == []

    def test_a_kill_while_claiming_leaves_a_directory_that_can_be_claimed(self, tmp_path, monkeypatch):
        def killed(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            open_run(tmp_path, CONFIG, "label")
        monkeypatch.undo()
        assert not (tmp_path / "manifest.json").exists()
        (tmp_path / ".manifest.json.tmp").write_text("{")  # what a kill without clean-up leaves
        assert open_run(tmp_path, CONFIG, "label") is False

    def test_warns_of_other_package_versions(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(manifest, "_package_versions", lambda: {"torch": "2.6.0"})
        open_run(tmp_path, CONFIG, "label")
        monkeypatch.setattr(manifest, "_package_versions", lambda: {"torch": "2.13.0"})
        assert open_run(tmp_path, CONFIG, "label") is True
        assert "other package versions (torch 2.6.0 -> 2.13.0)" in caplog.text


def test_write_atomically_keeps_the_old_text_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def fails(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


class TestJsonlStore:
    @pytest.fixture
    def store(self, tmp_path):
        return JsonlStore(tmp_path / "rollouts-0.jsonl")

    def test_gives_back_what_was_appended_in_order(self, store):
        first, second = {"text": "é\n\u2028\ud83d", "n": 1}, {"x": [None, 0.1]}
        store.append([first])
        store.append([second, {}])
        assert store.read() == [first, second, {}]
        assert store.path.read_bytes().count(b"\n") == 3

    def test_absent_file_and_empty_batch(self, store):
        assert store.read() == []
        store.append([])
        assert not store.path.exists()

    def test_every_torn_end_is_left_out_and_never_glued_to_the_next_record(self, store):
        """Cut a file of two records at every byte, as a kill could; then go on."""
        records = [{"prefix": "a", "num": 11}, {"prefix": "é", "num": 22}]
        store.append(records)
        whole = store.path.read_bytes()
        end_of_first = whole.index(b"\n") + 1
        for cut in range(len(whole) + 1):
            store.path.write_bytes(whole[:cut])
            expected = records[: (cut >= end_of_first) + (cut == len(whole))]
            assert store.read() == expected, cut
            store.append([{"new": cut}])
            assert store.read() == [*expected, {"new": cut}], cut

    def test_a_torn_end_longer_than_the_window_of_the_search(self, store):
        store.append([{"a": 1}])
        with open(store.path, "ab") as file:
            file.write(b"x" * 200_000)
        assert store.read() == [{"a": 1}]
        store.append([{"b": 2}])
        assert store.path.read_bytes() == b'{"a":1}\n{"b":2}\n'

    def test_reading_does_not_change_the_file(self, store):
        store.path.write_bytes(b'{"a":1}\n{"b"')
        store.read()
        assert store.path.read_bytes() == b'{"a":1}\n{"b"'

    @pytest.mark.parametrize("line", [b"", b"{", b"\x00\x00", b"[1]", b"\xff", b'{"a":1}{"b":2}'])
    def test_damage_within_is_an_error_with_the_line_number(self, store, line):
        store.path.write_bytes(b'{"a":1}\n' + line + b'\n{"c":3}\n')
        with pytest.raises(ValueError, match="Line 2 of .* must be a JSON object, got"):
            store.read()

    def test_a_complete_but_broken_last_line_is_damage_as_well(self, store):
        store.path.write_bytes(b'{"a":1}\n{"b"\n')
        with pytest.raises(ValueError, match="Line 2 of"):
            store.read()

    def test_a_failed_write_leaves_the_file_as_it_was(self, store, monkeypatch):
        store.append([{"a": 1}])
        before = store.path.read_bytes()

        def fails(descriptor):
            raise OSError("disk full")

        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="disk full"):
            store.append([{"b": 2}])
        assert store.path.read_bytes() == before

    def test_nothing_of_a_batch_is_written_if_one_record_is_not_json(self, store):
        with pytest.raises(TypeError, match="A record must be a dictionary, got 3"):
            store.append([{"a": 1}, 3])
        with pytest.raises(TypeError):
            store.append([{"a": 1}, {"b": object()}])
        assert not store.path.exists()

    def test_one_sync_a_batch(self, store, monkeypatch):
        store.append([{"a": 0}])
        calls = []
        sync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append(descriptor), sync(descriptor)))
        store.append({"a": i} for i in range(100))
        assert len(calls) == 1
        assert len(store.read()) == 101

    def test_survives_being_killed_at_any_moment(self, store):
        """A process that appends is killed at several moments: whole batches are there, in order, and nothing else."""
        code = (
            "import sys; from trl_erprm.manifest import JsonlStore; s = JsonlStore(sys.argv[1])\n"
            "n = len(s.read())\n"
            "print(n, flush=True)\n"
            "while True: s.append([{'n': n, 'text': 'x' * 5000}]); n += 1"
        )
        read = 0
        for _ in range(3):
            process = subprocess.Popen([sys.executable, "-c", code, str(store.path)], stdout=subprocess.PIPE)
            assert int(process.stdout.readline()) == read
            while not store.path.exists() or store.path.stat().st_size < (read + 20) * 5000:
                assert process.poll() is None
            process.kill()
            process.wait()
            process.stdout.close()
            numbers = [record["n"] for record in store.read()]
            assert numbers == list(range(len(numbers)))
            assert len(numbers) >= read
            read = len(numbers)


def test_weights_fingerprint_sees_a_change_in_a_large_matrix_alone():
    """As merging an adapter does: norms and biases stay, every projection moves."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1500, 1500), torch.nn.LayerNorm(1500))
    same = copy.deepcopy(model)
    assert weights_fingerprint(model) == weights_fingerprint(same)
    with torch.no_grad():
        same[0].weight += 1e-3 * torch.randn(1500, 1500)
    assert weights_fingerprint(model) != weights_fingerprint(same)
    assert weights_fingerprint(model) != weights_fingerprint(torch.nn.Sequential(model[1], model[0]))


def test_weight_files_fingerprint_names_the_weights_and_not_the_directory(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    data = bytearray(random.Random(0).randbytes(5_000_000))
    (first / "model.safetensors").write_bytes(data)
    (first / "config.json").write_text("{}")
    name = weight_files_fingerprint(first)
    copied = shutil.copytree(first, tmp_path / "copy", copy_function=shutil.copyfile)
    (copied / "config.json").write_text("{ }")
    assert weight_files_fingerprint(copied) == name
    # as large, and a stretch of it changed
    for start in (0, 2_345_678, 4_980_000):
        changed = data.copy()
        changed[start : start + 20_000] = bytes(20_000)
        (copied / "model.safetensors").write_bytes(changed)
        assert weight_files_fingerprint(copied) != name, start
    (copied / "model.safetensors").write_bytes(data)
    (copied / "model-2.safetensors").write_bytes(b"")
    assert weight_files_fingerprint(copied) != name
    (first / "model.safetensors").unlink()
    assert weight_files_fingerprint(first) is weight_files_fingerprint(tmp_path / "missing") is None


def test_a_finished_run_is_still_that_run(tmp_path):
    open_run(tmp_path, {"a": 1}, kind="label")
    before = json.loads((tmp_path / "manifest.json").read_text())
    finish_run(tmp_path, results={"seconds": 1.5})
    finish_run(tmp_path, results={"seconds": 2.5})
    after = json.loads((tmp_path / "manifest.json").read_text())
    assert after.pop("results") == {"seconds": 2.5} and after.pop("finished") >= before["started"]
    assert after == before
    assert open_run(tmp_path, {"a": 1}, kind="label")


@pytest.fixture
def checkpoints(tmp_path):
    """Steps 2 and 10 are written whole, of step 12 the state is missing."""
    for step, is_whole in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if is_whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-best" / "trainer_state.json").write_text("{}")
    return tmp_path


def test_the_last_whole_checkpoint(checkpoints):
    assert last_checkpoint(checkpoints) == str(checkpoints / "checkpoint-10")
    assert last_checkpoint(checkpoints / "none") is None


def test_checkpoint_to_resume(checkpoints):
    assert checkpoint_to_resume(checkpoints) == str(checkpoints / "checkpoint-10")
    assert checkpoint_to_resume(checkpoints / "none") is None
    first = str(checkpoints / "checkpoint-2")
    assert checkpoint_to_resume(checkpoints, first) == checkpoint_to_resume(checkpoints / "none", first) == first
    for name, why in (("checkpoint-3", "is no directory"), ("checkpoint-12", "has no trainer_state.json")):
        message = f"`resume_from_checkpoint` must be .*{name}', which {why}. .* holds checkpoint-2, checkpoint-10. N"
        with pytest.raises(ValueError, match=message):
            checkpoint_to_resume(checkpoints, str(checkpoints / name))
    with pytest.raises(ValueError, match="holds none"):
        checkpoint_to_resume(checkpoints / "none", "outputs/checkpoint-3")
