"""RESULTS.md holds what its command renders from the published files, and nothing measured besides."""

import dataclasses
import doctest
import re
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks._measurements import BENCHMARKS, Measurement, Run, write_measurements
from benchmarks.results import BEGIN, END, HEADLINES, headlines, put_between_marks, read_runs, render

BENCHMARKS_DIR = Path(results.__file__).parent
MACHINE = {"processor": "P", "num_cores": 4, "memory_gib": 23, "num_threads": 1, "gpu": None}


def row(benchmark="Scoring", measured="speed", against="reference", setting="s", value=2.0) -> Measurement:
    return Measurement(benchmark, measured, against, setting, value, "x")


def run(*rows, command="python benchmarks/a.py", seconds=30.0, date="2026-01-31", **machine) -> Run:
    return Run(command, date, seconds, {**MACHINE, **machine}, {"torch": "2.13.0"}, rows or (row(),))


def cells(text: str) -> list[list[str]]:
    """The rows of the table over all, without its head."""
    lines = [line for line in text.split("### All rows")[1].splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def write(path: Path, *rows: Measurement) -> None:
    write_measurements(path, rows or (row(),), started=0.0, num_threads=1)


def test_examples():
    outcome = doctest.testmod(results)
    assert outcome.attempted > 2
    assert outcome.failed == 0


# The page


def test_page_is_what_the_command_renders():
    page = (BENCHMARKS_DIR / "RESULTS.md").read_text(encoding="utf-8")
    assert put_between_marks(page, render(read_runs(BENCHMARKS_DIR / "results"))) == page, (
        "benchmarks/RESULTS.md is not what benchmarks/results/ says: run `python -m benchmarks.results`."
    )


def test_what_is_written_by_hand_has_no_measured_number():
    page = (BENCHMARKS_DIR / "RESULTS.md").read_text(encoding="utf-8")
    by_hand = page.split(BEGIN)[0] + page.split(END)[1]
    by_hand = re.sub(r"^    .*$", "", by_hand, flags=re.MULTILINE)  # commands
    by_hand = re.sub(r"Qwen2\.5|0\.5B|0\.5b|95 %\s+interval", "", by_hand)  # names
    assert re.findall(r"\d+\.\d+|\d+ ?(?:%|(?:x|s|ms|MB|MiB|GB)\b)", by_hand) == []


def test_what_is_written_by_hand_has_lines_of_a_readable_length():
    page = (BENCHMARKS_DIR / "RESULTS.md").read_text(encoding="utf-8")
    by_hand = page.split(BEGIN)[0] + page.split(END)[1]
    assert [line for line in by_hand.splitlines() if len(line) > 120] == []


def test_published_files_name_no_place_of_a_machine():
    for path in (BENCHMARKS_DIR / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(home|tmp|root|work|Users|mnt)\b", text), path
        assert len(text) < 32_000, f"{path} is too large to read: {len(text)} characters"


# The table


def test_rows_are_sorted_by_part_of_the_project():
    runs = {
        "a": run(row("Evaluation"), row("Rollouts", setting="1")),
        "b": run(row("Rollouts", setting="2"), row("Labels")),
    }
    shown = [(cell[0], cell[3]) for cell in cells(render(runs))]
    assert shown == [("**Rollouts**", "1"), ("", "2"), ("**Labels**", "s"), ("**Evaluation**", "s")]


def test_a_cell_is_empty_only_where_all_to_its_left_are_the_same():
    rows = [row(), row(setting="t"), row(against="other"), row(measured="memory", against="other")]
    rows.append(row("Evaluation", measured="memory", against="other"))
    assert [cell[:3] for cell in cells(render({"a": run(*rows)}))] == [
        ["**Scoring**", "speed", "reference"],
        ["", "", ""],
        ["", "", "other"],
        ["", "memory", "other"],
        ["**Evaluation**", "memory", "other"],
    ]


def test_machines_have_letters_and_commands_numbers():
    runs = {
        "a": run(seconds=60.0),
        "b": run(seconds=70.0),
        "c": run(command="python benchmarks/c.py", gpu="G", date="2026-02-01", seconds=None),
        "d": run(num_threads=2),
    }
    text = render(runs)
    assert [cell[5:] for cell in cells(text)] == [
        ["A", "1", "2026-01-31"],
        ["A", "1", "2026-01-31"],
        ["B", "2", "2026-02-01"],
        ["C", "1", "2026-01-31"],
    ]
    assert "- A: P, 4 cores, 23 GiB, 1 thread a process; torch 2.13.0" in text
    assert "- B: G, P, 4 cores" in text
    assert "2 threads a process" in text
    assert "1. `python benchmarks/a.py` (3 min)" in text  # 60 + 70 + 30 seconds
    assert "2. `python benchmarks/c.py` (taken up from an earlier run; machine and versions of the collecting" in text
    assert "All on one machine" not in text


def test_one_machine_needs_no_column():
    text = render({"a": run(), "b": run(command="python benchmarks/b.py", date="2026-02-01")})
    assert "All on one machine: P, 4 cores, 23 GiB, 1 thread a process; torch 2.13.0.\n" in text
    assert "| Ratio or value | Command | Date |" in text
    assert "**Machines.**" not in text
    assert [cell[5:] for cell in cells(text)] == [["1", "2026-01-31"], ["2", "2026-02-01"]]


def test_results_that_say_where_they_were_made_need_no_remark():
    taken_up = dataclasses.replace(run(seconds=None), origin_known=True)
    assert "1. `python benchmarks/a.py` (taken up from an earlier run)\n" in render({"a": taken_up}) + "\n"
    other = dataclasses.replace(taken_up, origin_known=False)
    assert "(taken up from an earlier run; machine and versions of the collecting run)" in render(
        {"a": taken_up, "b": other}
    )


def test_what_measures_the_same_stands_together():
    """In the order in which each is first met, whatever model it is of and whatever file it is in."""
    runs = {
        "a_half": run(row(measured="speed; half")),
        "b_memory": run(row(measured="memory; tiny"), row(measured="memory; half")),
        "c_tiny": run(row(measured="speed; tiny"), row("Rollouts", measured="memory")),
    }
    measured = ["memory", "speed; half", "speed; tiny", "memory; tiny", "memory; half"]
    assert [cell[1] for cell in cells(render(runs))] == measured


# The headlines


def test_headlines_span_all_settings_or_are_one():
    rows = [
        row(measured="speed by wall time; m", setting="a", value=2.5),
        row(measured="speed by wall time; m", setting="b", value=1.5),
        dataclasses.replace(row(measured="speed by wall time; m", setting="c"), value=None, note="never"),
        row(measured="speed by wall time; m", against="other", value=3.0),
        row(measured="memory; m", value=0.1),
        row("GRPO on steps", "samples to the accuracy that", "b", "`reward_to_go`, 3 seeds", 0.5),
        row("GRPO on steps", "samples to the accuracy that", "b", "`min_form`, 3 seeds", 0.1),
    ]
    spanned = "3 settings, 1 of them without a value, lowest to highest"
    assert headlines(rows) == [
        ["**Scoring**", "speed by wall time; m", "reference", spanned, "1.50 to 2.50 x"],
        ["**Scoring**", "speed by wall time; m", "other", "s", "3.00 x"],
        ["**GRPO on steps**", "samples to the accuracy that", "b", "`reward_to_go`, 3 seeds", "0.50 x"],
    ]
    text = render({"a": run(*rows)})
    assert text.startswith(f"### In short\n\n{results.HEADLINE_RULE}\n\n| Benchmark | Measured | Against | Setting |")
    assert len(cells(text)) == len(rows)


def test_every_published_part_has_its_headlines():
    """All that are named, in the order of the parts; few enough to be read at a glance."""
    assert list(HEADLINES) == list(BENCHMARKS)
    rows = [row for of_file in read_runs(BENCHMARKS_DIR / "results").values() for row in of_file.rows]
    for benchmark in {row.benchmark for row in rows}:
        for measured, setting in HEADLINES[benchmark]:
            found = [
                row
                for row in rows
                if row.benchmark == benchmark
                and row.measured.startswith(measured)
                and setting in (None, row.setting.split(",")[0])
            ]
            assert found, (benchmark, measured, setting)
    assert 10 <= sum(len(named) for named in HEADLINES.values()) <= 14
    assert len(headlines(rows)) >= 10


def test_a_bar_in_a_cell_does_not_end_it():
    assert r"a \| b" in render({"a": run(row(setting="a | b"))})


def test_letters_go_on_behind_z():
    assert [results._letter(n) for n in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


@pytest.mark.parametrize("page", ["no marks", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_page_without_its_marks(page):
    with pytest.raises(ValueError, match="must have the lines .* once each, in this order"):
        put_between_marks(page, "text")


# The command


def test_publish_copies_and_renders(tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text(f"Before\n{BEGIN}\n{END}\nAfter\n")
    write(tmp_path / "published" / "kept.json", row("Labels"))
    write(tmp_path / "published" / "again.json", row(value=1.0))
    write(tmp_path / "fresh" / "again.json", row(value=3.0))
    options = ["--results", str(tmp_path / "published"), "--page", str(page)]
    results.main([*options, "--publish", str(tmp_path / "fresh")])
    text = page.read_text()
    assert text.startswith(f"Before\n{BEGIN}\n\n### All rows\n")
    assert text.endswith(f"\n\n{END}\nAfter\n")
    assert [cell[4] for cell in cells(text)] == ["2.00 x", "3.00 x"]
    results.main(options)
    assert page.read_text() == text  # and again, without a change


def test_nothing_is_published_where_one_file_is_wrong(tmp_path, capsys):
    write(tmp_path / "fresh" / "a.json")
    (tmp_path / "fresh" / "b.json").write_text("[]")
    with pytest.raises(SystemExit):
        results.main(["--results", str(tmp_path / "published"), "--publish", str(tmp_path / "fresh"), "--stdout"])
    assert "b.json: the file must be a mapping, got list" in capsys.readouterr().err
    assert not (tmp_path / "published").exists()


def test_nothing_is_copied_that_cannot_be_rendered_or_whose_page_cannot_be_read(tmp_path, capsys):
    """A file kept from before is wrong, or the page has no marks, or is a folder."""
    write(tmp_path / "fresh" / "a.json")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "kept.json").write_bytes(b"\xff")
    (tmp_path / "page.md").write_text("no marks")
    options = ["--results", str(tmp_path / "published"), "--publish", str(tmp_path / "fresh")]

    def refused(page) -> str:
        with pytest.raises(SystemExit) as error:
            results.main([*options, "--page", str(page)])
        assert error.value.code == 2
        assert not (tmp_path / "published" / "a.json").exists()
        return capsys.readouterr().err

    assert "kept.json is no text in UTF-8" in refused(tmp_path / "page.md")
    (tmp_path / "published" / "kept.json").unlink()
    assert "must have the lines" in refused(tmp_path / "page.md")
    assert "Is a directory" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "none.md")


def test_a_wrong_file_is_replaced_by_a_right_one(tmp_path, capsys):
    write(tmp_path / "fresh" / "a.json", row(value=3.0))
    (tmp_path / "a.json").write_text("[]")
    results.main(["--results", str(tmp_path), "--publish", str(tmp_path / "fresh"), "--stdout"])
    assert [cell[4] for cell in cells(capsys.readouterr().out)] == ["3.00 x"]
    assert read_runs(tmp_path)["a"].rows[0].value == 3.0


def test_a_folder_is_not_published_into_itself(tmp_path, capsys):
    write(tmp_path / "a.json")
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(SystemExit) as error:
        results.main(["--results", str(tmp_path), "--publish", f"{tmp_path}/../{tmp_path.name}", "--stdout"])
    assert error.value.code == 2
    assert "--publish and --results are the same folder" in capsys.readouterr().err
    assert (tmp_path / "a.json").read_bytes() == before


def test_stdout_shows_the_table_and_writes_no_page(tmp_path, capsys):
    write(tmp_path / "a.json")
    results.main(["--results", str(tmp_path), "--page", str(tmp_path / "no.md"), "--stdout"])
    assert cells(capsys.readouterr().out)[0][:5] == ["**Scoring**", "speed", "reference", "s", "2.00 x"]
    assert not (tmp_path / "no.md").exists()


def test_empty_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        results.main(["--results", str(tmp_path), "--stdout"])
    assert "No file of measurements (*.json)" in capsys.readouterr().err


def test_every_part_has_its_remarks():
    page = (BENCHMARKS_DIR / "RESULTS.md").read_text(encoding="utf-8")
    assert [name for name in BENCHMARKS if f"\n**{name}.**" not in page] == []
