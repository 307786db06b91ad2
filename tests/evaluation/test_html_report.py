"""`trl_erprm.evaluation.html_report`: what the page says, that it needs nothing else, that it is whole or absent."""

import json
import re
from html.parser import HTMLParser

import pytest

from tests.evaluation.test_comparison import make_rows
from trl_erprm.evaluation import html_report as module
from trl_erprm.evaluation.candidates import make_pool
from trl_erprm.evaluation.comparison import MAJORITY, calibrate_scorers, compare_scorers, headline_pairs
from trl_erprm.evaluation.html_report import html_report, write_report

pytest.importorskip("matplotlib")

VOID = {"img", "meta", "br", "wbr"}


class Page(HTMLParser):
    """Cells of all tables, headings, and everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.headings, self.addresses, self.tags = [], [], [], [], []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h1", "h2", "h3", "summary"):
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2", "h3", "summary"):
            self.headings[-1] += data


@pytest.fixture(scope="module")
def metrics():
    pool, step_scores = make_rows()
    metrics = compare_scorers(pool, step_scores, aggregations=["min", "mean"], num_resamples=100)
    metrics["calibration"] = calibrate_scorers(pool, step_scores)
    metrics["steps"] = {
        "good": {"step_pair_accuracy": 0.875, "num_step_pairs": 1234, "auroc": 0.9},
        "chance": {"first_error_f1": [0.5, 0.4, 0.6]},
    }
    metrics["search"] = [
        {"method": "best of n", "n": 4, "num_tokens": 100.0, "accuracy": 0.5, "low": 0.4, "high": 0.6},
        {"method": "best of n", "n": 4, "num_tokens": 400.0, "accuracy": 0.6, "low": 0.5, "high": 0.7},
        {"method": "beam search", "n": 8, "num_tokens": 300.0, "accuracy": 0.7, "low": 0.6, "high": 0.8},
    ]
    metrics["settings"] = {"candidates": "pool.jsonl"}
    return metrics


def test_files_and_their_content(metrics, tmp_path):
    page = write_report(metrics, tmp_path / "out", "A title")
    assert page == tmp_path / "out" / "report.html"
    plots = {"best_of_n.png", "best_of_n_mean.png", "weighted_vote.png", "reliability.png", "search.png"}
    assert {path.name for path in page.parent.iterdir()} == {"report.html", "metrics.json", *plots}
    for name in plots:
        assert (page.parent / name).read_bytes()[:4] == b"\x89PNG"
    assert json.loads((page.parent / "metrics.json").read_text("utf-8")) == metrics
    # a list of numbers stands on one line
    assert re.search(r'"difference": \[-?[\d.e-]+, ', (page.parent / "metrics.json").read_text("utf-8"))


def test_the_page_needs_nothing_else(metrics, tmp_path):
    page = Page(write_report(metrics, tmp_path).read_text("utf-8"))
    assert len(page.addresses) == page.tags.count("img") == 5
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert 'name="viewport" content="width=device-width' in text and "prefers-color-scheme: dark" in text
    assert "@import" not in text and "url(" not in text


def test_tables_show_the_numbers(metrics):
    page = Page(html_report(metrics, {}, "A title"))
    assert page.headings[0] == "A title" and "img" not in page.tags
    first = page.rows[: 1 + 2 + 3]
    assert [row[0] for row in first] == ["", "good", "chance", MAJORITY, "oracle (pass@n)", "one at random"]
    curve = metrics["scorers"]["good"]["aggregations"]["min"]["best_of_n"]
    mean, low, high = (f"{100 * curve[key][-1]:.1f}" for key in ("accuracy", "low", "high"))
    assert first[1][1] == f"{mean} % {low} – {high}"
    pair = headline_pairs(metrics)[0]
    row = next(row for row in page.rows if row[0] == "good− chance")
    assert row[1].startswith(f"{100 * pair['difference']:+.1f} ")
    assert row[2].endswith(f"{pair['only_first']} : {pair['only_second']}")
    grids = [row for row in page.rows if row[0] == "chance" and len(row) == 3 and row[2]]
    assert len(grids) == 2  # best of n and weighted vote, each by both aggregations
    for row, key in zip(grids, ("best_of_n", "weighted_majority"), strict=True):
        of_how = metrics["scorers"]["chance"]["aggregations"].values()
        assert row[1:] == [f"{100 * entry[key]['accuracy'][-1]:.1f}" for entry in of_how]


def test_sections_are_there_where_their_numbers_are(metrics):
    optional = {"Step by step": "steps", "Calibration": "calibration", "Search against best of n": "search"}
    everything = Page(html_report(metrics, {}))
    assert set(optional) <= set(everything.headings)
    with_eta = json.loads(json.dumps(metrics))
    with_eta["calibration"]["good"]["eta"] = 2.0
    assert "good eta 2 taken back" in [row[0] for row in Page(html_report(with_eta, {})).rows]
    assert ["good", "0.875", "0.900", "–"] in everything.rows and [
        "chance",
        "–",
        "–",
        "0.500 0.400 – 0.600",
    ] in everything.rows
    assert ["beam search", "8", "300", "70.0 % 60.0 % – 80.0 %"] in everything.rows
    for heading, key in optional.items():
        without = Page(html_report({k: v for k, v in metrics.items() if k != key}, {}))
        assert heading not in without.headings


def test_one_problem_and_one_candidate():
    pool = make_pool([{"answer": "4", "candidates": ["4"]}])
    text = html_report(compare_scorers(pool, {"a": [[[0.9]]]}, num_resamples=10), {})
    assert "<p>1 problem, 1 candidate each, 1 scorer. " in text and "up to 1 in 1 problem of this kind" in text
    assert not re.search(r"\b1 (problems|candidates|scorers)\b", text)


def test_notes_and_names_are_escaped(metrics):
    name = "<b>x</b> & y"
    renamed = json.loads(json.dumps(metrics).replace('"good"', json.dumps(name)))
    text = html_report(renamed | {"notes": ["<script>alert(1)</script>"]}, {}, "<i>")
    assert "&lt;script&gt;alert(1)" in text and "<script" not in text and "<b>x" not in text
    assert any(row[0] == name for row in Page(text).rows)
    assert "<title>&lt;i&gt;</title>" in text


def test_pairs_are_corrected_for_their_number(metrics):
    """Two tests of p = 0.02 in one table: Holm's 0.04 each."""
    changed = json.loads(json.dumps(metrics))
    for pair in changed["pairs"]:
        pair["p_value"] = [0.02] * 5
    rows = [row for row in Page(html_report(changed, {})).rows if len(row) == 4 and " : " in row[2]]
    assert [row[2].split()[0] for row in rows] == ["0.040"] * 4 + ["0.020"]


def test_an_equal_run_gives_an_equal_page(metrics, tmp_path):
    first = write_report(metrics, tmp_path).read_bytes()
    assert write_report(metrics, tmp_path).read_bytes() == first


@pytest.mark.parametrize("broken", ["plot_reliability", "html_report", "_readable_json"])
def test_a_failure_leaves_no_report(metrics, tmp_path, monkeypatch, broken):
    write_report(metrics, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(module, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(metrics, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(OSError, match="disk full"):  # one that was whole stays whole
        write_report(metrics | {"num_problems": 3}, tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "new"}
    assert after == before


def test_a_failure_between_the_moves_leaves_no_page(metrics, tmp_path, monkeypatch):
    """Numbers of one run beside the page of another would pass for whole."""
    write_report(metrics, tmp_path)
    replace = module.os.replace

    def failing(source, target):
        if str(target).endswith("metrics.json"):
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", failing)
    with pytest.raises(OSError, match="disk full"):
        write_report(metrics, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_scorer_without_votes(metrics):
    changed = json.loads(json.dumps(metrics))
    for curves in changed["scorers"]["chance"]["aggregations"].values():
        del curves["weighted_majority"]
    changed["pairs"] = [pair for pair in changed["pairs"] if pair["first"] != "chance, weighted vote"]
    rows = [row for row in Page(html_report(changed, {})).rows if row[0] == "chance" and len(row) == 3 and row[2]]
    assert rows[1] == ["chance"] + ["–"] * 2


def test_a_scorer_with_an_aggregation_of_its_own(metrics, tmp_path):
    changed = json.loads(json.dumps(metrics))
    changed["scorers"]["chance"]["aggregation"] = "mean"
    text = write_report(changed, tmp_path).read_text("utf-8")
    assert "by min of its step scores. chance: by mean." in text
    row = next(row for row in Page(text).rows if row[0] == "chance")
    curve = metrics["scorers"]["chance"]["aggregations"]["mean"]["best_of_n"]
    assert row[1].startswith(f"{100 * curve['accuracy'][-1]:.1f} %")
    assert {"best_of_n.png", "best_of_n_min.png", "best_of_n_mean.png"} <= {path.name for path in tmp_path.iterdir()}


def test_one_scorer_alone(tmp_path):
    pool, step_scores = make_rows(num_problems=4, num_candidates=1)
    metrics = compare_scorers(pool, {"only": step_scores["good"]}, num_resamples=10)
    page = Page(write_report(metrics, tmp_path).read_text("utf-8"))
    assert "Against each other" not in page.headings and "Best of 1" in page.headings
