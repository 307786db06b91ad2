"""Runs on disk: files, continuing, shards, and what is refused."""

import json
import random
import threading
from dataclasses import replace

import pytest
from datasets import Dataset

from tests.distributed.launch import launch
from tests.labeling.test_monte_carlo import CONFIG, BernoulliEngine, rows
from tests.rollout.test_transformers_engine import make_model, make_tokenizer
from trl_erprm.labeling import MonteCarloLabeler, monte_carlo, relabel
from trl_erprm.rollout import Completion, load_engine, recorded


def untimed(lines: bytes) -> list[str]:
    """Records without what differs from run to run."""
    records = map(json.loads, lines.splitlines())
    return [json.dumps({name: value for name, value in r.items() if name != "seconds"}) for r in records]


class TestDirectory:
    GIVEN = [{"prompt": f"p{i % 5}", "completions": ["a", f"b{i}", "c", "#1"], "id": i} for i in range(8)]

    def engine(self):
        return BernoulliEngine(lambda prefix: 0.6 if "b3" in prefix.completion else 0.3)

    def test_files(self, tmp_path):
        labeler = MonteCarloLabeler(self.engine(), CONFIG, policy_name="policy@main")
        result = labeler.label(rows(*self.GIVEN), tmp_path / "run")
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
            "labels.jsonl", "labels.png", "manifest.json", "report.md", "rollouts-0.jsonl", "summary.json",
        ]  # fmt: skip
        assert (
            Dataset.from_json(str(tmp_path / "run" / "labels.jsonl"), cache_dir=str(tmp_path)).to_list()
            == result.to_list()
        )
        assert json.loads((tmp_path / "run" / "summary.json").read_text()) == labeler.summary
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        config, versions = manifest["config"], manifest["versions"]
        assert config["policy_name"] == "policy@main" and config["num_rollouts"] == 4 and "eta" not in config
        assert config["seed"] == 0 and versions.keys() >= {"python", "torch", "transformers", "trl", "scipy"}
        assert manifest["engine"] == {"engine": "BernoulliEngine"} and manifest["started"] <= manifest["finished"]
        assert manifest["results"].items() <= labeler.summary.items()
        assert {"num_rollouts", "num_tokens", "num_solution_tokens", "seconds"} <= manifest["results"].keys()

    @pytest.mark.parametrize("fail_after", [0, 1, 5, 10])
    def test_an_interrupted_run_continues_and_pays_nothing_twice(self, tmp_path, fail_after):
        expected = MonteCarloLabeler(self.engine(), CONFIG).label(rows(*self.GIVEN))
        first = self.engine()
        generate = first.generate
        calls = []

        def failing(*args, **kwargs):
            calls.append(args)
            if len(calls) > fail_after:
                raise KeyboardInterrupt
            return generate(*args, **kwargs)

        first.generate = failing
        with pytest.raises(KeyboardInterrupt):
            MonteCarloLabeler(first, CONFIG).label(rows(*self.GIVEN), tmp_path)
        assert not (tmp_path / "labels.jsonl").exists()
        assert len(first.samples) == fail_after * 2 * 4
        second = self.engine()
        labeler = MonteCarloLabeler(second, CONFIG)
        result = labeler.label(rows(*self.GIVEN), tmp_path)
        assert result.to_list() == expected.to_list()
        samples = first.samples + second.samples
        assert len(samples) == len(set(samples)) == 21 * 4
        assert labeler.summary["num_rollouts"] == 21 * 4
        assert labeler.summary["num_new_rollouts"] == len(second.samples)

    def test_seconds_and_rates_are_those_of_all_calls(self, monkeypatch, tmp_path):
        """A clock that each engine call puts forward by 2 seconds: 11 calls, of which 5 before the interruption."""
        now = 100.0
        monkeypatch.setattr(recorded, "perf_counter", lambda: now)

        class Timed(BernoulliEngine):
            left = 5

            def generate(self, *args, **kwargs):
                nonlocal now
                if not self.left:
                    raise KeyboardInterrupt
                self.left -= 1
                now += 2.0
                return super().generate(*args, **kwargs)

        engine = Timed(lambda prefix: 0.3)
        with pytest.raises(KeyboardInterrupt):
            MonteCarloLabeler(engine, CONFIG).label(rows(*self.GIVEN), tmp_path)
        now += 1000.0  # between the calls
        engine.left = 11
        labeler = MonteCarloLabeler(engine, CONFIG)
        labeler.label(rows(*self.GIVEN), tmp_path)
        assert labeler.summary["seconds"] == 22.0 and labeler.summary["rollouts_per_second"] == 84 / 22
        assert labeler.summary["num_new_rollouts"] == 84 - 5 * 2 * 4
        engine.left = 11
        labeler = MonteCarloLabeler(engine, CONFIG)
        labeler.label(rows(*self.GIVEN))  # nothing stored
        assert labeler.summary["seconds"] == 22.0

    def test_killed_while_writing(self, tmp_path):
        """A record of which only a part was written is computed again."""
        expected = MonteCarloLabeler(self.engine(), CONFIG).label(rows(*self.GIVEN), tmp_path)
        path = tmp_path / "rollouts-0.jsonl"
        whole = path.read_bytes()
        for cut in random.Random(0).sample(range(len(whole)), 20):
            path.write_bytes(whole[:cut])
            engine = self.engine()
            assert MonteCarloLabeler(engine, CONFIG).label(rows(*self.GIVEN), tmp_path).to_list() == expected.to_list()
            assert len(engine.samples) == 4 * (21 - whole[:cut].count(b"\n"))
            assert sorted(untimed(path.read_bytes())) == sorted(untimed(whole))

    def test_a_finished_run_samples_nothing_and_eta_is_free(self, tmp_path):
        first = MonteCarloLabeler(self.engine(), CONFIG).label(rows(*self.GIVEN), tmp_path)
        engine = self.engine()
        labeler = MonteCarloLabeler(engine, replace(CONFIG, eta=-3.0, prefixes_per_chunk=100))
        again = labeler.label(rows(*self.GIVEN), tmp_path)
        assert engine.samples == [] and labeler.summary["num_new_rollouts"] == 0
        assert again.to_list() == relabel(first, -3.0).to_list() != first.to_list()
        stored = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
        assert stored == again.to_list()

    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            ({"num_rollouts": 8}, "`num_rollouts` is 4 there and 8 now"),
            ({"temperature": 0.5}, "`temperature` is 1.0 there and 0.5 now"),
            ({"seed": 1}, "`seed` is 0 there and 1 now"),
            ({"verify_how": "auto"}, "`verify_how` is 'arithmetic' there and 'auto' now"),
            ({"max_new_tokens": 17}, "`max_new_tokens` is 16 there and 17 now"),
            ({"stop": ["x"]}, r"`stop` is \[\] there and \['x'\] now"),
        ],
    )
    def test_another_config_is_refused(self, tmp_path, changes, difference):
        MonteCarloLabeler(self.engine(), CONFIG).label(rows(*self.GIVEN), tmp_path)
        engine = self.engine()
        with pytest.raises(ValueError, match=difference):
            MonteCarloLabeler(engine, replace(CONFIG, **changes)).label(rows(*self.GIVEN), tmp_path)
        assert engine.samples == []

    def test_other_rows_another_policy_and_another_verifier_are_refused(self, tmp_path):
        def own(text, answer):
            return True

        MonteCarloLabeler(self.engine(), CONFIG, policy_name="a").label(rows(*self.GIVEN), tmp_path)
        with pytest.raises(ValueError, match="`policy_name` is 'a' there and 'b' now"):
            MonteCarloLabeler(self.engine(), CONFIG, policy_name="b").label(rows(*self.GIVEN), tmp_path)
        with pytest.raises(ValueError, match="`dataset` is .* there and .* now; `num_rows` is 8 there and 7 now"):
            MonteCarloLabeler(self.engine(), CONFIG, policy_name="a").label(rows(*self.GIVEN[1:]), tmp_path)
        changed = rows(*self.GIVEN, answer="2")
        with pytest.raises(ValueError, match="`dataset` is '.*' there and '.*' now. Pass another"):
            MonteCarloLabeler(self.engine(), CONFIG, policy_name="a").label(changed, tmp_path)
        with pytest.raises(ValueError, match="`verifier` is None there and '.*own' now"):
            MonteCarloLabeler(self.engine(), CONFIG, own, policy_name="a").label(rows(*self.GIVEN), tmp_path)

    def test_other_files_are_refused(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("")
        with pytest.raises(ValueError, match=r"holds other files \(thesis.tex\)"):
            MonteCarloLabeler(self.engine(), CONFIG).label(rows(*self.GIVEN), tmp_path)


class Processes:
    """Threads in place of processes: what `process_state` gives each of them."""

    def __init__(self, number):
        self.barrier = threading.Barrier(number)
        self.number = number
        self.own = threading.local()

    def __call__(self, cpu=False):
        return self

    num_processes = property(lambda self: self.number)
    process_index = property(lambda self: self.own.index)
    is_main_process = property(lambda self: self.own.index == 0)

    def wait_for_everyone(self):
        self.barrier.wait(timeout=60)

    def sleep(self, seconds):
        """In place of `time.sleep`: a launcher ends the processes that wait for one that died."""
        if self.barrier.broken:
            raise threading.BrokenBarrierError
        threading.Event().wait(0.001)

    def run(self, function):
        results, errors = {}, {}

        def start(index):
            self.own.index = index
            try:
                results[index] = function(index)
            except BaseException as error:
                errors[index] = error
                self.barrier.abort()

        threads = [threading.Thread(target=start, args=(index,)) for index in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results, errors


class TestProcesses:
    GIVEN = [{"prompt": f"p{i}"} for i in range(6)]
    CONFIG = replace(CONFIG, solutions_per_prompt=3)

    def engine(self, interrupt_after=None):
        engine = BernoulliEngine(lambda prefix: 0.4)
        generate = engine.generate

        def with_solutions(prefixes, num_samples, options, first_sample=0):
            if interrupt_after is not None and len(engine.samples) >= interrupt_after:
                raise KeyboardInterrupt
            result = generate(prefixes, num_samples, options, first_sample)
            for prefix, of_prefix in zip(prefixes, result, strict=True):
                if not prefix.completion:
                    of_prefix[:] = [Completion(f"a{i}\nb\n{c.text}", 5, "stop") for i, c in enumerate(of_prefix)]
            return result

        engine.generate = with_solutions
        return engine

    def run(self, monkeypatch, number, directory, interrupt_after=None):
        processes = Processes(number)
        monkeypatch.setattr(monte_carlo, "process_state", processes)
        monkeypatch.setattr(recorded, "sleep", processes.sleep)
        engines = [self.engine(interrupt_after) for _ in range(number)]
        labelers = [MonteCarloLabeler(engine, self.CONFIG) for engine in engines]
        results, errors = processes.run(lambda index: labelers[index].label(rows(*self.GIVEN), directory))
        return results, errors, [sample for engine in engines for sample in engine.samples], labelers, engines

    def test_shards_cover_everything_once_and_all_get_the_same_rows(self, monkeypatch, tmp_path):
        expected = MonteCarloLabeler(self.engine(), self.CONFIG).label(rows(*self.GIVEN)).to_list()
        results, errors, samples, labelers, engines = self.run(monkeypatch, 3, tmp_path)
        assert not errors
        assert all(results[index].to_list() == expected for index in range(3))
        assert len(samples) == len(set(samples)) == 6 * 3 + 6 * 3 * 2 * 4
        assert all(len(engine.samples) > 20 for engine in engines)
        assert labelers[0].summary["num_new_rollouts"] == 6 * 3 * 2 * 4
        assert {p.name for p in tmp_path.glob("*-*.jsonl")} == {
            f"{kind}-{i}.jsonl" for kind in ("rollouts", "solutions") for i in range(3)
        }

    def test_continues_with_another_number_of_processes(self, monkeypatch, tmp_path):
        expected = MonteCarloLabeler(self.engine(), self.CONFIG).label(rows(*self.GIVEN)).to_list()
        paid = []
        _, errors, samples, _, _ = self.run(monkeypatch, 3, tmp_path, interrupt_after=25)
        assert any(isinstance(error, KeyboardInterrupt) for error in errors.values())
        paid += samples
        _, errors, samples, _, _ = self.run(monkeypatch, 2, tmp_path, interrupt_after=20)
        assert errors
        paid += samples
        results, errors, samples, _, _ = self.run(monkeypatch, 1, tmp_path)
        assert not errors and results[0].to_list() == expected
        paid += samples
        assert len(paid) == len(set(paid)) == 6 * 3 + 6 * 3 * 2 * 4

    def test_a_directory_is_needed(self, monkeypatch):
        _, errors, _, _, _ = self.run(monkeypatch, 2, None)
        assert "`output_dir` must be given with 2 processes, got None" in str(errors[0])


SCRIPT = """
import sys
from tests.labeling.test_monte_carlo import CONFIG, BernoulliEngine, rows
from trl_erprm.labeling import MonteCarloLabeler

given = [{"prompt": f"p{i}", "completions": ["a", "b", "#1"]} for i in range(10)]
labeler = MonteCarloLabeler(BernoulliEngine(lambda prefix: 0.4), CONFIG)
result = labeler.label(rows(*given), sys.argv[1])
assert len(result) == 10
import torch.distributed
torch.distributed.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_real_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch("ddp", script, tmp_path / "run", num_processes=2)
    given = [{"prompt": f"p{i}", "completions": ["a", "b", "#1"]} for i in range(10)]
    expected = MonteCarloLabeler(BernoulliEngine(lambda prefix: 0.4), CONFIG).label(rows(*given)).to_list()
    assert [json.loads(line) for line in (tmp_path / "run" / "labels.jsonl").read_text().splitlines()] == expected
    counts = [len((tmp_path / "run" / f"rollouts-{i}.jsonl").read_text().splitlines()) for i in range(2)]
    assert sum(counts) == 20 and min(counts) > 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_new_rollouts"] == 80


def test_a_transformer_labels_the_same_in_any_chunks(tmp_path):
    """The labeler and the engine together: interrupted, in other chunks and other batches, the counts are equal."""
    given = rows(
        *({"prompt": f"{i}+{i}=", "completions": ["a", "b", "#1"]} for i in range(5)),
        {"prompt": "7=", "completions": ["1", "2"]},
    )

    def verifier(text, answer):
        return None if text.endswith("z") else len(text) % 2 == 0

    def labeler(batch_size, prefixes_per_chunk):
        engine = load_engine("transformers", model=make_model(), tokenizer=make_tokenizer(), batch_size=batch_size)
        return MonteCarloLabeler(engine, replace(CONFIG, prefixes_per_chunk=prefixes_per_chunk), verifier)

    result = labeler(256, 100).label(given)
    assert len({tuple(of_row) for of_row in result["num_correct"]}) > 2
    assert labeler(3, 2).label(given, tmp_path).to_list() == result.to_list()
    path = tmp_path / "rollouts-0.jsonl"
    path.write_bytes(path.read_bytes()[:700])
    again = labeler(7, 3)
    assert again.label(given, tmp_path).to_list() == result.to_list()
    assert 0 < again.summary["num_new_rollouts"] < again.summary["num_rollouts"] == 11 * 4
