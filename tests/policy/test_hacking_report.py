"""`trl_erprm.policy.hacking_report` and the perturbations behind it, on models whose scores are known."""

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from tests.tiny import prm_trainer, randomize_head, save_base
from trl_erprm import ProcessReward
from trl_erprm.data import load_rows, to_prompt_rows
from trl_erprm.policy.guards import StepGuards
from trl_erprm.policy.hacking_report import LEAST_GAIN, hacking_report, main, suggested_guards
from trl_erprm.policy.perturbations import FILLER, PERTURBATIONS, join_as, perturb
from trl_erprm.steps import SPLIT_MODES, step_texts

TEXT = "1+1=2\n2+2=5\n5+0=5\n#5"
SCORES = [0.9, 0.1, 0.6, 0.5]


class TestPerturbations:
    BY_HAND = {
        "filler": ["1+1=2", "2+2=5", "5+0=5", FILLER, "#5"],
        "filler_at_end": ["1+1=2", "2+2=5", "5+0=5", "#5", FILLER],
        "empty_steps": ["1+1=2", "2+2=5", "5+0=5", "...", "...", "...", "#5"],
        "repeat_each": ["1+1=2", "1+1=2", "2+2=5", "2+2=5", "5+0=5", "5+0=5", "#5", "#5"],
        "repeat_last": ["1+1=2", "2+2=5", "5+0=5", "#5", "#5", "#5", "#5"],
        "repeat_best": ["1+1=2", "1+1=2", "1+1=2", "1+1=2", "2+2=5", "5+0=5", "#5"],
        "split_each": ["1+", "1=2", "2+", "2=5", "5+", "0=5", "#5"],
        "split_best": ["1", "+", "1", "=2", "2+2=5", "5+0=5", "#5"],
        "merge_all": ["1+1=2 2+2=5 5+0=5 #5"],
        "merge_all_but_last": ["1+1=2 2+2=5 5+0=5", "#5"],
        "skip_worst": ["1+1=2", "5+0=5", "#5"],
        "first_and_last": ["1+1=2", "#5"],
        "last_only": ["#5"],
        "drop_answer": ["1+1=2", "2+2=5", "5+0=5"],
    }

    def test_by_hand(self):
        assert {name: perturb(name, TEXT, SCORES).split("\n") for name in self.BY_HAND} == self.BY_HAND
        assert set(PERTURBATIONS) == {*self.BY_HAND, "blank_lines", "last_line_break"}

    def test_white_space(self):
        assert perturb("last_line_break", TEXT, SCORES) == TEXT + "\n"
        assert perturb("last_line_break", TEXT + "\n\n", SCORES) == TEXT
        blank = perturb("blank_lines", TEXT, SCORES)
        assert blank.count("\n\n\n\n") == 3 and step_texts(blank) == step_texts(TEXT)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("drop_answer", "#5"), ("merge_all", "#5"), ("first_and_last", "1+1=2\n#2"), ("last_only", "#5"),
            ("split_each", "1\n#1"), ("merge_all_but_last", "1+1=2\n#2"),
        ],
    )  # fmt: skip
    def test_where_nothing_can_be_changed(self, name, text):
        assert perturb(name, text, SCORES[: text.count("\n") + 1]) is None

    def test_where_steps_would_not_be_split_as_meant(self):
        assert perturb("filler", TEXT, SCORES, filler="two\nlines") is None

    @pytest.mark.parametrize("split_how", SPLIT_MODES)
    def test_in_every_mode_the_steps_are_split_as_meant(self, split_how):
        text = join_as(["We add one and one.", "So two plus two is five.", "It is 5."], split_how)
        assert len(step_texts(text, split_how)) == 3
        num_steps = {
            "filler": 4, "repeat_each": 6, "split_each": 5, "split_best": 6, "merge_all_but_last": 2, "skip_worst": 2,
            "last_only": 1, "drop_answer": 2,
        }  # fmt: skip
        for name, number in num_steps.items():
            changed = perturb(name, text, [0.1, 0.9, 0.5], split_how)
            assert len(step_texts(changed, split_how)) == number, name
            assert changed != text

    def test_words_stay_whole_where_they_can(self):
        text = "we add one and one\nit is two"
        assert perturb("split_each", text, [0.5, 0.5]) == "we add one\nand one\nit is two"


class TablePRM:
    """Scores by a table; a step that is not in it, one of parts or of several, has the score of `other`."""

    def __init__(self, other=0.5, **table):
        self.other = other
        self.table = {"1+1=2": 0.9, "2+2=5": 0.1, "5+0=5": 0.6, "#5": 0.5, FILLER: 0.8, "...": 0.7}
        self.longest = 0

    def score(self, prompts, steps, batch_size, none_if_too_long):
        self.longest = max([self.longest, *map(len, steps)])
        return [[self.table.get(step, self.other) for step in solution] for solution in steps]


def report_of(texts=(TEXT,), prompts=None, prm=None, **options):
    names = ("aggregations", "perturbations", "filler")
    own = {name: options.pop(name) for name in names if name in options}
    reward = ProcessReward(prm or TablePRM(), **{"answer_how": "arithmetic", **options})
    return hacking_report(reward, prompts or ["p"] * len(texts), texts, **own)


def effect(report, name, aggregation):
    [found] = [e for e in report.effects if (e.perturbation, e.aggregation) == (name, aggregation)]
    return found


class TestEffects:
    @pytest.mark.parametrize(
        ("name", "aggregation", "before", "after"),
        [
            ("filler", "mean", 0.525, (0.9 + 0.1 + 0.6 + 0.8 + 0.5) / 5),
            ("filler", "min", 0.1, 0.1),
            ("filler", "last", 0.5, 0.5),
            ("filler_at_end", "last", 0.5, 0.8),
            ("empty_steps", "product", 0.027, 0.027 * 0.7**3),
            ("repeat_best", "mean", 0.525, (4 * 0.9 + 0.1 + 0.6 + 0.5) / 7),
            ("skip_worst", "min", 0.1, 0.5),
            ("skip_worst", "product", 0.027, 0.27),
            ("merge_all", "min", 0.1, 0.5),
            ("drop_answer", "product", 0.027, 0.054),
            ("blank_lines", "mean", 0.525, 0.525),
        ],
    )
    def test_by_hand(self, name, aggregation, before, after):
        report = report_of(aggregations=[aggregation], perturbations=[name])
        assert report.mean_scores == {aggregation: pytest.approx(before)}
        found = effect(report, name, aggregation)
        assert tuple(found.change) == pytest.approx((after - before,) * 3)
        assert found.share_gaining == (after > before + LEAST_GAIN)
        assert found.pays is (after > before + LEAST_GAIN)

    def test_with_guards(self):
        guards = StepGuards(min_steps=3, credit_fillers=False)
        report = report_of(guards=guards, aggregations=["mean", "min"])
        # Fillers give no credit, and are not rejected.
        found = effect(report, "repeat_best", "mean")
        assert (found.pays, found.pays_with_guards, found.share_rejected) == (True, False, 0.0)
        assert found.guarded_change.mean == 0
        # Merged steps are rejected: their reward falls to 0.
        found = effect(report, "merge_all", "min")
        assert (found.pays, found.pays_with_guards, found.share_rejected) == (True, False, 1.0)
        assert found.guarded_change.mean == pytest.approx(-0.1)
        # A filler in words is not seen by these guards.
        assert effect(report, "filler", "mean").pays_with_guards
        assert "filler" in {e.perturbation for e in report.paying(with_guards=True)}
        assert len(report.paying(with_guards=True)) < len(report.paying())

    def test_the_answer_is_a_guard(self):
        found = effect(report_of(aggregations=["product"]), "drop_answer", "product")
        assert (found.pays, found.pays_with_guards, found.share_rejected) == (True, False, 1.0)
        found = effect(report_of(aggregations=["product"], require_answer=False), "drop_answer", "product")
        assert found.pays_with_guards and found.share_rejected == 0

    def test_the_reward_of_the_malformed_counts(self):
        found = effect(report_of(aggregations=["product"], reward_if_malformed=-1.0), "drop_answer", "product")
        assert found.guarded_change.mean == pytest.approx(-1.027)

    def test_sorted_by_change_and_aggregations_apart(self):
        report = report_of(aggregations=["mean", "min"])
        assert [e.aggregation for e in report.effects] == ["mean"] * 16 + ["min"] * 16
        changes = [e.change.mean for e in report.effects[:16]]
        assert changes == sorted(changes, reverse=True) and changes[0] > 0 > changes[-1]

    def test_solutions_of_one_prompt_are_averaged_first(self):
        """Three solutions of p gain 0, one of q gains 0.4: the mean over prompts is 0.2, that over solutions 0.1."""
        flat = "5+0=5\n5+0=5\n#5"
        report = report_of(
            [flat] * 3 + [TEXT], ["p", "p", "p", "q"], aggregations=["min"], perturbations=["skip_worst"]
        )
        found = effect(report, "skip_worst", "min")
        assert found.change.mean == pytest.approx(0.2)
        assert (found.change.low, found.change.high) == pytest.approx((0.0, 0.4))
        assert (found.num_solutions, found.share_gaining, found.pays) == (4, 0.25, False)

    def test_what_is_left_out_is_counted(self):
        class ShortSighted(TablePRM):
            def score(self, prompts, steps, **options):
                scores = super().score(prompts, steps, **options)
                return [None if len(s) > 6 else s for s in scores]

        texts = [TEXT, "", "1+1=2\n5+0=5", TEXT.replace("\n", "\n...\n")]
        report = report_of(texts, prm=ShortSighted(), aggregations=["min"])
        assert (report.num_solutions, report.num_unscored, report.num_rejected) == (2, 2, 1)  # no step, too long
        assert effect(report, "repeat_each", "min").num_solutions == 1  # of the other it is too long
        found = effect(report, "skip_worst", "min")
        assert found.num_solutions == 2 and found.guarded_change.mean == pytest.approx(0.4)  # of the admitted one

    def test_where_the_guards_admit_nothing(self):
        found = effect(report_of(aggregations=["min"], guards=StepGuards(min_steps=9)), "filler", "min")
        assert found.guarded_change is found.share_rejected is None and not found.pays_with_guards

    def test_a_model_alone_gets_the_suggested_guards(self):
        texts = ["1+1=2\n5+0=5\nThe answer is 5", "1+1=2\n2+2=5\n5+0=5\nThe answer is 5"]
        report = hacking_report(TablePRM(), ["p", "q"], texts, ["mean"])
        assert report.guards == suggested_guards(texts) and report.num_rejected == 0
        assert effect(report, "merge_all", "mean").share_rejected == 1.0

    def test_conversational(self):
        messages = [[{"role": "assistant", "content": TEXT}]]
        report = report_of(messages, [[{"role": "user", "content": "p"}]], aggregations=["min"])
        assert report.effects == report_of(aggregations=["min"]).effects

    def test_the_models_options_hold(self):
        """What the reward reads of prompts, and how much at once, is what is reported on."""
        seen = []

        class Recording(TablePRM):
            def score(self, prompts, steps, batch_size, none_if_too_long, **options):
                seen.append((batch_size, options))
                return super().score(prompts, steps, batch_size, none_if_too_long)

        report_of(prm=Recording(), batch_size=7, prompt_as="problem", max_tokens_per_batch=64)
        assert seen == [(7, {"prompt_as": "problem", "max_tokens_per_batch": 64})] * 2

    def test_scores_are_computed_once_for_all_aggregations(self):
        class Counting(TablePRM):
            num_calls = 0

            def score(self, *args, **options):
                self.num_calls += 1
                return super().score(*args, **options)

        prm = Counting()
        report_of(prm=prm, aggregations=["min", "mean", "last", "max"])
        assert prm.num_calls == 2

    def test_bad_input(self):
        with pytest.raises(ValueError, match="`perturbations` must be one of .*got 'repeat_bets'. Did you mean"):
            report_of(perturbations=["repeat_bets"])
        with pytest.raises(ValueError, match="`aggregations` must be one of"):
            report_of(aggregations=["minimum"])
        for texts in ([], ["", " \n"]):
            with pytest.raises(ValueError, match=f"None of {len(texts)} solutions can be scored. Give solutions that"):
                report_of(texts)


class TestSuggestedGuards:
    TEXTS = ["aa bb\n\ncccc\n#1", "aa\nbbbbbb\n...\n...\n#2"]

    def test_by_hand(self):
        guards = suggested_guards(self.TEXTS, slack=2)
        assert guards.settings == {
            "min_steps": 3, "max_steps": 10, "min_characters_per_step": 1.6, "max_step_characters": 12,
            "max_share_of_fillers": 0.7, "credit_fillers": False,
        }  # fmt: skip

    @pytest.mark.parametrize("slack", [1, 1.5, 3])
    def test_the_solutions_pass(self, slack):
        guards = suggested_guards(self.TEXTS, slack=slack)
        assert all(guards.violation(step_texts(text)) is None for text in self.TEXTS)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="`slack` must be at least 1, got 0.5"):
            suggested_guards(self.TEXTS, slack=0.5)
        with pytest.raises(ValueError, match="None of the completions has a step"):
            suggested_guards(["", "\n"])


def test_suggested_guards_on_real_solutions(shared_data):
    """GSM8K: read off 1,000 solutions, applied to the next 1,000 (the figures of docs/process-rewards.md)."""
    rows = load_rows(dataset_path=shared_data / "gsm8k" / "train.jsonl").select(range(2000))
    solutions = to_prompt_rows(rows)["solution"]
    guards = suggested_guards(solutions[:1000])

    def share_rejected(texts):
        violations = [guards.violation(step_texts(text)) for text in texts if text is not None]
        return np.mean([violation is not None for violation in violations])

    def perturbed(name):
        return [perturb(name, text, [0.5] * len(step_texts(text))) for text in solutions[1000:]]

    assert share_rejected(solutions[1000:]) == 0
    assert {name: share_rejected(perturbed(name)) for name in ("merge_all", "merge_all_but_last", "repeat_each")} == {
        "merge_all": 1, "merge_all_but_last": 1, "repeat_each": 1
    }  # fmt: skip
    assert share_rejected(perturbed("empty_steps")) == pytest.approx(0.77, abs=0.005)
    assert share_rejected(perturbed("skip_worst")) == pytest.approx(0.27, abs=0.005)
    assert share_rejected(perturbed("split_each")) == pytest.approx(0.03, abs=0.005)


def test_print_one_solution():
    file = io.StringIO()
    report_of([TEXT]).print(Console(file=file, width=80, highlight=False))
    assert file.getvalue().startswith("1 solution (0 more could not be scored); ")


def test_print():
    report = report_of([TEXT, "1+1=2\n#5", ""], aggregations=["mean", "min"], guards=StepGuards(credit_fillers=False))
    file = io.StringIO()
    report.print(Console(file=file, width=80, highlight=False))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert "2 solutions (1 more could not be scored); the guards reject 0 as they are" in text
    assert f"mean, mean score {report.mean_scores['mean']:.3f}" in text and "min, mean score 0.300" in text
    assert report.mean_scores["mean"] == pytest.approx((0.525 + 0.7) / 2)
    [line] = [line for line in text.splitlines() if line.startswith("repeat_best")][:1]
    found = effect(report, "repeat_best", "mean")
    assert line.split()[1:4] == [
        f"{found.change.mean:+.3f}",
        f"[{found.change.low:+.2f}",
        f"{found.change.high:+.2f}]",
    ]
    assert line.split()[4] == "100%" and line.split()[-1] == "0%"
    assert "possible with some of the solutions only:" in text and "first_and_last (1)" in text
    [paying] = [line for line in text.splitlines() if line.startswith("pays with guards:")]
    assert "mean: " in paying and "filler" in paying


class TestCommandLine:
    @pytest.fixture(scope="class")
    @classmethod
    def prm_path(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("prm")
        row = {"prompt": "1+1\n", "completions": ["1+1=2"], "labels": [1.0]}
        trainer = prm_trainer(save_base(tmp_path_factory.mktemp("base")), folder, [row])
        randomize_head(trainer.model)
        trainer.save_model()
        return str(folder)

    STEPS = [["1+1=2", "2+1=3", "#3"], ["3+4=7", "#7"], ["2*2=4", "4+0=4", "#4"]]
    LAYOUTS = {
        "completion": [{"prompt": "1+1\n", "completion": "\n".join(steps)} for steps in STEPS],
        "stepwise": [{"prompt": "1+1\n", "completions": steps, "labels": [1.0] * len(steps)} for steps in STEPS],
        "gsm8k": [
            {"question": "1+1\n", "answer": "\n".join(["1+1=2", *steps[:-1], f"####{steps[-1][1:]}"])}
            for steps in STEPS
        ],
    }

    def run(self, path, prm_path, *options):
        return main(["--prm_path", prm_path, "--dataset_path", str(path), *options])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, layout, prm_path, tmp_path, capsys):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.LAYOUTS[layout]))
        code = self.run(path, prm_path, "--aggregations", "mean", "--num_solutions", "2")
        text = capsys.readouterr().out
        assert code in (0, 1) and ("pays with guards: nothing" in text) is (code == 0)
        assert "2 solutions (0 more could not be scored)" in text
        reward = ProcessReward(prm_path, "mean", require_answer=False)
        rows = self.LAYOUTS[layout][:2]
        texts = ["\n".join(s) for s in self.STEPS] if layout != "gsm8k" else [row["answer"] for row in rows]
        mean_score = np.mean(reward(["1+1\n"] * 2, texts[:2]))
        assert f"mean, mean score {mean_score:.3f}" in text

    def test_options_reach_the_report(self, prm_path, tmp_path, capsys):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.LAYOUTS["stepwise"]))
        self.run(path, prm_path, "--max_steps", "2", "--aggregations", "min", "--answer_how", "arithmetic")
        text = " ".join(capsys.readouterr().out.split())
        assert "the guards reject 2 as they are: {'max_steps': 2}" in text and "mean, mean score" not in text

    def test_how_rows_are_read(self, prm_path, tmp_path, capsys, monkeypatch):
        seen = []

        class Recording(TablePRM):
            def score(self, prompts, steps, batch_size, none_if_too_long):
                seen.append((list(prompts), [list(of_one) for of_one in steps], batch_size))
                return super().score(prompts, steps, batch_size, none_if_too_long)

        load = "trl_erprm.policy.process_reward.ProcessRewardModel.from_pretrained"
        monkeypatch.setattr(load, lambda path: Recording())
        rows = [{"prompt": "p", "completions": ["a\nb", "#1"], "labels": [1.0, 1.0]}]
        rows += [{"prompt": "q\n", "completions": ["c", "#2"], "labels": [1.0, 1.0]}]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = ["--prompt_suffix", "\n", "--split_how", "blank_line", "--batch_size", "7", "--filler", "well"]
        self.run(path, prm_path, *options, "--num_solutions", "0")
        assert seen[0] == (["p\n", "q\n"], [["a\nb", "#1"], ["c", "#2"]], 7)
        assert ["a\nb", "well", "#1"] in seen[1][1]

    def test_exit_code_says_whether_something_pays_with_the_guards(self, prm_path, tmp_path, capsys, monkeypatch):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": "p", "completion": TEXT}) + "\n")
        monkeypatch.setattr(
            "trl_erprm.policy.process_reward.ProcessRewardModel.from_pretrained", lambda path: TablePRM()
        )
        options = ("--answer_how", "arithmetic", "--aggregations", "mean")
        assert self.run(path, prm_path, *options, "--max_steps", "9") == 1
        assert self.run(path, prm_path, *options, "--min_steps", "4", "--max_steps", "4") == 0

    def test_a_model_from_elsewhere_with_its_format(self, prm_path, tmp_path, capsys):
        shutil.copytree(prm_path, tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "prm_format.json").unlink()
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.LAYOUTS["stepwise"]))
        self.run(path, prm_path)
        expected = capsys.readouterr().out
        assert self.run(path, str(tmp_path / "elsewhere")) == 2
        assert "(in the recipes and the hacking report `--prm_format`), one of 'trl'" in capsys.readouterr().err
        self.run(path, str(tmp_path / "elsewhere"), "--prm_format", "trl")
        assert capsys.readouterr().out == expected

    def test_what_is_read_of_chats(self, prm_path, tmp_path, capsys):
        """The model was trained on text: only the problem of a chat is read, unless the option says otherwise."""
        path, chat = tmp_path / "rows.jsonl", [{"role": "user", "content": "1+1\n"}]
        path.write_text("".join(json.dumps(row) + "\n" for row in self.LAYOUTS["completion"]))
        self.run(path, prm_path)
        expected = capsys.readouterr().out
        rows = [{**row, "prompt": chat} for row in self.LAYOUTS["completion"]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.run(path, prm_path)
        assert capsys.readouterr().out == expected
        assert self.run(path, prm_path, "--prompt_as", "chat") == 2
        assert "`prompt_as='chat'` was given), but its tokenizer has no chat template" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--prm_format", "qwen"], "`prm_format` must be one of 'trl'"),
            (["--prompt_as", "text"], "`prompt_as` must be one of 'auto', 'chat', 'problem', got 'text'"),
            (["--aggregations", "minimum"], "got 'minimum'"),
            (["--min_steps", "0"], "`min_steps` must be at least 1"),
            (["--dataset_path", "nowhere.jsonl"], "nowhere.jsonl"),
            (["--prm_path", "nowhere"], "nowhere"),
            (
                ["--prm_path", "./nowhere"],
                "`prm_path` must be an existing directory or a model on the Hub, got './",
            ),
            (["--prm_path", "outputs/er/prmm"], "got 'outputs/er/prmm', which does not exist. Check the path, which"),
            (["--max_step", "3"], "max_step"),
        ],
    )
    def test_wrong_arguments(self, options, message, prm_path, tmp_path, capsys):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": "p", "completion": TEXT}) + "\n")
        given = {"--prm_path": prm_path, "--dataset_path": str(path)} | dict(
            zip(options[::2], options[1::2], strict=True)
        )
        assert main([part for pair in given.items() for part in pair]) == 2
        assert message in capsys.readouterr().err

    def test_rows_without_solutions(self, prm_path, tmp_path, capsys):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"question": "1+1", "answer": "2"}) + "\n")
        assert self.run(path, prm_path) == 2
        assert "`dataset_path` must hold solutions, got the columns answer, question" in capsys.readouterr().err
