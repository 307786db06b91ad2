import json
import math
from dataclasses import replace

import pytest
from datasets import Dataset

from tests.labeling.test_monte_carlo import CONFIG, BernoulliEngine, ScriptedEngine, rows
from trl_erprm.data import eta_of_labels, load_rows
from trl_erprm.labeling import MonteCarloLabeler, label_interval, relabel, relabel_run, write_report
from trl_erprm.labeling.report import format_report, plot_labels, quality_report, warnings_of
from trl_erprm.manifest import JsonlStore

GIVEN = [{"prompt": f"p{i}", "completions": ["a", f"b{i}", "#1"]} for i in range(6)]


def run(directory, **changes):
    labeler = MonteCarloLabeler(BernoulliEngine(lambda prefix: 0.5), replace(CONFIG, **changes))
    return labeler.label(rows(*GIVEN), directory), labeler


ROWS = [
    {"labels": [0.5, 0.0, 1.0], "label_low": [0.2, 0.0, 1.0], "label_high": [0.8, 0.4, 1.0],
     "num_rollouts": [4, 8, 1]},
    {"labels": [1.0, None, 0.0], "label_low": [0.7, None, 0.0], "label_high": [1.0, None, 0.0],
     "num_rollouts": [4, 0, 1]},
    {"labels": [1.0], "label_low": [1.0], "label_high": [1.0], "num_rollouts": [1]},
]  # fmt: skip


class TestQualityReport:
    def test_by_hand(self):
        report = quality_report(ROWS, {"num_rollouts": 16})
        first, second, every = report["steps"]["1"], report["steps"]["2"], report["steps"]["all"]
        assert list(report["steps"]) == ["1", "2", "all"]
        assert (first["num_steps"], first["num_labels"], second["num_steps"], second["num_labels"]) == (2, 2, 2, 1)
        assert (first["mean_label"], first["share_0"], first["share_between"], first["share_1"]) == (0.75, 0, 0.5, 0.5)
        assert (second["mean_label"], second["share_0"], second["share_1"]) == (0, 1, 0)
        assert (every["num_labels"], every["mean_label"]) == (3, 0.5)
        assert every["mean_rollouts"] == pytest.approx(16 / 3) and every["mean_width"] == pytest.approx(1.3 / 3)
        assert sum(report["histogram"]) == 3
        assert [report["histogram"][i] for i in (0, 10, 19)] == [1, 1, 1]
        assert report["warnings"] == []

    def test_positions_are_in_order(self):
        n = 12
        row = {name: [1.0] * n for name in ("labels", "label_low", "label_high")} | {"num_rollouts": [4] * n}
        assert list(quality_report([row], {})["steps"]) == [*map(str, range(1, n)), "all"]

    def test_nothing_labelled(self):
        report = quality_report(ROWS[2:], {})
        assert report["steps"]["all"]["num_steps"] == 0 and math.isnan(report["steps"]["all"]["mean_label"])
        assert "| all | 0 | 0 |  |" in format_report(report)

    def test_markdown(self):
        text = format_report(quality_report(ROWS, {"num_rollouts": 1600, "unparsed_share": 0.125, "eta": 2.0}))
        assert "| rollouts | 1,600 |" in text and "| eta | 2 |" in text
        assert "- **Warning:** 12.5 % of the rollouts have no readable answer" in text
        assert "| 1 | 2 | 2 | 0.750 | 0.0% | 50.0% | 50.0% | 4.0 | 0.450 |" in text

    def test_histogram(self, tmp_path):
        pytest.importorskip("matplotlib")
        path = plot_labels(quality_report(ROWS, {}), tmp_path / "folder" / "labels.png")
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
        plot_labels(quality_report([], {}), path)


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"unparsed_share": 0.051}, "5.1 % of the rollouts have no readable answer"),
        (
            {"truncated_share": 0.06, "max_new_tokens": 9},
            "6.0 % of the rollouts are cut off at `max_new_tokens`=9 and count as not right unless they mark",
        ),
        (
            {"num_truncated_solutions": 2, "num_solutions": 39, "max_new_tokens": 9},
            "2 of the 39 solutions are cut off at `max_new_tokens`=9: unless they mark an answer they have no outcome",
        ),
        ({"num_empty_solutions": 2, "num_solutions": 5}, "2 of the sampled solutions are empty and were left out, 5"),
        (
            {"num_skipped_prefixes": 3, "num_skipped_prompts": 0, "max_new_tokens": 9},
            "3 prefixes and 0 prompts are too long",
        ),
    ],
)
def test_warnings(summary, message):
    [text] = warnings_of(summary)
    assert message in text


def test_no_warnings():
    assert warnings_of({}) == []
    assert warnings_of({"unparsed_share": 0.05, "truncated_share": 0.05, "num_empty_solutions": 0}) == []
    assert warnings_of({"num_truncated_solutions": 2, "num_solutions": 40}) == []


class TestRun:
    def test_is_written_at_the_end_and_anew(self, tmp_path):
        result, labeler = run(tmp_path)
        before = (tmp_path / "report.md").read_text()
        assert before == format_report(quality_report(result, labeler.summary))
        (tmp_path / "report.md").unlink()
        (tmp_path / "labels.png").unlink()
        report = write_report(tmp_path)
        assert (tmp_path / "report.md").read_text() == before and (tmp_path / "labels.png").exists()
        assert report["summary"]["num_rollouts"] == 7 * 4 + 5 * 4

    def test_relabelled_without_a_rollout(self, tmp_path):
        result, _ = run(tmp_path, labels_format="parquet")
        report = relabel_run(tmp_path, 5.0, interval_level=0.8)
        expected = relabel(result, 5.0, interval_level=0.8)
        assert JsonlStore(tmp_path / "labels.jsonl").read() == expected.to_list() != result.to_list()
        loaded = Dataset.from_parquet(str(tmp_path / "labels.parquet"), cache_dir=str(tmp_path / "cache"))
        assert loaded.to_list() == expected.to_list() and loaded.features == result.features
        assert json.loads((tmp_path / "summary.json").read_text())["eta"] == 5.0 == report["summary"]["eta"]
        assert "| eta | 5 |" in (tmp_path / "report.md").read_text()
        relabel_run(tmp_path, 1.0)
        assert JsonlStore(tmp_path / "labels.jsonl").read() == result.to_list()

    def test_relabel_makes_the_intervals_anew(self, tmp_path):
        result, _ = run(None)
        row = relabel(result, 5.0, interval_level=0.8)[0]
        low, high = label_interval(row["num_correct"][:-1], row["num_rollouts"][:-1], 5.0, 0.8)
        assert row["label_low"] == [*low, 1.0] and row["label_high"] == [*high, 1.0]
        assert relabel(result, 5.0).column_names == result.column_names

    @pytest.mark.parametrize("eta", [math.inf, -math.inf])
    def test_the_best_and_the_worst_rollout(self, tmp_path, eta):
        result, _ = run(tmp_path)
        assert relabel_run(tmp_path, eta)["summary"]["eta"] == eta == write_report(tmp_path)["summary"]["eta"]
        assert f"| eta | {eta:g} |" in (tmp_path / "report.md").read_text()
        stored = JsonlStore(tmp_path / "labels.jsonl").read()
        assert {row["eta"] for row in stored} == {str(eta)}  # no JSON number
        assert [{**row, "eta": eta} for row in stored] == relabel(result, eta).to_list()
        assert eta_of_labels(load_rows(dataset_path=tmp_path / "labels.jsonl", cache_dir=str(tmp_path / "c"))) == eta
        assert json.loads((tmp_path / "summary.json").read_text())["eta"] == str(eta)

    def test_rows_of_an_earlier_version_get_their_eta(self, tmp_path):
        """They had none; so had their Parquet file."""
        result, _ = run(tmp_path, labels_format="parquet")
        without = result.remove_columns("eta")
        (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in without.to_list()))
        without.to_parquet(str(tmp_path / "labels.parquet"))
        relabel_run(tmp_path, 5.0)
        expected = relabel(without, 5.0)
        assert JsonlStore(tmp_path / "labels.jsonl").read() == expected.to_list()
        loaded = Dataset.from_parquet(str(tmp_path / "labels.parquet"), cache_dir=str(tmp_path / "cache"))
        assert loaded.to_list() == expected.to_list() and set(loaded["eta"]) == {5.0}

    def test_eta_is_chosen(self, tmp_path):
        run(tmp_path, num_rollouts=8)
        report = relabel_run(tmp_path, "auto", eta_validation_share=1.0)
        from trl_erprm.labeling import choose_eta

        assert report["summary"]["eta"] == choose_eta(JsonlStore(tmp_path / "labels.jsonl").read()).eta

    def test_only_of_a_finished_run(self, tmp_path):
        for function in (write_report, lambda path: relabel_run(path, 1.0)):
            with pytest.raises(FileNotFoundError, match="must be the directory of a finished .* no labels.jsonl"):
                function(tmp_path)

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        import importlib.util

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        run(tmp_path)
        assert (tmp_path / "report.md").exists() and not (tmp_path / "labels.png").exists()


def test_progress_bar_shows_rates(capsys):
    MonteCarloLabeler(ScriptedEngine(), CONFIG).label(rows(*GIVEN))
    shown = capsys.readouterr().err
    assert "Rollouts: 100%" in shown and "rollout/s" in shown and "tokens/s" in shown
