"""Files of measurements: what a row may hold, what is written beside the rows, and what is refused when read."""

import datetime
import doctest
import json
import os
import socket
import sys
import time

import pytest

from benchmarks import _measurements
from benchmarks._measurements import (
    Measurement,
    day_of,
    describe_machine,
    of_part,
    origin,
    over_rounds,
    read_measurements,
    show_number,
    write_measurements,
)

ROW = Measurement("Scoring", "speed", "reference", "shuffled", 2.0, "x", 1.5, 2.5, "3 rounds")


@pytest.fixture
def report(tmp_path) -> dict:
    """What a file holds that is right."""
    write_measurements(tmp_path / "a.json", [ROW], time.time(), num_threads=1)
    return json.loads((tmp_path / "a.json").read_text())


def test_examples():
    outcome = doctest.testmod(_measurements)
    assert outcome.attempted > 4
    assert outcome.failed == 0


# Rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "Scorers"}, "'Scorers', but must be one of 'Rollouts', .*Add a new one to `BENCHMARKS`"),
        ({"high": None}, "`low` is 1.5, `high` is None. Give both or neither"),
        ({"value": None, "note": ""}, "'speed' has neither `value` nor `note`. Say in `note` why"),
    ],
)
def test_row_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        Measurement(**{**vars(ROW), **changes})


@pytest.mark.parametrize(
    ("changes", "cell"),
    [
        ({}, "2.00 x (1.50 to 2.50), 3 rounds"),
        ({"low": None, "high": None, "note": ""}, "2.00 x"),
        ({"value": 1e-7, "unit": "", "low": None, "high": None, "note": ""}, "1.0e-07"),
        ({"value": None, "note": "never"}, "never"),
    ],
)
def test_cell(changes, cell):
    assert Measurement(**{**vars(ROW), **changes}).shown() == cell


def test_numbers_keep_their_digits_at_each_limit():
    assert [show_number(x) for x in (99.94, 99.95, 9.994, 9.995, 0.0994, 0.0995, 0.001, 0.000999, -0.7)] == [
        *("99.9", "100"),
        *("9.99", "10.0"),
        *("0.099", "0.10"),
        *("0.0010", "1.0e-03"),
        "-0.70",
    ]


def test_range_is_that_of_the_rounds():
    assert over_rounds([3.0, 1.0, 2.0], 2.0) == {"value": 2.0, "low": 1.0, "high": 3.0, "note": "3 rounds"}


# Writing


def test_what_is_written_beside_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/benchmarks/labels.py", "--seeds", "3", "--output", str(tmp_path / "f.json")])
    write_measurements(
        tmp_path / "new" / "f.json", [ROW], time.time() - 61, num_threads=3, details={"curve": [1 / 3, (2, None)]}
    )
    run = read_measurements(tmp_path / "new" / "f.json")
    assert run.command == "python benchmarks/labels.py --seeds 3"
    assert run.date == datetime.date.today().isoformat()
    assert 61 <= run.seconds <= 63
    assert run.rows == (ROW,)
    assert run.details == {"curve": [0.333333, [2, None]]}
    assert run.machine["num_threads"] == 3
    assert run.machine["num_cores"] == os.cpu_count()
    assert 0 < run.machine["memory_gib"] < 100_000
    assert run.machine["processor"]
    assert run.machine["gpu"] is None
    assert {"torch", "transformers", "trl", "trl-erprm"} == set(run.versions)


def test_neither_host_nor_folder_of_this_machine_is_written(tmp_path, monkeypatch):
    argv = ["/x/benchmarks/rft.py", "--output_dir", str(tmp_path), f"--output={tmp_path}/f.json"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(socket, "gethostname", lambda: "a-host")
    write_measurements(tmp_path / "f.json", [ROW], time.time(), num_threads=1)
    text = (tmp_path / "f.json").read_text()
    assert f"python benchmarks/rft.py --output_dir {tmp_path.name}" in text
    assert str(tmp_path.parent) not in text
    assert "a-host" not in text


def test_results_of_an_earlier_run_keep_their_day_and_have_no_time(tmp_path):
    for name, day in (("old", 1), ("newer", 2)):
        (tmp_path / name).touch()
        stamp = datetime.datetime(2026, 3, day, 12).timestamp()
        os.utime(tmp_path / name, (stamp, stamp))
    date = day_of([tmp_path / "newer", tmp_path / "old"])
    assert date == "2026-03-02"
    write_measurements(tmp_path / "f.json", [ROW], None, num_threads=1, date=date)
    run = read_measurements(tmp_path / "f.json")
    assert (run.date, run.seconds) == ("2026-03-02", None)


def test_results_that_are_taken_up_bring_their_machine_and_versions(tmp_path):
    """Where each has them stored and all are the same; else those of this run stand there, and the file says so."""
    here = origin(num_threads=1)
    old = {"machine": {**here["machine"], "processor": "old"}, "versions": {"torch": "1.0"}}
    started = time.time()

    def written(origins, started=None):
        write_measurements(tmp_path / "f.json", [ROW], started, num_threads=1, origins=origins)
        run = read_measurements(tmp_path / "f.json")
        return run.origin_known, {"machine": run.machine, "versions": run.versions}

    assert written([old, old]) == (True, old)
    assert written([old, here]) == (False, here)
    assert written([old, None]) == (False, here)
    assert written([]) == (False, here)
    assert written([here], started) == (False, here)
    assert "origin_known" not in json.loads((tmp_path / "f.json").read_text())


def test_name_of_a_gpu(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert describe_machine(1, "cuda:0")["gpu"] == "GPU of cuda:0"


def test_part_has_a_file_of_its_own(tmp_path):
    assert of_part(tmp_path / "rft.json", "memory") == tmp_path / "rft_memory.json"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "`rows` is empty. Give at least one measurement"),
        ([Measurement("Scoring", "speed", "", "", float("nan"), "x")], "nan or infinite. Give None, and say"),
        ([Measurement("Scoring", "speed", "", "", float("inf"), "x")], "nan or infinite. Give None, and say"),
    ],
)
def test_nothing_is_written_that_no_table_can_show(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_measurements(tmp_path / "f.json", rows, time.time(), num_threads=1)
    assert not (tmp_path / "f.json").exists()


# Reading


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("date"), "the file lacks date"),
        (lambda r: r.update(host="h"), "the file has unknown host"),
        (lambda r: r["machine"].pop("gpu"), "`machine` lacks gpu"),
        (lambda r: r.update(machine=[]), "`machine` must be a mapping, got \\[\\]"),
        (lambda r: r.update(rows=[]), "`rows` must be a list of measurements, got"),
        (lambda r: r["rows"][0].pop("unit"), "row 0 lacks unit"),
        (lambda r: r["rows"][0].update(benchmark="Scorers"), "row 0: `benchmark` is 'Scorers'"),
        (lambda r: r["rows"][0].update(benchmark=[]), "row 0, `benchmark` must be a text, got \\[\\]"),
        (lambda r: r["rows"][0].update(value="abc"), "row 0, `value` must be a finite number or null, got 'abc'"),
        (lambda r: r["rows"][0].update(value=True), "row 0, `value` must be a finite number or null, got True"),
        (lambda r: r["rows"][0].update(high=float("nan")), "row 0, `high` must be a finite number or null, got nan"),
        (lambda r: r["rows"][0].update(unit=None), "row 0, `unit` must be a text, got None"),
        (lambda r: r.update(rows={}), "`rows` must be a list of measurements, got {}"),
        (lambda r: r.update(versions=[]), "`versions` must be a mapping, got \\[\\]"),
        (lambda r: r["versions"].update(torch=2), "`versions`, `torch` must be a text, got 2"),
        (lambda r: r.update(date=5), "`date` must be a text, got 5"),
        (lambda r: r.update(date="today"), "`date` must be a day, YYYY-MM-DD, got 'today'"),
        (lambda r: r.update(seconds="9"), "`seconds` must be a finite number or null, got '9'"),
        (lambda r: r.update(command=None), "`command` must be a text, got None"),
        (lambda r: r.update(origin_known="yes"), "`origin_known` must be true or false, got 'yes'"),
        (lambda r: r["machine"].update(num_threads="1"), "`machine`, `num_threads` must be a whole number, got '1'"),
        (lambda r: r["machine"].update(gpu=0), "`machine`, `gpu` must be a text or null, got 0"),
    ],
)
def test_file_of_a_wrong_shape(change, message, report, tmp_path):
    change(report)
    (tmp_path / "b.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=message) as error:
        read_measurements(tmp_path / "b.json")
    assert "b.json" in str(error.value)


def test_file_that_is_no_json(tmp_path):
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match="b.json is no JSON: .*`make bench`"):
        read_measurements(tmp_path / "b.json")


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="b.json is no text in UTF-8: .*`make bench`"):
        read_measurements(tmp_path / "b.json")
