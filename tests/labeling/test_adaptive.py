"""Adaptive rollouts, partial labelling and what is skipped, through the whole labeler."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from tests.labeling.test_monte_carlo import CONFIG, INF, BernoulliEngine, ScriptedEngine, rows
from tests.labeling.test_runs import Processes
from tests.rollout.test_transformers_engine import make_model, make_tokenizer
from trl_erprm.labeling import LabelingConfig, MonteCarloLabeler, label_interval, monte_carlo
from trl_erprm.labeling.intervals import is_narrow_enough
from trl_erprm.manifest import content_hash
from trl_erprm.rollout import PrefixTooLongError, load_engine, recorded

ADAPTIVE = replace(CONFIG, num_rollouts=32, label_tolerance=0.4, rollouts_per_round=4, eta=2.0)
GIVEN = [{"prompt": f"p{i}", "completions": ["a", f"b{i % 3}", "#1"]} for i in range(20)]


def probability(prefix):
    return int(content_hash(prefix.prompt, prefix.completion)[:4], 16) / 16**4


def engine():
    return BernoulliEngine(probability)


class TestAdaptive:
    def test_rounds_by_hand(self):
        """At eta = inf the first right rollout settles the label: after the round that holds it."""
        scripted = ScriptedEngine(
            {
                ("p", "a\n"): ["#0", "#1", "#0", "#0"],  # in round 1
                ("p", "a\nb\n"): ["#0", "#0", "#0", "#0", "#0", "#1", "#0", "#0"],  # in round 2
                ("p", "a\nb\nc\n"): ["#0"],  # never
            }
        )
        config = replace(ADAPTIVE, eta=INF, num_rollouts=10, rollouts_per_round=4)
        [row] = MonteCarloLabeler(scripted, config).label(rows({"prompt": "p", "completions": ["a", "b", "c", "#1"]}))
        assert row["num_rollouts"] == [4, 8, 10, 1] and row["num_correct"] == [1, 1, 0, 1]
        assert row["labels"] == [1.0, 1.0, 0.0, 1.0]
        assert row["label_low"] == [1.0, 1.0, 0.0, 1.0] and row["label_high"] == [1.0, 1.0, 1.0, 1.0]
        assert len(scripted.samples) == len(set(scripted.samples)) == 22

    def test_stops_as_soon_as_the_interval_is_narrow_enough(self):
        """And continues the samples that fixed rollouts have."""
        fixed = MonteCarloLabeler(engine(), replace(CONFIG, num_rollouts=32, eta=2.0, keep_rollouts=True))
        all_texts = fixed.label(rows(*GIVEN))["rollouts"]
        result = MonteCarloLabeler(engine(), ADAPTIVE).label(rows(*GIVEN))
        numbers = set()
        for row, texts in zip(result, all_texts, strict=True):
            for c, n, of_step in zip(row["num_correct"][:-1], row["num_rollouts"][:-1], texts, strict=False):
                right = np.cumsum([text == "#1" for text in of_step])
                expected = next(
                    m for m in range(4, 33, 4) if m == 32 or is_narrow_enough(int(right[m - 1]), m, 2.0, 0.4)
                )
                assert (n, c) == (expected, right[n - 1])
                numbers.add(n)
        assert len(numbers) > 2

    @pytest.mark.parametrize(
        "changes",
        [
            {"label_tolerance": 0.3},
            {"rollouts_per_round": 8},
            {"interval_level": 0.8},
            {"eta": 8.0},
            {"num_rollouts": 8},
        ],
    )
    def test_each_setting_changes_the_number_of_rollouts(self, changes):
        before = MonteCarloLabeler(engine(), ADAPTIVE).label(rows(*GIVEN))["num_rollouts"][:]
        assert (
            MonteCarloLabeler(engine(), replace(ADAPTIVE, **changes)).label(rows(*GIVEN))["num_rollouts"][:] != before
        )

    def test_chunks_do_not_matter(self):
        results = [
            MonteCarloLabeler(engine(), replace(ADAPTIVE, prefixes_per_chunk=size)).label(rows(*GIVEN)).to_list()
            for size in (1, 7, 1000)
        ]
        assert results[0] == results[1] == results[2]

    @pytest.mark.parametrize("label_steps", ["all", "until_hopeless", "first_error"])
    def test_processes_do_not_matter(self, monkeypatch, tmp_path, label_steps):
        config = replace(ADAPTIVE, label_steps=label_steps)
        given = [{**row, "answer": str(i % 2)} for i, row in enumerate(GIVEN)]
        expected = MonteCarloLabeler(engine(), config).label(given)
        paid = []
        for number, fail_after in ((3, 10), (2, None)):
            processes = Processes(number)
            monkeypatch.setattr(monte_carlo, "process_state", processes)
            monkeypatch.setattr(recorded, "sleep", processes.sleep)
            engines = [engine() for _ in range(number)]
            for one in engines if fail_after else []:
                one.generate = failing_after(one, fail_after)
            labelers = [MonteCarloLabeler(one, config) for one in engines]
            results, errors = processes.run(lambda i, labelers=labelers: labelers[i].label(given, tmp_path))
            paid += [sample for one in engines for sample in one.samples]
            assert bool(errors) == bool(fail_after)
        assert all(results[i].to_list() == expected.to_list() for i in range(2))
        # The same text stands for two problems with different answers, each of which is rolled out.
        assert len(paid) == sum(json.loads(line)["num_rollouts"] for line in record_lines(tmp_path))

    def test_eta_belongs_to_the_run(self, tmp_path):
        MonteCarloLabeler(engine(), ADAPTIVE).label(rows(*GIVEN), tmp_path)
        for changes, message in (
            ({"eta": 3.0}, "`eta` is 2.0 there and 3.0 now"),
            ({"label_tolerance": 0.3}, "`label_tolerance` is 0.4 there and 0.3 now"),
            ({"rollouts_per_round": 2}, "`rollouts_per_round` is 4 there and 2 now"),
            ({"interval_level": 0.9}, "`interval_level` is 0.95 there and 0.9 now"),
            ({"label_tolerance": None}, "`label_tolerance` is 0.4 there and absent now"),
            ({"label_steps": "first_error"}, "`label_steps` is absent there and 'first_error' now"),
            ({"keep_rollouts": True}, "`keep_rollouts` is absent there and True now"),
        ):
            with pytest.raises(ValueError, match=message):
                MonteCarloLabeler(engine(), replace(ADAPTIVE, **changes)).label(rows(*GIVEN), tmp_path)

    def test_less_is_paid_at_equal_error(self):
        """What benchmarks/labels.py measures on the embedded task, in small: prefixes near 0 and 1, and eta = 10."""

        def p(prefix):
            return (0.01, 0.03, 0.6, 0.8, 0.95)[int(content_hash(prefix.prompt)[:4], 16) % 5]

        given = [{"prompt": f"p{i}", "completions": ["a", "#1"]} for i in range(500)]
        results = {}
        for name, config in (
            ("fixed", replace(CONFIG, num_rollouts=16, eta=10.0)),
            ("adaptive", replace(CONFIG, num_rollouts=64, eta=10.0, label_tolerance=0.8)),
        ):
            labeler = MonteCarloLabeler(BernoulliEngine(p), replace(config, prefixes_per_chunk=500))
            labels = np.array([row["labels"][0] for row in labeler.label(rows(*given))])
            exact = [
                math.log1p(p(prefix) * math.expm1(10)) / 10
                for prefix in (type("P", (), {"prompt": row["prompt"]}) for row in given)
            ]
            results[name] = labeler.summary["num_tokens"], math.sqrt(np.mean((labels - exact) ** 2))
        assert results["adaptive"][0] < 0.8 * results["fixed"][0]
        assert results["adaptive"][1] < 1.05 * results["fixed"][1]


def failing_after(one, number):
    generate = one.generate

    def failing(*args, **kwargs):
        if len(one.samples) >= number:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    return failing


def record_lines(directory):
    return [line for path in directory.glob("rollouts-*.jsonl") for line in path.read_text().splitlines()]


class TestLabelSteps:
    TABLE = {("p", "a\n"): ["#1", "#0"], ("p", "a\nb\n"): ["#0"], ("p", "a\nb\nc\n"): ["#1"]}
    ROW = {"prompt": "p", "completions": ["a", "b", "c", "#0"]}

    def label(self, label_steps, *given):
        scripted = ScriptedEngine(self.TABLE)
        labeler = MonteCarloLabeler(scripted, replace(CONFIG, label_steps=label_steps, eta=0.0))
        return labeler.label(rows(*given)), scripted, labeler

    def test_until_hopeless(self):
        result, scripted, labeler = self.label("until_hopeless", self.ROW)
        assert result[0]["labels"] == [0.5, 0.0, None, 0.0]
        assert result[0]["num_rollouts"] == [4, 4, 0, 1]
        assert result[0]["label_low"][2] is None
        assert len(scripted.samples) == 8
        assert (labeler.summary["num_unique_prefixes"], labeler.summary["num_labelled_prefixes"]) == (3, 2)

    def test_first_error(self):
        result, scripted, _ = self.label("first_error", self.ROW)
        assert [call[0].completion for call in scripted.calls] == ["a\nb\n", "a\n"]
        assert result[0]["labels"] == [0.5, 0.0, None, 0.0]
        # The right solution is not searched, but has what its wrong sibling found out.
        right = {"prompt": "p", "completions": ["a", "b2", "c", "#1"]}
        result, scripted, _ = self.label("first_error", right, self.ROW)
        assert result["labels"][:] == [[0.5, None, None, 1.0], [0.5, 0.0, None, 0.0]]
        assert len(scripted.samples) == 8

    def test_all(self):
        result, _, _ = self.label("all", self.ROW)
        assert result[0]["labels"] == [0.5, 0.0, 1.0, 0.0]


class TestTooLong:
    class Engine(ScriptedEngine):
        """Its context window is 6 characters."""

        num_named = None  # all; a server names one at a time

        def generate(self, prefixes, *args, **kwargs):
            long = [i for i, prefix in enumerate(prefixes) if len(prefix.prompt + prefix.completion) > 6]
            if long:
                raise PrefixTooLongError("They must fit into the window of 6.", long[: self.num_named])
            return super().generate(prefixes, *args, **kwargs)

    GIVEN = [
        {"prompt": "p", "completions": ["a", "b", "#1"]},
        {"prompt": "q", "completions": ["a", "bbb", "c", "#1"]},
        {"prompt": "r", "completions": ["a", "#1"]},
    ]

    @pytest.mark.parametrize("num_named", [None, 1])
    def test_are_skipped_and_counted(self, tmp_path, caplog, monkeypatch, num_named):
        monkeypatch.setattr(self.Engine, "num_named", num_named)
        first = self.Engine()
        labeler = MonteCarloLabeler(first, replace(CONFIG, prefixes_per_chunk=10))
        result = labeler.label(rows(*self.GIVEN), tmp_path)
        assert result["labels"][:] == [[1.0, 1.0, 1.0], [1.0, None, None, 1.0], [1.0, 1.0]]
        assert result["num_rollouts"][1] == [4, 0, 0, 1]
        assert labeler.summary["num_skipped_prefixes"] == 2
        assert len(first.samples) == 4 * 4  # nothing is sampled twice
        assert "2 prefixes and 0 prompts are too long for the context window" in caplog.text
        # Not asked for again.
        again = self.Engine()
        assert MonteCarloLabeler(again, CONFIG).label(rows(*self.GIVEN), tmp_path).to_list() == result.to_list()
        assert again.calls == []
        with pytest.raises(PrefixTooLongError, match="must fit into the window of 6"):
            config = replace(CONFIG, skip_long_prefixes=False)
            MonteCarloLabeler(self.Engine(), config).label(rows(*self.GIVEN), tmp_path)

    @pytest.mark.parametrize("label_steps", ["until_hopeless", "first_error"])
    def test_end_a_search(self, label_steps):
        config = replace(CONFIG, label_steps=label_steps)
        result = MonteCarloLabeler(self.Engine(), config).label(rows(*self.GIVEN, answer="2"))
        assert result["num_rollouts"][1][1:] == [0, 0, 1]

    def test_or_an_error_with_the_rows(self):
        config = replace(CONFIG, skip_long_prefixes=False, prefixes_per_chunk=10)
        with pytest.raises(PrefixTooLongError, match="must fit into the window of 6") as caught:
            MonteCarloLabeler(self.Engine(), config).label(rows(*self.GIVEN))
        assert "come from the rows [1, 1, 0, 0, 1, 2]" in caught.value.__notes__[0]

    def test_prompts(self, caplog, tmp_path):
        table = {("p", ""): ["a\n#1"]}

        def labeler():
            return MonteCarloLabeler(self.Engine(table), replace(CONFIG, solutions_per_prompt=2))

        given = rows({"prompt": "p"}, {"prompt": "too long"})
        first = labeler()
        result = first.label(given, tmp_path)
        assert result["prompt"][:] == ["p", "p"]
        assert first.summary["num_skipped_prompts"] == 1
        assert "0 prefixes and 1 prompts are too long" in caplog.text
        assert labeler().label(given, tmp_path).to_list() == result.to_list()
        with pytest.raises(ValueError, match="got 0 empty ones, and 1 prompts too long for the context window"):
            labeler().label(rows({"prompt": "too long"}))

    def test_with_a_real_engine(self):
        one = load_engine("transformers", model=make_model(), tokenizer=make_tokenizer(), batch_size=8)
        window = one.model.config.max_position_embeddings
        given = [{"prompt": "1+1=", "completions": [step, "#1"]} for step in ("1", "1" * window, "2")]
        labeler = MonteCarloLabeler(one, replace(CONFIG, prefixes_per_chunk=3), lambda text, answer: True)
        assert labeler.label(rows(*given))["labels"][:] == [[1.0, 1.0], [None, 1.0], [1.0, 1.0]]

    def test_other_errors_are_not_swallowed(self):
        class Refusing:
            def generate(self, prefixes, num_samples, options, first_sample=0):
                raise ValueError("Prefix 0 must be another for the context window")  # whatever the words

        with pytest.raises(ValueError, match="Prefix 0 must be another"):
            MonteCarloLabeler(Refusing(), CONFIG).label(rows(*self.GIVEN))


class TestOutput:
    def test_equal_sampled_solutions_are_merged_where_wanted(self):
        table = {("p", ""): ["a\n#1", "#2", "a\n#1", "a\n#1"], ("q", ""): ["#1"]}
        given = rows({"prompt": "p"}, {"prompt": "q"})
        results = {}
        for merge in (False, True):
            scripted = ScriptedEngine(table)
            labeler = MonteCarloLabeler(scripted, replace(CONFIG, merge_equal_solutions=merge))
            results[merge] = labeler.label(given)
            assert labeler.summary["num_distinct_solutions"] == 3
            assert len(scripted.samples) == 8 + 4  # rolled out once in either case
        assert len(results[False]) == 8 and "num_duplicates" not in results[False].column_names
        assert results[True]["completions"][:] == [["a", "#1"], ["#2"], ["#1"]]
        assert results[True]["num_duplicates"][:] == [3, 1, 4]
        # Given solutions are as many rows as were given, with their own columns.
        kept = [{"prompt": "p", "completions": ["#1"], "num_duplicates": 7}] * 2
        labeler = MonteCarloLabeler(ScriptedEngine(), replace(CONFIG, merge_equal_solutions=True))
        assert labeler.label(rows(*kept))["num_duplicates"][:] == [7, 7]

    def test_rollouts_are_kept_where_wanted(self, tmp_path):
        scripted = ScriptedEngine({("p", "a\n"): ["b\n#1", "b\n#2"]})
        config = replace(CONFIG, keep_rollouts=True, num_rollouts=3)
        result = MonteCarloLabeler(scripted, config).label(rows({"prompt": "p", "completions": ["a", "#1"]}), tmp_path)
        assert result["rollouts"][:] == [[["b\n#1", "b\n#2", "b\n#1"], []]]
        again = MonteCarloLabeler(ScriptedEngine(fail_at_call=1), config)
        given = rows({"prompt": "p", "completions": ["a", "#1"]})
        assert again.label(given, tmp_path)["rollouts"][:] == result["rollouts"][:]
        loaded = Dataset.from_json(str(tmp_path / "labels.jsonl"), cache_dir=str(tmp_path / "cache"))
        assert loaded.to_list() == result.to_list()

    def test_parquet(self, tmp_path):
        result = MonteCarloLabeler(engine(), replace(CONFIG, labels_format="parquet")).label(rows(*GIVEN), tmp_path)
        loaded = Dataset.from_parquet(str(tmp_path / "labels.parquet"), cache_dir=str(tmp_path / "cache"))
        assert loaded.to_list() == result.to_list() and loaded.features == result.features
        assert not list(tmp_path.glob(".*"))
        MonteCarloLabeler(engine(), CONFIG).label(rows(*GIVEN), tmp_path / "jsonl")
        assert not (tmp_path / "jsonl" / "labels.parquet").exists()

    def test_intervals(self):
        result = MonteCarloLabeler(engine(), replace(CONFIG, interval_level=0.8, eta=3.0)).label(rows(*GIVEN))
        for row in result:
            low, high = label_interval(row["num_correct"][:-1], row["num_rollouts"][:-1], 3.0, 0.8)
            assert row["label_low"] == [*low, row["labels"][-1]]  # the last step is its own outcome, exactly
            assert row["label_high"] == [*high, row["labels"][-1]]


def test_config_errors():
    for changes, message in (
        ({"label_tolerance": 0.0}, "`label_tolerance` must lie between 0 and 1, got 0.0. It is the width"),
        ({"label_tolerance": 1.0}, "`label_tolerance` must lie between 0 and 1, got 1.0"),
        ({"rollouts_per_round": 0}, "`rollouts_per_round` must be a whole number from 1 up, got 0"),
        ({"interval_level": 1.0}, "`interval_level` must lie between 0 and 1, got 1.0"),
        ({"label_steps": "first"}, "`label_steps` must be one of 'all', 'until_hopeless', 'first_error'"),
        ({"labels_format": "json"}, "`labels_format` must be one of 'jsonl', 'parquet', got 'json'. Did you mean"),
        ({"eta": "best"}, "`eta` must be a number or 'auto', got 'best'"),
        ({"eta": "auto", "label_tolerance": 0.4}, "`eta` must be a number with `label_tolerance`, got 'auto'"),
        ({"eta_criterion": "rank"}, "`eta_criterion` must be one of 'reliability', 'ranking', got 'rank'"),
        ({"eta_validation_share": 0.0}, r"`eta_validation_share` must lie in \(0, 1\], got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            LabelingConfig(**changes)
