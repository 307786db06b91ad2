import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import prm_trainer, randomize_head
from trl_erprm import ProcessRewardModel
from trl_erprm.data import to_stepwise_rows
from trl_erprm.evaluation.processbench import (
    JudgedRow,
    main,
    measure_judged_rows,
    read_judged_rows,
    read_step_scores,
)

PROCESSBENCH = [
    {"id": "gsm8k-0", "problem": "1+1+1?", "steps": ["1+1=2", "2+1=4", "#4"], "label": 1},
    {"id": "gsm8k-1", "problem": "1+2?", "steps": ["1+2=3", "#3"], "label": -1},
    {"id": "math-0", "problem": "2+2?", "steps": ["2+2=5", "#5"], "label": 0},
    {"id": "math-1", "problem": "3+1?", "steps": ["3+1=4", "#4"], "label": -1},
]
for _row in PROCESSBENCH:
    _row |= {"generator": "model", "final_answer_correct": _row["label"] == -1}
SCORES = [[0.9, 0.4, 0.2], [0.8, 0.6], [0.55, 0.1], [0.5, 0.9]]
# With threshold 0.5: the error of gsm8k-0 is found, gsm8k-1 left in peace; that of math-0 is placed a step late, and
# math-1 gets an error.

PRMBENCH = [
    {
        "idx": "circular_1", "classification": "circular", "original_question": "1+1+1?",
        "original_process": ["1+1=2", "2+1=3"], "modified_question": "1+1+1?",
        "modified_process": ["1+1=2", "so 1+1=2", "2+1=3"], "error_steps": [2],
    },
    {
        "idx": "deception_1", "classification": "deception", "original_question": "1+1+1?",
        "original_process": ["1+1=2", "2+1=3"], "modified_question": "1+1+1?",
        "modified_process": ["1+1=3", "3+1=4"], "error_steps": [1, 2],
    },
    {
        "idx": "multi_solutions_2", "classification": "multi_solutions", "original_question": "",
        "original_process": [], "modified_question": "2*2?", "modified_process": ["2+2=4"], "error_steps": [],
    },
]  # fmt: skip


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def score_lines(scores, rows=PROCESSBENCH):
    return [{"id": row["id"], "step_scores": of_row} for row, of_row in zip(rows, scores, strict=True)]


# Readers


def test_processbench_rows():
    rows = read_judged_rows(Dataset.from_list(PROCESSBENCH))
    assert [row.group for row in rows] == ["gsm8k", "gsm8k", "math", "math"]
    assert rows[0] == JudgedRow("gsm8k-0", "1+1+1?", ["1+1=2", "2+1=4", "#4"], [1.0, 0.0, None], "gsm8k")
    assert rows[1].labels == [1.0, 1.0]
    assert rows[2].labels == [0.0, None]
    without_id = [{k: v for k, v in row.items() if k != "id"} for row in PROCESSBENCH]
    assert [(row.id, row.group) for row in read_judged_rows(Dataset.from_list(without_id))][:2] == [
        ("0", "all"),
        ("1", "all"),
    ]


def test_prmbench_rows():
    rows = read_judged_rows(Dataset.from_list(PRMBENCH))
    assert [(row.group, row.labels) for row in rows] == [
        ("original", [1.0, 1.0]),  # once, although two rows were made from it
        ("circular", [1.0, 0.0, 1.0]),
        ("deception", [0.0, 0.0]),
        ("multi_solutions", [1.0]),
    ]
    assert rows[1].steps == ["1+1=2", "so 1+1=2", "2+1=3"]


def test_stepwise_rows_and_subsets():
    data = [
        {"id": "a", "subset": "one", "prompt": "p", "completions": ["x", "y"], "ratings": [1, -1]},
        {"id": None, "subset": None, "prompt": "q", "completions": ["x"], "ratings": [None]},
    ]
    assert read_judged_rows(Dataset.from_list(data)) == [
        JudgedRow("a", "p", ["x", "y"], [1.0, 0.0], "one"),
        JudgedRow("1", "q", ["x"], [None], "all"),
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": 3}, r"Row 1: the label must be -1 .* one of the 2 steps, from 0 to 1, got 3\."),
        ({"label": -2}, "Row 1: the label must be -1 .* got -2"),
        ({"label": None}, "Row 1: the label must be -1 .* got None"),
        ({"steps": []}, r"Row 1: `steps` must be a list of at least one step, got \[\]"),
        ({"steps": None}, "Row 1: `steps` must be a list of at least one step, got None"),
        ({"steps": ["a", " "]}, "Row 1: step 1 of `steps` must be a str that is not empty, got ' '"),
        ({"problem": ""}, "Row 1: `problem` must be a str that is not empty, got ''"),
    ],
)
def test_bad_rows_of_processbench(change, message):
    rows = [PROCESSBENCH[0], PROCESSBENCH[1] | change]
    with pytest.raises(ValueError, match=message):
        read_judged_rows(Dataset.from_list(rows))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"error_steps": [0]}, "Row 1: `error_steps` must be numbers of the 2 steps, from 1, got 0"),
        ({"error_steps": [1, 3]}, "Row 1: `error_steps` must be numbers of the 2 steps, from 1, got 3"),
        ({"modified_process": []}, "Row 1: `modified_process` must be a list of at least one step"),
        ({"classification": None}, "Row 1: `classification` must be a str"),
    ],
)
def test_bad_rows_of_prmbench(change, message):
    with pytest.raises(ValueError, match=message):
        read_judged_rows(Dataset.from_list([PRMBENCH[0], PRMBENCH[1] | change]))


def test_unknown_layout():
    with pytest.raises(ValueError, match="The columns are of no stepwise layout: found"):
        read_judged_rows(Dataset.from_list([{"text": "a"}]))


# Measuring


def test_groups_by_hand():
    rows = read_judged_rows(Dataset.from_list(PROCESSBENCH))
    metrics = measure_judged_rows(rows, SCORES)
    assert list(metrics) == ["gsm8k", "math", "all"]
    found = {name: [e.mean for e in of_group.first_errors[1:4]] for name, of_group in metrics.items()}
    assert found == {"gsm8k": [1, 1, 1], "math": [0, 0, 0], "all": [0.5, 0.5, 0.5]}
    assert [of_group.num_rows for of_group in metrics.values()] == [2, 2, 4]
    # right steps: 0.9, 0.8, 0.6, 0.5, 0.9; wrong steps: 0.4, 0.55
    steps = metrics["all"].steps
    assert (steps.num_correct, steps.num_erroneous) == (5, 2)
    assert (steps.accuracy_correct.mean, steps.accuracy_erroneous.mean) == (0.8, 0.5)
    assert steps.f1.mean == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))
    assert steps.f1_negative.mean == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert steps.prm_score.mean == pytest.approx(0.65)
    assert steps.auroc == 0.9
    assert not any(of_group.is_threshold_from_here for of_group in metrics.values())


def test_threshold_of_a_group_serves_all():
    rows = read_judged_rows(Dataset.from_list(PROCESSBENCH))
    metrics = measure_judged_rows(rows, SCORES, threshold_on="math")
    # math-0 is found from 0.55 on, math-1 left in peace below 0.5: no threshold does both
    assert metrics["math"].best["f1"] == 0 and metrics["gsm8k"].best == {"threshold": 0.5, "f1": 1.0}
    metrics = measure_judged_rows(rows, SCORES, threshold_on="gsm8k")
    assert (
        {m.first_errors.threshold for m in metrics.values()} == {m.steps.threshold for m in metrics.values()} == {0.5}
    )
    assert {name: m.is_threshold_from_here for name, m in metrics.items()} == {
        "gsm8k": True,
        "math": False,
        "all": True,
    }
    assert measure_judged_rows(rows, SCORES, threshold=0.45)["math"].first_errors.accuracy_correct.mean == 1


def test_curve_of_a_group_holds_its_peak_and_is_thin():
    rng = np.random.default_rng(0)
    rows = [JudgedRow(str(i), "p", ["a"], [float(i % 2)]) for i in range(2_000)]
    scores = [[0.6 * (i % 2) + rng.random()] for i in range(2_000)]
    of_all = measure_judged_rows(rows, scores)["all"]
    assert len(of_all.curve) <= 201
    assert max(point["f1"] for point in of_all.curve) == of_all.best["f1"]
    assert json.loads(json.dumps(of_all.as_json()))["first_errors"]["f1"]["mean"] == of_all.first_errors.f1.mean


def test_original_solutions_of_prmbench_do_not_count_in_all():
    rows = read_judged_rows(Dataset.from_list(PRMBENCH))
    scores = [[0.1, 0.1], [0.9, 0.2, 0.8], [0.7, 0.3], [0.6]]
    metrics = measure_judged_rows(rows, scores)
    assert list(metrics) == ["original", "circular", "deception", "multi_solutions", "all"]
    assert metrics["all"].num_rows == 3 and metrics["original"].num_rows == 1
    all_steps = metrics["all"].steps
    assert (all_steps.num_correct, all_steps.num_erroneous) == (3, 3)
    # TP 3, FN 0, FP 1 (0.7), TN 2
    assert all_steps.prm_score.mean == pytest.approx((6 / 7 + 4 / 5) / 2)
    assert math.isnan(metrics["multi_solutions"].steps.prm_score.mean)
    assert metrics["multi_solutions"].curve == [] and metrics["multi_solutions"].best is None


def test_rows_of_one_problem_are_resampled_together():
    rows = [JudgedRow(str(i), f"p{i // 10}", ["a"], [float(i // 10 % 2)]) for i in range(200)]
    apart = [JudgedRow(row.id, row.id, row.steps, row.labels) for row in rows]
    scores = [[float(i // 10 % 3)] for i in range(200)]
    together, alone = (measure_judged_rows(r, scores)["all"].steps.prm_score for r in (rows, apart))
    assert together.mean == alone.mean
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threshold": 0.5, "threshold_on": "math"}, "Give `threshold` or `threshold_on`, not both"),
        ({"threshold_on": "omni"}, "must be a group with and without errors: 'gsm8k', 'math', 'all'; got 'omni'"),
        ({"threshold": float("nan")}, "`threshold` must be finite, got nan"),
    ],
)  # fmt: skip
def test_bad_thresholds(options, message):
    with pytest.raises(ValueError, match=message):
        measure_judged_rows(read_judged_rows(Dataset.from_list(PROCESSBENCH)), SCORES, **options)


def test_bad_scores_are_named_by_their_row_in_the_file():
    rows = read_judged_rows(Dataset.from_list(PROCESSBENCH))
    with pytest.raises(ValueError, match="Row 3: the score of step 1 must be finite .* got nan"):
        measure_judged_rows(rows, [*SCORES[:3], [0.5, float("nan")]])
    with pytest.raises(ValueError, match="Row 2 has 2 steps, but 1 scores"):
        measure_judged_rows(rows, [*SCORES[:2], [0.5], SCORES[3]])
    with pytest.raises(ValueError, match="There must be scores for each of the 4 rows, got 3"):
        measure_judged_rows(rows, SCORES[:3])


# Files of scores, and the command


@pytest.mark.parametrize(
    "lines, message",
    [
        (score_lines(SCORES)[:3], "must have a line for each of the 4 rows, got 3"),
        (score_lines(SCORES) * 2, "must have a line for each of the 4 rows, got 8"),
        (score_lines(SCORES)[::-1], "Row 0 is 'gsm8k-0', but its scores in .* are of 'math-1'"),
        ([{"step_scores": [0.5]}], "Row 0 has 3 steps, but 1 scores in"),
        ([{"step_scores": None}], "Row 0 has 3 steps, but None in"),
        ([{"scores": [0.5]}], "Line 0 of .* must be an object with `step_scores`, got"),
        ([[0.5]], "Line 0 of .* must be an object with `step_scores`, got"),
    ],
)
def test_bad_files_of_scores(lines, message, tmp_path):
    rows = read_judged_rows(Dataset.from_list(PROCESSBENCH))
    with pytest.raises(ValueError, match=message):
        read_step_scores(write_jsonl(tmp_path / "scores.jsonl", lines), rows)


def test_command_with_precomputed_scores(tmp_path, capsys):
    dataset = write_jsonl(tmp_path / "rows.jsonl", PROCESSBENCH)
    scores = write_jsonl(tmp_path / "scores.jsonl", score_lines(SCORES))
    arguments = [
        "--dataset",
        dataset,
        "--scores",
        scores,
        "--threshold_on",
        "gsm8k",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "gsm8k*" in printed and "Threshold 0.5; *: chosen on these rows" in printed and "100.0" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["groups"]["all"]["first_errors"]["f1"]["mean"] == 0.5
    assert metrics["groups"]["gsm8k"]["is_threshold_from_here"] is True
    # what it wrote is read again
    assert main([*arguments[:2], "--scores", str(tmp_path / "out" / "step_scores.jsonl"), "--threshold", "0.45"]) == 0
    assert "Threshold 0.45." in capsys.readouterr().out
    assert main([*arguments[:4], "--num_rows", "2"]) == 2  # scores of other rows
    assert "must have a line for each of the 2 rows, got 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Give either `prm`, a model that scores the rows, or `scores`"),
        (["--prm", "a", "--scores", "b"], "Give either `prm`"),
        (["--scores", "no_such_file.jsonl"], "no_such_file.jsonl"),
        (["--prm", "no_such_model"], "no_such_model"),
        (["--scores", "x", "--num_rows", "0"], "`num_rows` must be at least 1, got 0"),
        (["--scores", "x", "--treshold", "1"], "treshold"),
    ],
)
def test_wrong_arguments_end_with_2(arguments, message, tmp_path, capsys):
    dataset = write_jsonl(tmp_path / "rows.jsonl", PROCESSBENCH)
    assert main(["--dataset", dataset, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_bad_row_leaves_nothing_behind(tmp_path, capsys):
    dataset = write_jsonl(tmp_path / "rows.jsonl", [PROCESSBENCH[0], PROCESSBENCH[1] | {"label": 9}])
    scores = write_jsonl(tmp_path / "scores.jsonl", score_lines(SCORES))
    assert main(["--dataset", dataset, "--scores", scores, "--output_dir", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "split 'train': Row 1: the label must be -1" in captured.err and captured.out == ""
    assert not (tmp_path / "out").exists()


# A real PRM


def save_base(directory):
    """A tiny Llama that reads bytes."""
    tokens = ["<pad>", "<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>")
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


def test_human_ratings_through_a_tiny_prm(shared_data, tmp_path, capsys):
    with open(shared_data / "prm800k" / "step_ratings.jsonl", encoding="utf-8") as file:
        data = [json.loads(line) for line, _ in zip(file, range(60), strict=False)]
    stepwise = to_stepwise_rows(Dataset.from_list(data))
    trainer = prm_trainer(save_base(tmp_path / "base"), tmp_path / "prm", stepwise, max_steps=3, max_length=4096)
    trainer.train()
    trainer.save_model(tmp_path / "prm")
    dataset = write_jsonl(tmp_path / "rows.jsonl", data)
    arguments = ["--prm", str(tmp_path / "prm"), "--dataset", dataset, "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--threshold_on", "all", "--batch_size", "8"]) == 0
    assert "PRMScore" in capsys.readouterr().out
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())["groups"]["all"]
    ratings = [rating for row in data for rating in row["ratings"]]
    assert measured["steps"]["num_erroneous"] == ratings.count(-1) > 0
    assert measured["steps"]["num_correct"] == ratings.count(1) + ratings.count(0)
    has_error = [-1 in row["ratings"] for row in data]
    assert measured["first_errors"]["num_erroneous"] == sum(has_error) > 0
    assert measured["first_errors"]["f1"]["mean"] == pytest.approx(measured["best"]["f1"])
    # ... by a naive loop over the scores of the model
    scores = ProcessRewardModel.from_pretrained(tmp_path / "prm").score(
        [row["prompt"] for row in data], [row["completions"] for row in data]
    )
    threshold, right = measured["first_errors"]["threshold"], {True: 0, False: 0}
    for row, of_row, is_erroneous in zip(data, scores, has_error, strict=True):
        found = next((k for k, s in enumerate(of_row) if s <= threshold), -1)
        right[is_erroneous] += found == (row["ratings"].index(-1) if is_erroneous else -1)
    accuracies = [right[True] / sum(has_error), right[False] / (60 - sum(has_error))]
    assert [
        measured["first_errors"][f"accuracy_{kind}"]["mean"] for kind in ("erroneous", "correct")
    ] == pytest.approx(accuracies, abs=0.04)  # a score at the threshold may fall on either side by rounding


class TestWhatIsRead:
    """Rows are problems as text; a model that was trained on chats reads each as a message."""

    TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"

    @pytest.fixture(scope="class")
    @classmethod
    def paths(cls, tmp_path_factory):
        base = save_base(tmp_path_factory.mktemp("base"))
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = cls.TEMPLATE
        tokenizer.save_pretrained(base)
        paths = {}
        for kind, prompt in {"text": "1+1?", "chat": [{"role": "user", "content": "1+1?"}]}.items():
            paths[kind] = str(tmp_path_factory.mktemp(kind))
            rows = [{"prompt": prompt, "completions": ["1+1=2"], "labels": [1.0]}]
            trainer = prm_trainer(base, paths[kind], rows, max_length=256)
            randomize_head(trainer.model)
            trainer.save_model()
        return paths

    @pytest.mark.parametrize(
        ("kind", "options", "messages"),
        [
            ("text", [], None),
            ("text", ["--prompt_as", "chat"], []),
            ("chat", [], []),
            ("chat", ["--system_prompt", "Be brief."], [{"role": "system", "content": "Be brief."}]),
        ],
    )
    def test_scores(self, kind, options, messages, paths, tmp_path):
        dataset = write_jsonl(tmp_path / "rows.jsonl", PROCESSBENCH)
        command = ["--prm", paths[kind], "--dataset", dataset, "--output_dir", str(tmp_path / "out")]
        assert main([*command, *options]) == 0
        lines = (tmp_path / "out" / "step_scores.jsonl").read_text().splitlines()
        prm = ProcessRewardModel.from_pretrained(paths[kind])
        for line, row in zip(lines, PROCESSBENCH, strict=True):
            text = row["problem"]
            if messages is not None:
                chat = [*messages, {"role": "user", "content": text}]
                text = prm.tokenizer.apply_chat_template(chat, tokenize=False)
            ids = prm.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids, ends = [1] * (messages is None) + ids, []
            for step in row["steps"]:
                ids += prm.tokenizer(step + "\n", add_special_tokens=False)["input_ids"]
                ends.append(len(ids) - 1)
            with torch.no_grad():
                expected = prm.model(torch.tensor([ids])).logits[0, ends, 0].sigmoid()
            assert json.loads(line)["step_scores"] == pytest.approx(expected.tolist(), abs=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--system_prompt", "Be brief."], "`system_prompt` was given, but .* reads the problem alone .*'auto'"),
            (["--prompt_as", "messages"], "`prompt_as` must be one of 'auto', 'chat', 'problem', got 'messages'"),
        ],
    )
    def test_what_does_not_go_together(self, options, message, paths, tmp_path, capsys):
        dataset = write_jsonl(tmp_path / "rows.jsonl", PROCESSBENCH)
        assert main(["--prm", paths["text"], "--dataset", dataset, *options]) == 2
        assert re.search(message, capsys.readouterr().err)
