"""`recipes/evaluate.py`: the embedded task, files as they are, a policy to sample from, and what stops it."""

import gzip
import html
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.recipes.commands import read_jsonl, write_jsonl
from tests.rollout import servers
from tests.tiny import prm_trainer, save_base
from trl_erprm import ProcessRewardModel
from trl_erprm.evaluation import run as evaluation_run
from trl_erprm.rollout.transformers_engine import TransformersEngine

pytest.importorskip("matplotlib")

ROWS = [{"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "labels": [1.0, 1.0]}]


@pytest.fixture
def evaluate(recipes):
    return recipes["evaluate"].main


@pytest.fixture(scope="module")
def prms(tmp_path_factory):
    """Two PRMs of different random weights for the embedded task."""
    paths = {}
    for seed, name in enumerate(("er", "soft")):
        paths[name] = tmp_path_factory.mktemp("prm") / name
        prm_trainer(save_base(tmp_path_factory.mktemp("base"), seed), paths[name], ROWS, seed=seed).save_model()
    return paths


@pytest.fixture
def files(tmp_path):
    """Candidates and the step scores of two models: one knows, one is always wrong."""
    generator = np.random.default_rng(0)
    candidates, good, bad = [], [], []
    for i in range(12):
        right = generator.random(4) < 0.5
        candidates.append(
            {
                "problem_id": f"q{i}",
                "prompt": "?",
                "answer": "1/2",
                "candidates": [
                    {
                        "completion": "a\nb",
                        "steps": ["a", "b"],
                        "extracted_answer": "0.5" if r else "3",
                        "is_correct": bool(r),
                    }
                    for r in right
                ],
            }
        )
        good.append({"problem_id": f"q{i}", "step_scores": [[0.9 * r + 0.05, 0.5] for r in right.tolist()]})
        bad.append({"problem_id": f"q{i}", "step_scores": [[0.95 - 0.9 * r, 0.5] for r in right.tolist()]})
    return {
        "candidates": write_jsonl(tmp_path / "candidates.jsonl.gz", candidates),
        "good": write_jsonl(tmp_path / "step_scores_good.jsonl.gz", good),
        "bad": write_jsonl(tmp_path / "bad.jsonl", bad),
        "rows": {"candidates": candidates, "good": good, "bad": bad},
    }


def from_files(files, output_dir, *scores):
    return ["--candidates", files["candidates"], "--step_scores", *scores, "--output_dir", str(output_dir)]


class TestFiles:
    def test_a_report_of_two(self, evaluate, files, tmp_path, capsys):
        metrics = evaluate(from_files(files, tmp_path / "o", files["good"], f"worst={files['bad']}"))
        assert list(metrics["scorers"]) == ["good", "worst"]
        accuracy = {
            name: scorer["aggregations"]["min"]["best_of_n"]["accuracy"][-1]
            for name, scorer in metrics["scorers"].items()
        }
        right = [[c["is_correct"] for c in row["candidates"]] for row in files["rows"]["candidates"]]
        assert accuracy == {"good": np.mean([any(r) for r in right]), "worst": np.mean([all(r) for r in right])}
        assert json.loads((tmp_path / "o" / "metrics.json").read_text("utf-8")) == metrics
        page = (tmp_path / "o" / "report.html").read_text("utf-8")
        assert "Best of 4" in page and "worst" in page and "Calibration" in page
        output = capsys.readouterr().out
        assert "worst" in output and "majority vote" in output and "report.html" in output
        # again, and with another aggregation first: the same directory
        assert evaluate(from_files(files, tmp_path / "o", files["good"], f"worst={files['bad']}")) == metrics
        other = evaluate([*from_files(files, tmp_path / "o", files["good"]), "--aggregation", "last"])
        assert other["aggregation"] == "last" and list(other["scorers"]) == ["good"]

    def test_scores_that_are_no_probabilities(self, evaluate, files, tmp_path, capsys):
        """They are compared, but not calibrated, and that is said on the terminal and in the report."""
        for row in files["rows"]["bad"]:
            row["step_scores"] = [[4 * score - 1 for score in steps] for steps in row["step_scores"]]
        write_jsonl(Path(files["bad"]), files["rows"]["bad"])
        metrics = evaluate(from_files(files, tmp_path / "o", files["good"], f"logits={files['bad']}"))
        assert list(metrics["scorers"]) == ["good", "logits"] and list(metrics["calibration"]) == ["good"]
        note = (
            "'logits' has scores from -0.8 to 2.8, outside [0, 1], which are no probabilities: it has no calibration."
        )
        assert note in " ".join(capsys.readouterr().out.split())
        assert note in html.unescape((tmp_path / "o" / "report.html").read_text("utf-8"))

    def test_aggregations_that_are_not_among_the_six(self, evaluate, files, tmp_path):
        arguments = from_files(files, tmp_path / "o", files["good"], files["bad"])
        metrics = evaluate([*arguments, "--aggregation", "softmin(0.5)", "--own_aggregations", "bad=last"])
        assert [metrics["scorers"][name]["aggregation"] for name in ("good", "bad")] == ["softmin(0.5)", "last"]
        assert list(metrics["scorers"]["good"]["aggregations"])[-1] == "softmin(0.5)"
        assert "by softmin(0.5) of its step scores. bad: by last." in (tmp_path / "o" / "report.html").read_text(
            "utf-8"
        )

    def test_other_candidates_need_another_directory(self, evaluate, files, tmp_path):
        evaluate(from_files(files, tmp_path / "o", files["good"]))
        page = (tmp_path / "o" / "report.html").read_bytes()
        rows = files["rows"]
        files["candidates"] = write_jsonl(tmp_path / "fewer.jsonl", rows["candidates"][:-1])
        scores = write_jsonl(tmp_path / "fewer_scores.jsonl", rows["good"][:-1])
        with pytest.raises(ValueError, match="holds another run: `candidates` is"):
            evaluate(from_files(files, tmp_path / "o", scores))
        assert (tmp_path / "o" / "report.html").read_bytes() == page

    def test_seven_public_models_as_they_are(self, evaluate, shared_data, tmp_path):
        directory = shared_data / "bon_gsm8k"
        if not directory.is_dir():
            pytest.skip(f"no {directory}")
        scores = sorted(map(str, directory.glob("step_scores_*")))
        metrics = evaluate(
            ["--candidates", str(directory / "candidates.jsonl.gz"), "--step_scores", *scores]
            + ["--output_dir", str(tmp_path / "o")]
        )
        assert (metrics["num_problems"], metrics["num_candidates"], len(metrics["scorers"])) == (100, 32, 7)
        for scorer in metrics["scorers"].values():
            assert list(scorer["aggregations"]) == ["min", "product", "mean", "last", "max", "softmin"]
            for curves in scorer["aggregations"].values():
                assert all(len(curves[key]["accuracy"]) == 32 for key in ("best_of_n", "weighted_majority"))
        # 21 pairs of models, each against majority vote, and each one's vote
        assert len(metrics["pairs"]) == 6 * (21 + 7 + 7)
        with gzip.open(directory / "candidates.jsonl.gz", "rt", encoding="utf-8") as file:
            problems = [json.loads(line)["candidates"] for line in file]
        for name in ("qwen_prm", "internlm2_7b_reward"):
            with gzip.open(directory / f"step_scores_{name}.jsonl.gz", "rt", encoding="utf-8") as file:
                scores = [[min(steps) for steps in json.loads(line)["step_scores"]] for line in file]
            right = sum(c[s.index(max(s))]["is_correct"] for c, s in zip(problems, scores, strict=True))
            assert metrics["scorers"][name]["aggregations"]["min"]["best_of_n"]["accuracy"][31] == right / 100
        assert "gsm8k_062" in metrics["notes"][0]


class TestBadInput:
    """A message that names the row, and nothing that passes for a report."""

    @pytest.fixture(autouse=True)
    def no_report(self, tmp_path):
        yield
        assert not (tmp_path / "o" / "report.html").exists() and not (tmp_path / "o" / "metrics.json").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda rows: rows["candidates"][3]["candidates"].pop(), r"got 4 in row 0 and 3 in .*row 3 \(q3\)"),
            (lambda rows: rows["good"][3].update(problem_id="q99"), r"row 3 \(q99\) is for other candidates"),
            (lambda rows: rows["good"][3]["step_scores"][2].append(0.5), r"\(q3\), candidate 2, has 3 scores for 2"),
            (
                lambda rows: rows["good"][3]["step_scores"][2].__setitem__(0, float("nan")),
                r"row 3 \(q3\), candidate 2, step 0 has the score nan",
            ),
            (lambda rows: rows["good"].clear(), "good.jsonl.gz must hold the scores of 12 problems, got none"),
            (lambda rows: rows["candidates"].clear(), "candidates.jsonl.gz must hold at least one problem, got none"),
            (
                lambda rows: [c.update(is_correct=False) for row in rows["candidates"] for c in row["candidates"]],
                "must hold a right candidate for some problem, got none among 48",
            ),
        ],
    )  # fmt: skip
    def test_files_that_do_not_fit(self, evaluate, files, tmp_path, change, message):
        change(files["rows"])
        write_jsonl(Path(files["candidates"]), files["rows"]["candidates"])
        write_jsonl(Path(files["good"]), files["rows"]["good"])
        with pytest.raises(ValueError, match=message):
            evaluate(from_files(files, tmp_path / "o", files["good"]))

    def test_a_failure_while_measuring(self, recipes, evaluate, files, tmp_path, monkeypatch):
        def fail(*args, **kwargs):
            raise RuntimeError("broken")

        monkeypatch.setattr(recipes["evaluate"], "calibrate_scorers", fail)
        with pytest.raises(RuntimeError, match="broken"):
            evaluate(from_files(files, tmp_path / "o", files["good"]))

    def test_arguments_that_do_not_go_together(self, evaluate, files, tmp_path):
        out = ["--output_dir", str(tmp_path / "o")]
        with pytest.raises(ValueError, match="`prm_path` is missing: .* wrote, or the id of a published model"):
            evaluate(["--candidates", files["candidates"], *out])
        with pytest.raises(ValueError, match="`step_scores` goes with `candidates`, the file of what was scored"):
            evaluate(["--step_scores", files["good"], *out])
        with pytest.raises(ValueError, match="`step_scores` must give each a name of its own .*got 'good' for"):
            evaluate(from_files(files, tmp_path / "o", files["good"], f"good={files['bad']}"))
        with pytest.raises(ValueError, match="`aggregation` must be one of 'min'.*got 'minimum'"):
            evaluate([*from_files(files, tmp_path / "o", files["good"]), "--aggregation", "minimum"])
        with pytest.raises(ValueError, match="`own_aggregations` must be written 'name=aggregation', got 'last'"):
            evaluate([*from_files(files, tmp_path / "o", files["good"]), "--own_aggregations", "last"])
        with pytest.raises(
            ValueError, match="`own_aggregations` must be one of 'min'.*got 'lost'. Did you mean 'last'"
        ):
            evaluate([*from_files(files, tmp_path / "o", files["good"]), "--own_aggregations", "good=lost"])
        with pytest.raises(
            ValueError, match="`own_aggregations` must be one of 'good', got 'god'. Did you mean 'good'"
        ):
            evaluate([*from_files(files, tmp_path / "o", files["good"]), "--own_aggregations", "god=last"])
        with pytest.raises(ValueError, match=r"`prm_path` and `step_scores` .* names of their own, got \['good'\]"):
            evaluate([*from_files(files, tmp_path / "o", files["good"]), "--prm_path", "good=org/prm"])
        with pytest.raises(ValueError, match="`search_budgets` needs a policy and a PRM"):
            evaluate([*from_files(files, tmp_path / "o", files["good"]), "--search_budgets", "4"])
        assert not (tmp_path / "o").exists()

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--split_how", "newlines", "`split_how` must be one of 'newline', .* Did you mean 'newline'"),
            ("--answer_how", "gsm8", "`answer_how` must be one of .* Did you mean 'gsm8k'"),
            ("--search_budgets", "6", "`num_beams` must be a multiple of `beam_width`=4, got 6"),
            ("--num_samples", "0", "`num_samples` must be at least 1, got 0"),
            ("--scoring_batch_size", "0", "`scoring_batch_size` must be at least 1, got 0"),
            ("--generation_batch_size", "0", "`generation_batch_size` must be at least 1, got 0"),
            ("--max_completion_length", "0", "`max_completion_length` must be at least 1, got 0"),
            ("--temperature", "-1", "`temperature` must be a finite number from 0 up, got -1"),
            ("--seed", "-1", "`seed` must be a whole number from 0 up, got -1"),
            ("--own_aggregations", "foo=min", "`own_aggregations` must be one of 'er', 'soft', .*got 'foo'"),
            ("--split_how", "sentence", "`split_how` must be one of 'newline', 'blank_line', got 'sentence'"),
            ("--prm_format", "shepherd", "`prm_format` must be one of 'trl', 'math-shepherd', .*got 'shepherd'"),
            ("--endpoint_model", "m", "`endpoint_model` goes with `engine: endpoint`"),
        ],
    )
    def test_values_that_cannot_be(self, recipes, evaluate, tmp_path, monkeypatch, option, value, message):
        """Said before the stages, which take minutes."""
        monkeypatch.setattr(recipes["stages"], "prepare", None)
        with pytest.raises(ValueError, match=message):
            evaluate(
                ["--task", "arithmetic", "--search_budgets", "4", option, value, "--output_dir", str(tmp_path / "o")]
            )

    def test_files_that_do_not_exist(self, recipes, evaluate, files, prms, tmp_path, monkeypatch):
        """Said before the stages, and by the name of the option."""
        monkeypatch.setattr(recipes["stages"], "prepare", None)
        arguments = ["--output_dir", str(tmp_path / "o"), "--prm_path", str(prms["er"])]
        for task in ([], ["--task", "arithmetic"]):
            with pytest.raises(FileNotFoundError, match="`candidates` must be an existing file, got 'no.jsonl'"):
                evaluate([*arguments, *task, "--candidates", "no.jsonl"])
            with pytest.raises(FileNotFoundError, match="`step_scores` must be an existing file, got 'no.jsonl'"):
                evaluate([*arguments, *task, "--candidates", files["candidates"], "--step_scores", "a=no.jsonl"])

    def test_an_aggregation_of_a_model_that_is_not_compared(self, recipes, evaluate, prms, tmp_path, monkeypatch):
        """Of the models that are given, or of those of the embedded task."""
        monkeypatch.setattr(recipes["stages"], "prepare", None)
        arguments = ["--task", "arithmetic", "--output_dir", str(tmp_path / "o"), "--own_aggregations", "outcome=last"]
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):  # the stages are reached
            evaluate(arguments)
        with pytest.raises(ValueError, match="`own_aggregations` must be one of 'mine', got 'outcome'"):
            evaluate([*arguments, "--prm_path", f"mine={prms['er']}"])

    def test_a_prm_that_does_not_exist(self, evaluate, files, tmp_path):
        """Said before the stages, and before anything is sampled or read."""
        for source in (["--task", "arithmetic"], ["--candidates", files["candidates"]]):
            with pytest.raises(FileNotFoundError, match="`prm_path` must be an existing directory .*got './no/prm'"):
                evaluate([*source, "--prm_path", "er=./no/prm", "--output_dir", str(tmp_path / "o")])
        assert not (tmp_path / "o").exists()

    @pytest.mark.parametrize("source", ["sampled", "given"])
    def test_a_prm_without_a_known_format(self, recipes, evaluate, files, prms, tmp_path, monkeypatch, source):
        """Said before the stages, the sampling and the reading of candidates."""
        monkeypatch.setattr(recipes["stages"], "prepare", None)
        unknown = shutil.copytree(prms["er"], tmp_path / "unknown")
        (unknown / "prm_format.json").unlink()
        given = ["--candidates", files["candidates"]] if source == "given" else ["--task", "arithmetic"]
        with pytest.raises(ValueError, match="unknown' is not a process reward model .* it has no prm_format.json"):
            evaluate([*given, "--prm_path", str(prms["er"]), str(unknown), "--output_dir", str(tmp_path / "o")])
        assert not (tmp_path / "o").exists()

    def test_a_model_without_prompts(self, evaluate, files, prms, tmp_path):
        for row in files["rows"]["candidates"]:
            del row["prompt"]
        candidates = write_jsonl(tmp_path / "c.jsonl", files["rows"]["candidates"])
        with pytest.raises(ValueError, match="Problem 0 has no `prompt`"):
            evaluate(["--candidates", candidates, "--prm_path", str(prms["er"]), "--output_dir", str(tmp_path / "o")])

    def test_problems_without_answers(self, evaluate, tiny_policy, prms, tmp_path):
        prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "1+1\n"}])
        with pytest.raises(ValueError, match="Row 0 has no answer to compare with"):
            evaluate(
                ["--model_name_or_path", tiny_policy[1], "--dataset_path", prompts, "--prm_path", str(prms["er"])]
                + ["--output_dir", str(tmp_path / "o")]
            )
        assert not (tmp_path / "o").exists()


class TestEmbeddedTask:
    @pytest.fixture
    def arguments(self, recipes, tiny_policy, prms, tmp_path, monkeypatch):
        task, policy = tiny_policy
        stages = recipes["stages"]
        prepared = stages.PreparedTask(task, Path(policy), tmp_path, prms["er"])
        monkeypatch.setattr(stages, "prepare", lambda root, seed, recipe: prepared)
        monkeypatch.setattr(stages, "train_variants", lambda prepared, root, seed: prms)
        arguments = ["--config", str(stages.CONFIGS / "evaluate.yaml"), "--num_rows", "12", "--num_samples", "4"]
        return [*arguments, "--output_dir", str(tmp_path / "evaluation")]

    def test_several_prms_on_one_pool(self, evaluate, arguments, tiny_policy, tmp_path, monkeypatch):
        task, _ = tiny_policy
        metrics = evaluate(arguments)
        directory = tmp_path / "evaluation"
        assert json.loads((directory / "metrics.json").read_text("utf-8")) == metrics
        assert (metrics["num_problems"], metrics["num_candidates"]) == (12, 4)
        assert list(metrics["scorers"]) == list(metrics["steps"]) == list(metrics["calibration"]) == ["er", "soft"]
        for of_prm in metrics["steps"].values():
            assert 0 <= of_prm["step_pair_accuracy"] <= 1
            assert of_prm["first_error_f1"][1] <= of_prm["first_error_f1"][0] <= of_prm["first_error_f1"][2]
        assert {point["method"] for point in metrics["search"]} == {"best of n", "beam search", "dvts"}
        rows = read_jsonl(directory / "candidates.jsonl")
        right = [c["is_correct"] for row in rows for c in row["candidates"]]
        assert len(right) == 48 and np.mean(right) == pytest.approx(metrics["random"]["accuracy"])
        for name in ("er", "soft"):
            scores = read_jsonl(directory / "scores" / name / "step_scores.jsonl")
            assert [row["problem_id"] for row in scores] == [row["problem_id"] for row in rows]
            for row, of_row in zip(rows, scores, strict=True):
                for candidate, steps in zip(row["candidates"], of_row["step_scores"], strict=True):
                    well_formed = task.is_well_formed(row["prompt"], candidate["steps"])
                    assert (steps is not None) == well_formed, candidate
                    assert steps is None or len(steps) == len(candidate["steps"])

        # the same command again samples and scores nothing
        def refuse(*args, **kwargs):
            raise AssertionError("computed again")

        with monkeypatch.context() as patch:
            patch.setattr(TransformersEngine, "generate", refuse)
            patch.setattr(ProcessRewardModel, "score", refuse)
            assert evaluate(arguments) == metrics
        # what it kept are files as any others, with the names of their folders
        kept = [str(directory / "scores" / name / "step_scores.jsonl") for name in ("er", "soft")]
        again = evaluate(
            ["--candidates", str(directory / "candidates.jsonl"), "--step_scores", *kept, "--answer_how", "arithmetic"]
            + ["--output_dir", str(tmp_path / "again")]
        )
        assert again["scorers"] == metrics["scorers"] and again["pairs"] == metrics["pairs"]

    def test_another_run_is_refused(self, evaluate, arguments, prms):
        evaluate(arguments)
        with pytest.raises(ValueError, match="holds another run: `settings.temperature` is 1.0 there and 0.5 now"):
            evaluate([*arguments, "--temperature", "0.5"])
        with pytest.raises(ValueError, match="holds another run: `rows` is"):
            evaluate([*arguments, "--dataset_split", "train"])
        with pytest.raises(ValueError, match=r"scores/er'? holds another run.*`prm` is"):
            evaluate([*arguments, "--prm_path", f"er={prms['soft']}"])

    def test_one_process_reports(self, recipes, evaluate, arguments, tmp_path, monkeypatch):
        """Another one has its part in what is compared, finds the main one's, and is done."""
        evaluate(arguments)
        for name in ("report.html", "metrics.json"):
            (tmp_path / "evaluation" / name).unlink()

        class State:
            process_index, num_processes, is_main_process, device = 1, 2, False, "cpu"

        def prepare(root, seed, recipe):
            State.process_index, State.num_processes, State.is_main_process = 0, 1, True
            return prepared  # as a trainer leaves it, which was told of no other process

        prepared = recipes["stages"].prepare(None, 0, "")
        monkeypatch.setattr(recipes["stages"], "prepare", prepare)
        monkeypatch.setattr(recipes["evaluate"], "process_state", State)
        monkeypatch.setattr(evaluation_run, "process_state", State)
        assert evaluate(arguments) == {}
        assert not (tmp_path / "evaluation" / "report.html").exists()

    def test_without_arguments(self, recipes, evaluate, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["evaluate.py"])

        def prepare(root, seed, recipe):
            raise InterruptedError(f"{root} {seed} {recipe}")

        monkeypatch.setattr(recipes["stages"], "prepare", prepare)
        with pytest.raises(InterruptedError, match="^outputs/arithmetic 0 evaluate$"):
            evaluate()

    def test_variants_are_trained_from_the_same_labels(self, recipes, tmp_path, monkeypatch):
        stages, calls = recipes["stages"], []
        monkeypatch.setattr(stages.prm, "main", calls.append)
        prepared = stages.PreparedTask(None, tmp_path / "policy", tmp_path / "labels", tmp_path / "prm")
        variants = stages.train_variants(prepared, tmp_path, seed=3)
        assert variants == {"er": tmp_path / "prm"} | {n: tmp_path / f"prm-{n}" for n in ("soft", "hard", "outcome")}
        given = [dict(zip(call[::2], call[1::2], strict=True)) for call in calls]
        assert {call["--dataset_path"] for call in given} == {str(tmp_path / "labels" / "labels.jsonl")}
        assert {call["--model_name_or_path"] for call in given} == {str(tmp_path / "base")}
        assert [call.get("--eta") for call in given] == ["0", "inf", None]
        assert [call.get("--train_on_last_step_only") for call in given] == [None, None, "true"]


class TestPolicy:
    def test_own_problems(self, evaluate, tiny_policy, prms, tmp_path):
        task, policy = tiny_policy
        problems = write_jsonl(tmp_path / "problems.jsonl", task.dataset("test", 5).to_list())
        metrics = evaluate(
            [
                "--model_name_or_path",
                policy,
                "--prm_path",
                str(prms["er"]),
                str(prms["soft"]),
                "--dataset_path",
                problems,
            ]
            + ["--output_dir", str(tmp_path / "o"), "--num_samples", "3", "--max_completion_length", "20"]
            + ["--answer_how", "arithmetic"]
        )
        assert (metrics["num_problems"], metrics["num_candidates"]) == (5, 3)
        assert list(metrics["scorers"]) == ["er", "soft"]
        assert "steps" not in metrics  # nothing is known about the steps

    def test_a_mistake_found_after_sampling_costs_no_candidate(
        self, evaluate, tiny_policy, prms, tmp_path, monkeypatch
    ):
        problems = write_jsonl(tmp_path / "problems.jsonl", tiny_policy[0].dataset("test", 5).to_list())
        arguments = ["--model_name_or_path", tiny_policy[1], "--dataset_path", problems, "--prm_path", str(prms["er"])]
        arguments += ["--output_dir", str(tmp_path / "o"), "--num_samples", "3", "--max_completion_length", "20"]
        with pytest.raises(ValueError, match="must hold a right candidate .*`answer_how` is 'boxed'"):
            evaluate([*arguments, "--answer_how", "boxed"])
        kept = [[c["completion"] for c in row["candidates"]] for row in read_jsonl(tmp_path / "o/candidates.jsonl")]
        assert [len(of_problem) for of_problem in kept] == [3] * 5
        monkeypatch.setattr(TransformersEngine, "generate", None)  # nothing is sampled again
        assert evaluate([*arguments, "--answer_how", "arithmetic"])["num_candidates"] == 3
        rows = read_jsonl(tmp_path / "o" / "candidates.jsonl")
        assert [[c["completion"] for c in row["candidates"]] for row in rows] == kept

    def test_servers(self, evaluate, prms, tmp_path, monkeypatch):
        """The policy runs elsewhere, as it may for labels."""
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        problems = [{"prompt": f"{i}+1\n", "answer": str(i + 1)} for i in range(4)]
        arguments = ["--dataset_path", write_jsonl(tmp_path / "problems.jsonl", problems), "--num_samples", "2"]
        arguments += ["--prm_path", str(prms["er"]), "--answer_how", "arithmetic", "--output_dir", str(tmp_path / "o")]
        monkeypatch.setattr(servers, "text_of", lambda prompt, seed: f"{prompt[0]}+1=2\n#{2 + seed % 2}")
        with servers.StubServer() as server:
            arguments += ["--engine", "endpoint", "--endpoint_model", "served", "--endpoint_url", server.url]
            metrics = evaluate(arguments)
            num_requests = len(server.bodies)
            assert num_requests and evaluate(arguments) == metrics and len(server.bodies) == num_requests
        assert metrics["settings"]["candidates"] == "sampled from served" and metrics["num_candidates"] == 2
        rows = read_jsonl(tmp_path / "o" / "candidates.jsonl")
        assert [row["candidates"][0]["steps"][0] for row in rows] == ["0+1=2", "1+1=2", "2+1=2", "3+1=2"]
        assert json.loads((tmp_path / "o" / "manifest.json").read_text())["config"]["policy"] == "endpoint served"

    def test_a_format_for_models_that_do_not_say_theirs(self, evaluate, files, prms, tmp_path):
        """Those that do keep theirs: the tag of another format is not in this tokenizer's vocabulary."""
        unknown = shutil.copytree(prms["er"], tmp_path / "unknown")
        (unknown / "prm_format.json").unlink()
        texts = [{"prompt": "1+1\n", "answer": "2", "candidates": ["1+1=2\n#2", "1+1=3\n#3"]}]
        arguments = ["--candidates", write_jsonl(tmp_path / "c.jsonl", texts), "--answer_how", "arithmetic"]
        arguments += ["--output_dir", str(tmp_path / "o"), "--prm_path", f"er={prms['er']}"]
        evaluate([*arguments, f"unknown={unknown}", "--prm_format", "trl"])
        scores = [read_jsonl(tmp_path / f"o/scores/{name}/step_scores.jsonl") for name in ("er", "unknown")]
        assert scores[0] == scores[1] and scores[0][0]["step_scores"][0] is not None
        assert evaluate([*arguments, "--prm_format", "qwen2.5-math-prm"])["scorers"].keys() == {"er"}

    def test_prms_score_candidates_of_a_file(self, evaluate, tiny_policy, prms, tmp_path):
        """With scores from elsewhere beside; a candidate that cannot be judged has no score."""
        texts = [["1+1=2\n#2", "1+1=3\n#3"], ["2+1=3\n#3", "2+1=3"]]
        rows = [
            {"prompt": f"{i + 1}+1\n", "answer": str(i + 2), "candidates": candidates}
            for i, candidates in enumerate(texts)
        ]
        candidates = write_jsonl(tmp_path / "c.jsonl", rows)
        own = [{"step_scores": [[0.1, 0.2], [0.3, 0.4]]}, {"step_scores": [[0.1, 0.2], [0.3]]}]
        metrics = evaluate(
            ["--candidates", candidates, "--prm_path", f"mine={prms['er']}", "--output_dir", str(tmp_path / "o")]
            + ["--step_scores", write_jsonl(tmp_path / "other.jsonl", own), "--answer_how", "arithmetic"]
        )
        assert list(metrics["scorers"]) == ["other", "mine"]
        assert [scorer["num_unscored"] for scorer in metrics["scorers"].values()] == [0, 1]
        scores = read_jsonl(tmp_path / "o" / "scores" / "mine" / "step_scores.jsonl")
        direct = ProcessRewardModel.from_pretrained(prms["er"]).score(
            ["1+1\n", "1+1\n", "2+1\n"], [text.split("\n") for text in [*texts[0], texts[1][0]]]
        )
        found = [scores[0]["step_scores"][0], scores[0]["step_scores"][1], scores[1]["step_scores"][0]]
        for one, other in zip(found, direct, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        assert scores[1]["step_scores"][1] is None
