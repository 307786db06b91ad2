"""`trl_erprm.prm.doctor`: what the command line says and returns."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from transformers import Qwen2Config

from tests.prm.diagnosis import diagnose, found, row
from tests.tokenizers import byte_level_tokenizer
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm import doctor
from trl_erprm.prm.formats import MATH_SHEPHERD, RLHFLOW, TRL_TOKEN_CLASSIFICATION

REPO_ROOT = Path(__file__).resolve().parents[2]


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Tokenizer and config of a model without weights."""
    path = tmp_path_factory.mktemp("doctor") / "model"
    build_tokenizer().save_pretrained(path)
    Qwen2Config(vocab_size=100, architectures=["Qwen2ForCausalLM"]).save_pretrained(path)
    return str(path)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, model):
    """Runs the command line: exit code, standard output with the lines as long as they get, standard error."""

    def run(rows, *arguments, path=model):
        monkeypatch.setenv("COLUMNS", "400")
        dataset = rows if isinstance(rows, str) else write(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", rows)
        code = doctor.main(["--model", path, "--dataset", dataset, *arguments])
        return code, *capsys.readouterr()

    return run


class TestCommandLine:
    def test_healthy(self, run):
        code, out, err = run([row(), row((None, 0.4, 0.0))])
        assert code == 0, out + err
        assert "✓ steps = step ends = labels 6 steps, 6 step ends, 5 labels in 2 rows" in " ".join(out.split())
        assert "format 'trl' (default of the head): token_classification, text, pieces" in out
        assert "2 rows, 6 steps, 5 labels to train on; errors: 0, warnings: 0" in out
        assert "✗" not in out and "!" not in out

    def test_rows_are_shown_token_by_token(self, run):
        _, out, _ = run([row((0.9, None, 0.75)), row()], "--max_length", "14", "--show_rows", "1")
        lines = [" ".join(line.split()) for line in out.splitlines()]
        start = lines.index("row 0: 15 tokens, 3 steps")
        assert lines[start + 1 : start + 5] == [
            "prompt 3 +4 *2 ⏎",
            "step 0 3 +4= 2 ⏎[0.90]",
            "step 1 2 *2= 4 ⏎[none]",
            "step 2 # 4 ⏎[0.75,cut]",
        ]
        assert "row 1:" not in out

    def test_errors(self, run):
        bad = [row((0.9, 0.1)) if 3 <= i < 15 else row() for i in range(20)]
        code, out, _ = run(bad)
        assert code == 1
        assert "✗ steps = step ends = labels 24 steps" in " ".join(out.split())
        assert (
            "error: steps = step ends = labels: rows 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 2 more: `labels` must" in out
        )
        assert "8 rows, 24 steps, 24 labels to train on; errors: 12, warnings: 0" in out

    def test_many_different_errors(self, run):
        """Rows 0 to 11 have labels too many, each another number of them."""
        code, out, _ = run([row([1] * (4 + i)) for i in range(12)] + [row()])
        errors = [line for line in out.splitlines() if line.startswith("error: ")]
        assert code == 1 and [f"row {i}: `labels` must" in line for i, line in enumerate(errors)] == [True] * 10
        assert "  and 2 more findings of this check" in out

    def test_warnings_fail_only_if_strict(self, run):
        rows = [row([1, 1, 1])]
        code, out, _ = run(rows)
        assert code == 0 and "warning: labels: all labels are 1: a constant fits them." in out
        assert run(rows, "--strict")[0] == 1
        assert run([row()], "--strict")[0] == 0

    def test_num_rows(self, run):
        rows = [row(), row(), row((0.9, 0.1))]
        code, out, _ = run(rows, "--num_rows", "2")
        assert code == 0 and "2 stepwise rows from 2 of 3" in out
        assert run(rows)[0] == 1

    def test_format_of_the_checkpoint(self, run, tmp_path):
        path = tmp_path / "checkpoint"
        build_tokenizer().save_pretrained(path)
        Qwen2Config(vocab_size=100, architectures=["Qwen2ForTokenClassification"], num_labels=1).save_pretrained(path)
        dataclasses.replace(TRL_TOKEN_CLASSIFICATION, name="ours", step_tag="#").save(path)
        _, out, _ = run([row()], path=str(path))
        assert "format 'ours' (the checkpoint's)" in out and "the tag '#' is" in out
        _, out, _ = run([row()], "--step_tag", "=", path=str(path))
        assert "format 'ours' (the checkpoint's)" in out and "the tag '=' is" in out
        _, out, _ = run([row()], "--format", "trl", path=str(path))
        assert "format 'trl' (given)" in out and r"the tag '\n' is" in out

    def test_an_adapter_has_the_config_of_its_base_model(self, run, tmp_path, model):
        path = tmp_path / "adapter"
        build_tokenizer().save_pretrained(path)
        (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": model}))
        code, out, err = run([row()], path=str(path))
        assert code == 0 and "Qwen2ForCausalLM" in out, out + err

    def test_format_of_a_public_model(self, tmp_path):
        args = doctor.FormatArguments()
        assert doctor.resolve_format("rlhflow/Llama3.1-8B-PRM-Mistral-Data", args) == (RLHFLOW, "known for this model")
        assert doctor.resolve_format(str(tmp_path), args) == (TRL_TOKEN_CLASSIFICATION, "default of the head")
        args = doctor.FormatArguments(head="causal_lm")
        assert doctor.resolve_format(str(tmp_path), args) == (MATH_SHEPHERD, "default of the head")

    def test_causal_head_with_overrides(self, run):
        arguments = ["--head", "causal_lm", "--step_tag", "ки", "--prompt_separator", "\n", "--tokenization", "pieces"]
        code, out, err = run([row()], *arguments)
        assert code == 0, out + err
        assert "format 'math-shepherd' (default of the head): causal_lm, text, pieces" in out and "'+' is " in out

    def test_labels_from_counts(self, run):
        counts = {"num_correct": [2, 0, 8], "num_rollouts": [4, 8, 8]}
        too_few, too_many = {**counts, "num_correct": [2, 0]}, {**counts, "num_correct": [9, 0, 8]}
        rows = [row(**counts), row(**too_few), row(**too_many), row(**counts)]
        code, out, _ = run(rows, "--eta", "1")
        assert code == 1
        assert "step 0 3 +4= 2 ⏎[0.62]" in " ".join(out.split())  # V_1 of 2 of 4, as in the estimator's docstring
        assert "row 1: has 3 steps, but 2 `num_correct` and 3 `num_rollouts`" in out
        assert "error: rows can be read: row 2: " in out
        assert "2 stepwise rows from 4 of 4" in out and "\nrow 3: " in out

    def test_neither_labels_nor_eta(self, run):
        unlabelled = {"prompt": "3+4\n", "completions": ["3+4=2"], "num_correct": [1], "num_rollouts": [2]}
        code, _, err = run([unlabelled])
        assert code == 2 and "The rows have rollout counts but no `labels`. Give `eta` to label them" in err
        code, out, _ = run([unlabelled], "--eta", "0")
        assert code == 0 and "⏎[0.50]" in out
        code, _, err = run([row()], "--eta", "1")
        assert code == 2 and "`eta` needs `num_correct` and `num_rollouts`, got the columns completions, labels" in err
        code, _, err = run([{"prompt": "3+4\n", "completions": ["3+4=2"]}])
        assert code == 2 and "The columns are of no stepwise layout" in err

    def test_rows_of_another_layout_that_cannot_be_read(self, run):
        good = {"input": "3+4 Step 1: 3+4=2 ки\nStep 2: 2 ки", "label": "3+4 Step 1: 3+4=2 +\nStep 2: 2 -"}
        bad = {**good, "label": "3+4 Step 1: 3+4=7 +\nStep 2: 2 -"}
        unlabelled = {**good, "label": ""}
        code, out, _ = run([good, bad, good, unlabelled])
        assert code == 1
        assert "error: rows can be read: row 1: the column `label` does not follow the column `input`" in out
        assert "error: rows can be read: row 3: the column `label` must be a str that is not empty" in out
        assert "2 rows, 4 steps, 4 labels to train on" in out
        assert [line.split(":")[0] for line in out.splitlines() if line.startswith("row ")] == ["row 0", "row 2"]

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["--fromat", "trl"], "Unknown argument `fromat` on the command line. Did you mean `format`?"),
            (["--format", "rlhf"], "got 'rlhf'. Did you mean 'rlhflow'?"),
            (
                ["--format", "trl", "--head", "causal_lm"],
                "The format 'trl' is read with the head 'token_classification'",
            ),
            (["--num_rows", "0"], "`num_rows` must be at least 1 or null, got 0."),
            (["--max_length", "-5"], "`max_length` must be at least 1 or null, got -5."),
        ],
    )
    def test_wrong_arguments(self, run, arguments, message):
        code, out, err = run([row()], *arguments)
        assert code == 2 and out == ""
        assert message in err

    def test_what_does_not_exist(self, run, tmp_path):
        code, _, err = run(str(tmp_path / "rows.jsonl"))
        assert code == 2 and "`dataset` must be an existing path or a name on the Hub, got" in err
        code, _, err = run("rows.jsonl")
        assert code == 2 and "`dataset` must be an existing path or a name on the Hub, got 'rows.jsonl'" in err
        code, _, err = run([row()], path=str(tmp_path / "model"))
        assert code == 2 and "`model` must be an existing path or a name on the Hub, got" in err
        (tmp_path / "broken.jsonl").write_text('{"prompt": \n')
        code, _, err = run(str(tmp_path / "broken.jsonl"))
        assert code == 2 and "`dataset` must be rows that can be loaded, got " in err and "JSON parse error" in err
        (tmp_path / "empty").mkdir()
        code, _, err = run([row()], path=str(tmp_path / "empty"))
        assert code == 2 and "`model` must be a directory or id of a model, with its tokenizer, got " in err

    def test_as_a_module(self, model, tmp_path):
        """At 100 columns, without colour."""
        path = write(tmp_path / "rows.jsonl", [row(), row((0.9, 0.1))])
        command = [sys.executable, "-m", "trl_erprm.prm.doctor", "--model", model, "--dataset", path]
        done = subprocess.run(
            command,
            cwd=REPO_ROOT,
            env={**os.environ, "COLUMNS": "100", "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == 1, done.stderr
        assert "1 rows, 3 steps, 3 labels to train on; errors: 1, warnings: 0" in done.stdout
        assert "\x1b" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 100


class TestColours:
    def shown(self, diagnosis):
        console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200)
        [checked] = diagnosis.rows
        doctor.print_row(console, TRL_TOKEN_CLASSIFICATION, build_tokenizer(), checked)
        return console.file.getvalue()

    def test_labels_go_from_red_to_green(self, monkeypatch):
        monkeypatch.delenv("NO_COLOR", raising=False)
        out = self.shown(diagnose(row((0.0, 0.5, 1.0))))
        for label, colour in (("0.00", "230;0;60"), ("0.50", "230;200;60"), ("1.00", "0;200;60")):
            [line] = [line for line in out.splitlines() if f"⏎[{label}]" in line]
            assert f"48;2;{colour}m⏎[{label}]" in line, line

    def test_steps_that_are_cut_are_struck(self, monkeypatch):
        monkeypatch.delenv("NO_COLOR", raising=False)
        out = self.shown(diagnose(row(), max_length=10))
        struck = ["\x1b[2;9m" in line for line in out.splitlines() if "step " in line and "tokens" not in line]
        assert struck == [False, True, True]

    def test_no_colour(self, monkeypatch):
        monkeypatch.setenv("NO_COLOR", "1")
        assert "48;2" not in self.shown(diagnose(row()))

    def test_tokens_of_several_bytes_and_long_steps(self):
        tokenizer = byte_level_tokenizer(knows_tag=False)
        diagnosis = diagnose(row([1, 0], ["a\tb", "x" * 90], "ab c"), tokenizer=tokenizer, format=MATH_SHEPHERD)
        assert found(diagnosis) == []
        console = Console(file=io.StringIO(), width=2000)
        doctor.print_row(console, MATH_SHEPHERD, tokenizer, diagnosis.rows[0])
        lines = console.file.getvalue().splitlines()
        assert lines[3].rstrip().endswith("⇥ b ␣ · к · и[1.00]"), lines
        # a newline and 39 letters, then the last 16 of 90 and four tokens of the tag, before the one that is read
        assert " x … 35 tokens … x " in lines[4] and lines[4].count(" x") == 39 + 16, lines[4]
