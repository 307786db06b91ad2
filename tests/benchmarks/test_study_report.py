"""The tables of the study: what they say, what they compare, and that an unfinished study does not look finished."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks._measurements import read_measurements
from benchmarks.study import figures, report
from benchmarks.study.config import PARTS, StudyConfig, read_config
from benchmarks.study.published import write_published
from benchmarks.study.results import P_ERROR, STEP_AUROC, Results, best_of_n
from benchmarks.study.units import Unit, list_units, write_result

STUDY = Path(__file__).resolve().parents[2] / "benchmarks" / "study"
AGGREGATIONS = ["min", "product", "mean", "last", "max", "softmin"]
SCORES = ("values", "labels")
TIMES = {"seconds": 1.0, "processor_seconds": 1.0}


@pytest.fixture
def config(tmp_path) -> StudyConfig:
    """The small study with 16 and 4 rollouts, elsewhere."""
    return read_config(STUDY / "small.yaml", output_dir=str(tmp_path / "study"), num_rollouts=[16, 4])


def write_scores(
    config: StudyConfig, seed: int, label: str, num_rollouts: int = 16, num_epochs: int = 0, **values
) -> None:
    """Results of a unit, of which only what the tables under test read is set."""
    result = {
        "step_auroc": 0.5,
        "step_pair_accuracy": 0.5,
        "p_correlation": 0.5,
        "p_error": None if label == "hard" else 0.1,
        "p_bias": None,
        "p_bias_if_perfect": None,
        "bins": [[0.1, 0.2, 0.2, 5], [0.9, 0.8, 0.9, 5]],
        "best_of_n": {how: {str(n): 0.5 for n in (4, 8, 16, 32, 64)} for how in AGGREGATIONS},
        **TIMES,
    }
    if label not in ("soft", "outcome"):
        result["order_as_soft"] = {how: {"inverted_share": 0.1, "same_choice": 0.8} for how in AGGREGATIONS}
    unit = Unit("scores", "default", seed, label, num_rollouts, num_epochs)
    write_result(unit.path(config.output_dir), {**result, **values})


def write_labels(config: StudyConfig, seed: int) -> None:
    result = {"num_solutions": 10, "num_unique_prefixes": 20, "right_answers": 0.5, "share_error": {"16": 0.1}}
    write_result(Unit("labels", "default", seed).path(config.output_dir), {**result, **TIMES})


def write_pool(config: StudyConfig, seed: int, inverted: int = 0) -> None:
    """Candidates right in half; by `mean`, exact values order `er-2` otherwise."""
    choice = {"accuracy": {"64": 0.9}, "pairs": 100, "inverted_pairs": 0}
    soft = dict.fromkeys(AGGREGATIONS, choice)
    er = {**soft, "mean": {**choice, "inverted_pairs": 7}, "max": {**choice, "inverted_pairs": inverted}}
    exact = {scores: {steps: {"soft": soft, "er-2": er} for steps in ("all", "open")} for scores in SCORES}
    sizes = ("4", "8", "16", "32", "64")
    votes = {
        "majority": {**dict.fromkeys(sizes, 0.6), "64": 0.65},
        "oracle": {**dict.fromkeys(sizes, 0.7), "64": 0.99},
    }
    result = {"sampled": 0.5, "exact": exact, **votes, **TIMES}
    write_result(Unit("pool", "default", seed).path(config.output_dir), result)


def test_report_says_which_labels_are_better_and_which_are_not(config):
    config = replace(config, seeds=[0, 1, 2, 3])
    for seed in config.seeds:
        write_labels(config, seed)
        noise = 0.002 * seed
        write_scores(config, seed, "soft", step_auroc=0.8 + noise)
        write_scores(config, seed, "hard", step_auroc=0.7 + 2 * noise)
        write_scores(config, seed, "er-10", step_auroc=0.9, p_error=0.2 + noise)
    results = Results.read(config)
    assert results.values(STEP_AUROC, "default")["er-10"] == dict.fromkeys(range(4), 0.9)
    assert set(results.values(P_ERROR, "default")) == {"soft", "er-10"}
    text = report.report(results, {})
    assert "- step AUROC (4 seeds): better: er-10; worse: hard" in text
    assert "- error of p (4 seeds): worse: er-10" in text  # lower is better
    assert "- best of 64, min (4 seeds): no difference shown: hard, er-10" in text
    # differences 0.1, 0.098, 0.096, 0.094: sd 0.002582, half of the interval 3.182 * 0.002582 / 2 = 0.0041
    assert "| step AUROC | er-10 | +0.097 | +0.093 to +0.101 | +37.57 | < 0.001 | 4 |" in text
    assert "| er-10 | 0.900 [0.900, 0.900] |" in text
    short = report.summary(results, {})
    assert "| hard | **-0.097** [-0.101, -0.093] | +0.0 [+0.0, +0.0] |" in short  # bold where it is a difference
    assert "- step AUROC (4 seeds): better: er-10; worse: hard" in short
    assert "inverted pairs" not in short and "### Default: best of n, by min" not in short
    lines = results.csv().splitlines()
    assert "default,3,scores,hard,16,0,step_auroc,0.712" in lines
    assert "default,3,scores,hard,16,0,best_of_n/min/64,0.5" in lines


def test_report_of_nothing(config):
    path = report.write_report(config)
    assert "## What it took" in path.read_text()


def test_report_leaves_out_what_has_no_results_yet(config):
    write_labels(config, 0)
    text = report.report(Results.read(config), {})
    assert [line for line in text.splitlines() if line.startswith("#")] == ["## What it took"]


def test_results_go_between_the_marks_of_a_page(config, tmp_path):
    page = tmp_path / "study.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_docs(config, page)
    report.write_docs(config, page)
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n\nSeeds 0, 1, 2; ")
    assert text.endswith(f"All tables: [study/tables.md](study/tables.md).\n\n{report.END}\nafter\n")
    assert "old" not in text
    tables = (tmp_path / "study" / "tables.md").read_text()
    assert "The controlled study: all tables" in tables
    assert "](study/tables.md)" not in tables
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold '<!-- results"):
        report.write_docs(config, page)


def test_the_page_of_the_project_has_the_marks():
    text = (STUDY.parents[1] / "docs" / "study.md").read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_measures_are_shown_in_their_units(config):
    assert best_of_n("min", 64).show(0.5, sign=True) == "+50.0"
    assert STEP_AUROC.show(0.91234) == "0.912"
    # half of the interval is 4.303 * 0.2887 / sqrt(3) = 0.717, and no share is above 1
    results = Results(config, {})
    assert report._mean(results, best_of_n("min", 64), [0.5, 1.0, 1.0]) == "83.3 [11.6, 100.0]"
    assert report._mean(results, STEP_AUROC, [0.5, 0.5]) == "0.500 [0.500, 0.500] (n = 2)"
    assert report._mean(results, STEP_AUROC, [0.5]) == "0.500 (n = 1)"


# What needs no PRM


def test_summary_holds_what_can_be_done_without_a_prm(config):
    for seed in config.seeds:
        write_labels(config, seed)
        write_pool(config, seed)
        write_scores(config, seed, "soft", best_of_n={"min": {"8": 0.7, "64": 0.8}, "max": {"64": 0.1}})
    short = report.summary(Results.read(replace(config, best_of_n={**config.best_of_n, "aggregations": ["min"]})), {})
    means = short[short.index("means\n") :].splitlines()[2:8]
    assert means[0].endswith("| error of p | best of 8, min, % | best of 64, min, % |")
    assert means[2].startswith("| soft | 0.500")
    assert means[2].endswith("| 70.0 [70.0, 70.0] | 80.0 [80.0, 80.0] |")
    empty = "|  |  |  |  "
    assert means[3] == f"| one at random {empty}| 50.0 [50.0, 50.0] | 50.0 [50.0, 50.0] |"
    assert means[4] == f"| majority {empty}| 60.0 [60.0, 60.0] | 65.0 [65.0, 65.0] |"
    assert means[5] == f"| oracle (pass@n) {empty}| 70.0 [70.0, 70.0] | 99.0 [99.0, 99.0] |"


def test_one_column_where_few_candidates_are_all(config):
    best = {**config.best_of_n, "sizes": [4, 8], "num_candidates": 8}
    config = replace(config, best_of_n=best)
    write_labels(config, 0)
    write_scores(config, 0, "soft")
    head = next(line for line in report.summary(Results.read(config), {}).splitlines() if "step AUROC" in line)
    assert head.count("best of 8, min") == 1


@pytest.mark.parametrize(("inverted", "verdict"), [(0, "holds: 0"), (3, "FAILS: 36")])
def test_verdict_on_exact_values(config, inverted, verdict):
    for seed in config.seeds:
        write_labels(config, seed)
        write_pool(config, seed, inverted)
    results = Results.read(config)
    # 3 seeds, 2 kinds of scores, 2 kinds of steps, 2 labels, 3 aggregations, 100 pairs each
    expected = f"whatever the label, {verdict} inverted pairs of 7,200 compared."
    assert expected in report.summary(results, {})
    assert expected in report.report(results, {})
    of_mean = replace(config, best_of_n={**config.best_of_n, "aggregations": ["mean"]})
    assert report.exact_verdict(Results.read(of_mean), "default") == ""  # theory says nothing of it


# Unfinished


def test_an_unfinished_study_says_so(config):
    for seed in config.seeds:
        write_labels(config, seed)
        write_scores(config, seed, "soft", step_auroc=0.8 + 0.01 * seed)
    for seed in config.seeds[:2]:
        write_pool(config, seed)
        write_scores(config, seed, "hard", step_auroc=0.6)
    write_scores(config, 0, "er-10")
    results = Results.read(config)
    num_units = len(list_units(config, PARTS))
    for text in (report.report(results, {}), report.summary(results, {})):
        head = text.split("\n\n")[0]
        assert head.startswith(f"Seeds 0, 1, 2; **11 of {num_units} units finished**; 0.0 processor hours. Missing")
        # by kind and number of rollouts, nothing that is there
        assert "; 1 pool; 12 scores of 16 rollouts (hard, er-2, er-10, outcome, soft-again); " in head
        assert "; 12 rft of 16 rollouts (soft, hard, er-10, outcome); " in head
        assert "| hard | 0.600 [0.600, 0.600] (n = 2) |" in text
        assert "| er-10 | 0.500 (n = 1) |" in text
        assert "| soft | 0.810 [0.785, 0.835] |" in text
        assert "| 50.0 (n = 2) | 0.100, not measured |" in text
        assert "holds: 0 inverted pairs of 4,800 compared (n = 2)" in text
        assert "- step AUROC (2 of 3 seeds): worse: hard; no difference shown: er-10 (n = 1)" in text
    assert "| hard | **-0.205** [-0.269, -0.141] (n = 2) |" in report.summary(results, {})
    # what stands beside the PRMs, too
    assert "| majority | 60.0 [60.0, 60.0] (n = 2) |" in report.pool_table(results, "default")
    assert "| hard | 10.0 / 80.0 (n = 2) |" in report.order_table(results, "default")


def test_a_finished_study_says_what_it_is_of(config):
    for unit in list_units(config, PARTS):
        write_result(unit.path(config.output_dir), {"seconds": 1.0, "processor_seconds": 3600.0})
    text = report._progress(Results.read(config))
    num_units = len(list_units(config, PARTS))
    assert text == f"Seeds 0, 1, 2; {num_units} of {num_units} units finished; {num_units}.0 processor hours."


def test_longer_training_stands_beside_the_rest_and_is_compared_with_its_own_baseline(config):
    longer = {"difficulties": ["default"], "labels": ["soft", "er-2"], "num_train_epochs": 9}
    config = replace(config, seeds=[0, 1], longer_training=longer)
    for seed in config.seeds:
        write_labels(config, seed)
        for label, auroc in (("soft", 0.6), ("er-2", 0.5)):
            write_scores(config, seed, label, step_auroc=auroc)
    tables = report.longer_training_tables(Results.read(config), "default", [STEP_AUROC])
    assert tables == []  # nothing yet
    for seed in config.seeds:
        write_scores(config, seed, "soft", num_epochs=9, step_auroc=0.8)
        write_scores(config, seed, "er-2", num_epochs=9, step_auroc=0.91 + 0.001 * seed)
    results = Results.read(config)
    means, differences = report.longer_training_tables(results, "default", [STEP_AUROC])
    assert means.splitlines()[0] == "| Labels | step AUROC: 6 epochs | step AUROC: 9 epochs |"
    assert means.splitlines()[2] == "| soft | 0.600 [0.600, 0.600] | 0.800 [0.800, 0.800] |"
    # differences 0.110 and 0.111; half of the interval is 12.706 * 0.0005
    assert "| er-2 | **+0.110** [+0.104, +0.117] |" in differences
    assert "longer training" in report.summary(results, {})
    assert "default,1,scores,er-2,16,9,step_auroc,0.911" in results.csv().splitlines()
    assert "4 prm of 16 rollouts and 9 epochs (soft, er-2)" in report.summary(results, {})


def test_curves_say_how_many_seeds_they_have(config):
    for seed in config.seeds:
        write_pool(config, seed)
        write_scores(config, seed, "soft")
    write_scores(config, 0, "hard")
    drawn = figures._best_of_n(Results.read(config), "default")
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["oracle", "majority", "soft", "hard (n = 1)"]


def finish(config: StudyConfig) -> None:
    """Writes a result of every unit: er-10 is worse than soft labels by 0.1 in everything that is published."""
    for unit in list_units(config, PARTS):
        value = 0.4 if unit.label == "er-10" else 0.5 + 0.01 * unit.seed * (unit.label == "hard")
        if unit.kind == "scores":
            of_candidates = {how: {str(n): value for n in (4, 8, 16, 32, 64)} for how in AGGREGATIONS}
            result = {"step_auroc": value, "best_of_n": of_candidates}
        else:
            result = {"history": [{"sampled": 0.0}, {"sampled": value}]}
        write_result(unit.path(config.output_dir), {**result, "seconds": 1.0, "processor_seconds": 36.0})


def test_measurements_of_a_finished_study(config, tmp_path, capsys):
    path = tmp_path / "study.json"
    write_published(Results.read(config), path, None, 2)
    assert not path.exists() and "is written when all units are finished: 0 of" in capsys.readouterr().out
    finish(config)
    write_published(Results.read(config), path, time.time() - 120, 2)
    num_units = len(list_units(config, PARTS))
    rows = [(row.measured, row.setting, row.shown()) for row in read_measurements(path).rows]
    assert rows == [  # three seeds: no differences
        ("wall time with 2 processes", f"3 seeds, 6 labels, {num_units} units", "2.00 min"),
        ("processor time", f"3 seeds, 6 labels, {num_units} units", f"{num_units / 100:.2f} h"),
    ]
    written = path.read_text()
    write_published(Results.read(config), path, None, 1)  # a report of what was done before
    assert path.read_text() == written

    config = replace(config, seeds=list(range(10)))
    finish(config)
    write_published(Results.read(config), path, None, 1)
    rows = {(row.measured, row.setting): row for row in read_measurements(path).rows}
    assert not any(measured.startswith("wall time") for measured, _ in rows)
    row = rows["best of 64, min: difference", "`er-10`, default"]
    assert (row.shown(), row.against) == ("-10.0 points (-10.0 to -10.0), 95 %, 10 seeds", "soft labels")
    # 0.00 to 0.09: mean 0.045, sd 0.0303, half of the interval 2.262 * 0.0303 / sqrt(10) = 0.0217
    assert rows["step AUROC: difference", "`hard`, default"].shown() == "0.045 (0.023 to 0.067), 95 %, 10 seeds"
    assert {measured for measured, _ in rows} == {
        *("processor time", "best of 64, min: difference", "step AUROC: difference", "RFT: difference"),
        "GRPO: difference",
    }


def test_the_outcome_model_stands_once_among_numbers_of_rollouts(config):
    write_labels(config, 0)
    for label in ("soft", "outcome"):
        write_scores(config, 0, label, step_auroc=0.7)
    results = Results.read(config)
    assert report.rollouts_table(results, "default", [STEP_AUROC]) == ""  # nothing of 4 rollouts to compare with yet
    write_scores(config, 0, "soft", 4, step_auroc=0.6)
    lines = report.rollouts_table(Results.read(config), "default", [STEP_AUROC]).splitlines()
    assert lines[0] == "| Labels | step AUROC: 16 | step AUROC: 4 |"
    assert lines[2:] == ["| soft | 0.700 (n = 1) | 0.600 (n = 1) |", "| outcome | 0.700 (n = 1) |  |"]


def test_labels_of_fewer_rollouts_are_compared_with_soft_ones_of_as_many(config):
    for seed in config.seeds:
        write_labels(config, seed)
        write_scores(config, seed, "soft", step_auroc=0.7)
        write_scores(config, seed, "soft", 4, step_auroc=0.6)
        write_scores(config, seed, "er-2", 4, step_auroc=0.65 + 0.001 * seed)
    [text] = report.fewer_rollouts_differences(Results.read(config), "default", [STEP_AUROC])
    assert text.startswith("4 rollouts, differences from soft labels.")
    # 0.050, 0.051, 0.052: half of the interval is 4.303 * 0.001 / sqrt(3) = 0.0025
    assert "| er-2 | **+0.051** [+0.049, +0.053] |" in text
    assert "4 rollouts, differences from soft labels. In brackets" in report.report(Results.read(config), {})
