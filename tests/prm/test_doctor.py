"""`trl_erprm.prm.doctor`: what it finds, and in which rows."""

import dataclasses

import numpy as np
import pytest
from datasets import load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from tests.prm.diagnosis import STEPS, diagnose, found, row
from tests.tokenizers import CHATML_TEMPLATE, byte_level_tokenizer, merging_tokenizer
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.data import to_stepwise_rows
from trl_erprm.prm import doctor
from trl_erprm.prm.formats import (
    ER_PRM,
    MATH_SHEPHERD,
    QWEN_MATH_PRM,
    RLHFLOW,
    TRL_TOKEN_CLASSIFICATION,
    EncodedSolution,
    PRMFormat,
)


def detail(diagnosis, name):
    [check] = [check for check in diagnosis.checks if check.name == name]
    return check.detail


@pytest.fixture(scope="module")
def blank_line_tokenizer():
    """Byte-level BPE with a token for a blank line, which GPT-2's splitting makes only where no text follows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, special_tokens=["<e>"], show_progress=False
    )
    tokenizer.train_from_iterator(["one and one\n\n"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", pad_token="<e>")


class TestHealthy:
    def test_counts_and_details(self):
        diagnosis = diagnose(row(), row((None, 0.4, 0.0)), max_length=64, config=Qwen2Config(vocab_size=100))
        assert found(diagnosis) == []
        assert diagnosis.counts == {"rows": 2, "steps": 6, "labels": 5}
        details = {check.name: check.detail for check in diagnosis.checks}
        assert details["steps = step ends = labels"] == "6 steps, 6 step ends, 5 labels in 2 rows"
        assert details["token read ends the tag"].endswith(" at 6 steps")
        assert details["truncation"] == (
            "tokens a row: median 15, 90 % up to 15, longest 15; `max_length` 64 cuts nothing"
        )
        assert details["training ids = scoring ids"] == "30 tokens; no BOS token"
        # 0.0 and 0.1 | 0.4 in the third fifth | 0.75 in the fourth | 0.9
        assert (
            details["labels"] == "0 to 0.9, mean 0.430, in fifths of 0 to 1: 2 | 0 | 1 | 1 | 1; 1 of 6 steps have none"
        )

    @pytest.mark.parametrize("format", [TRL_TOKEN_CLASSIFICATION, MATH_SHEPHERD, ER_PRM, RLHFLOW, QWEN_MATH_PRM])
    def test_formats_of_public_models(self, format):
        rows = (
            row(steps=["3 + 4 = 7.", "So 12", "is $x$."], prompt="Janet?"),
            row(steps=["a"], labels=[0], prompt="b?"),
        )
        diagnosis = diagnose(*rows, format=format, tokenizer=byte_level_tokenizer())
        assert found(diagnosis) == []
        assert diagnosis.counts == {"rows": 2, "steps": 4, "labels": 4}

    def test_real_rows(self, shared_data, blank_line_tokenizer):
        rows = to_stepwise_rows(
            load_dataset("json", data_files=str(shared_data / "prm800k/step_ratings.jsonl"))["train"]
        )
        rows = rows.select(range(50))
        diagnosis = diagnose(*rows, tokenizer=blank_line_tokenizer)
        assert diagnosis.findings("error") == []
        num_steps = sum(map(len, rows["completions"]))
        assert diagnosis.counts == {"rows": 50, "steps": num_steps, "labels": num_steps}
        with_newline = [i for i, steps in enumerate(rows["completions"]) if any("\n" in step for step in steps)]
        [of_labels, *of_tags] = diagnosis.findings("warning")
        assert (
            of_labels.row is None and "of the labels are above 0.5" in of_labels.message
        )  # the first are nearly all good
        assert [finding.row for finding in of_tags] == with_newline != []


class TestFindings:
    def test_bad_rows_do_not_hide_each_other(self):
        rows = [row(), row((0.9, 0.1)), row(steps=["3+4=2", " ", "#4"]), row((0.9, 0.1, 2)), row(prompt="")]
        diagnosis = diagnose(*rows, row(), row_numbers=[10, 11, 12, 13, 14, 15])
        assert [(severity, number) for severity, number, _ in found(diagnosis)] == [
            ("error", n) for n in range(11, 15)
        ]
        messages = [message for _, _, message in found(diagnosis)]
        assert "one label for each of the 3 steps, got 2 labels" in messages[0]
        assert "step 1 of `completions` must be a str that is not empty" in messages[1]
        assert "label 2 must be in [0, 1]" in messages[2]
        assert "`prompt` must not be empty" in messages[3]
        assert [one.number for one in diagnosis.rows] == [10, 15] and diagnosis.counts["steps"] == 6

    def test_a_row_whose_tag_merges(self):
        """In the middle of a batch that otherwise encodes."""
        joint = dataclasses.replace(ER_PRM, step_tag=" ки", positive_token="+", negative_token="-")
        rows = [row([1], ["b"], "a"), row([1], ["b."], "a"), row([0], ["c"], "a")]
        diagnosis = diagnose(*rows, format=joint, tokenizer=merging_tokenizer())
        [message] = [m for s, n, m in found(diagnosis) if (s, n) == ("error", 1)]
        assert message.startswith("the tag ' ки' of step 0 merges with its neighbours")
        assert [one.number for one in diagnosis.rows] == [0, 2]

    def test_step_ends_that_are_missing(self):
        class LosesStepEnds(PRMFormat):
            def encode_batch(self, tokenizer, prompts, solutions, *args, **kwargs):
                encoded = super().encode_batch(tokenizer, prompts, solutions, *args, **kwargs)
                return [EncodedSolution(e.input_ids, e.step_ends[1:]) if len(e.step_ends) > 2 else e for e in encoded]

        diagnosis = diagnose(row([0, 1], STEPS[:2]), row(), format=LosesStepEnds("x", "token_classification"))
        message = "3 steps have 2 step ends, the 3 of training 2 step ends and 2 labels. This is a fault of trl-erprm"
        [(severity, number, got)] = found(diagnosis)
        assert (severity, number) == ("error", 1) and got.startswith(message)

    @pytest.mark.parametrize(
        "path, change, message",
        [
            (
                "_scoring_ids",
                lambda e: dataclasses.replace(e, step_ends=[7, 14]),
                "3 steps have 2 step ends, the 3 of",
            ),
            ("_scoring_ids", lambda e: dataclasses.replace(e, step_ends=[7, 7, 14]), "3 steps have 2 step ends, the"),
            ("_scoring_ids", lambda e: dataclasses.replace(e, step_ends=[11, 7, 14]), "3 steps have 3 step ends, the"),
            (
                "_training_ids",
                lambda e: {**e, "step_labels": [0.9, 0.1]},
                "the 3 of training 3 step ends and 2 labels",
            ),
            ("_training_ids", lambda e: {**e, "num_dropped_steps": 1}, "the 2 of training 3 step ends and 3 labels"),
        ],
    )
    def test_one_path_that_contradicts_itself(self, monkeypatch, path, change, message):
        encode = getattr(doctor, path)
        monkeypatch.setattr(
            doctor, path, lambda *args: [change(one) if i else one for i, one in enumerate(encode(*args))]
        )
        [(severity, number, got)] = found(diagnose(row([0, 1, 0]), row()))
        assert (severity, number) == ("error", 1) and message in got, got

    @pytest.mark.parametrize(
        "name, change, labels, expected",
        [
            ("is_step_end", lambda x: x.roll(1), (0.9, None, 0.25), "the batch has labels at the tokens [0, 8], not"),
            ("step_labels", lambda x: x.round(), (0.9, None, 0.25), "the labels [0.9, nan, 0.25] become [1.0, nan,"),
            ("step_labels", lambda x: x[:, :1], (0.5, 0.5, 0.5), "the labels [0.5, 0.5, 0.5] become [0.5]."),
        ],
    )  # fmt: skip
    def test_labels_that_do_not_reach_the_batch(self, monkeypatch, name, change, labels, expected):
        class Collator(doctor.StepDataCollator):
            def torch_call(self, examples):
                batch = super().torch_call(examples)
                if len(examples[0]["step_ends"]) == 3:
                    batch[name] = change(batch[name])
                return batch

        monkeypatch.setattr(doctor, "StepDataCollator", Collator)
        [(severity, number, message)] = found(diagnose(row([0.0, 1.0], STEPS[:2]), row(labels)))
        assert (severity, number) == ("error", 1)
        assert message.startswith(expected), message

    def test_labels_in_training_are_the_rows(self, monkeypatch):
        def rounds(*args, **kwargs):
            encoded = encode_rows(*args, **kwargs)
            encoded["step_labels"] = [np.round(labels).tolist() for labels in encoded["step_labels"]]
            return encoded

        encode_rows = doctor.encode_rows
        monkeypatch.setattr(doctor, "encode_rows", rounds)
        [(severity, number, message)] = found(diagnose(row([0, 1, 0]), row()))
        assert (severity, number) == ("error", 1) and "[0.9, 0.1, 0.75] become [1.0, 0.0, 1.0]" in message

    @pytest.mark.parametrize("layout, shift", [("text", -1), ("text", -2), ("turns", -1)])
    def test_a_token_that_is_not_the_tag(self, layout, shift):
        class ReadsElsewhere(PRMFormat):
            def encode_batch(self, *args, **kwargs):
                encoded = super().encode_batch(*args, **kwargs)
                return [EncodedSolution(e.input_ids, [end + shift for end in e.step_ends]) for e in encoded]

        base = RLHFLOW if layout == "turns" else TRL_TOKEN_CLASSIFICATION
        tokenizer = byte_level_tokenizer() if layout == "turns" else build_tokenizer()
        diagnosis = diagnose(row(), format=ReadsElsewhere(**dataclasses.asdict(base)), tokenizer=tokenizer)
        [message] = [m for s, n, m in found(diagnosis) if (s, n) == ("error", 0)]
        expected = {
            ("text", -1): "at the end of step 0 is '2' [5], not the end of '\\n'",
            ("text", -2): "at the end of step 0 is '+4=' [",
            ("turns", -1): "behind step 0 is '\\n",
        }[layout, shift]
        assert message.startswith(expected), message

    def test_a_token_that_holds_more_than_the_tag(self):
        assert doctor._ends_tag(merging_tokenizer(), merging_tokenizer()("b ки").input_ids, " ки")
        assert not doctor._ends_tag(merging_tokenizer(), merging_tokenizer()("b. ки").input_ids, " ки")
        assert not doctor._ends_tag(merging_tokenizer(), merging_tokenizer()("b и").input_ids, " ки")

    def test_what_one_text_would_lose(self):
        pieces = dataclasses.replace(ER_PRM, tokenization="pieces", positive_token="+", negative_token="-")
        rows = [row([1], ["b"], "a"), row([0], ["b."], "a"), row([0, 1], ["c", "a."], "a")]
        diagnosis = diagnose(*rows, format=pieces, tokenizer=merging_tokenizer())
        assert found(diagnosis) == []
        assert detail(diagnosis, "tag survives its neighbours") == (
            "by construction, tokenized in pieces; as one text, tags would merge away in 2 of 3 rows (first: row 1)"
        )

    def test_prefixes_that_change(self, blank_line_tokenizer):
        format = dataclasses.replace(TRL_TOKEN_CLASSIFICATION, step_tag="\n\n", tokenization="joint")
        rows = [row([1], ["one"], "a?"), row([1, 0, 1], ["one", "two", "b"], "a?")]
        diagnosis = diagnose(*rows, format=format, tokenizer=blank_line_tokenizer)
        [(severity, number, message)] = found(diagnosis)
        assert (severity, number) == ("warning", 1)
        assert message.startswith("appending step 1 changes ids before it")
        assert "prefixes change in 1 of 2 rows" in detail(diagnosis, "tag survives its neighbours")
        stable = dataclasses.replace(format, tokenization="pieces")
        assert found(diagnose(*rows, format=stable, tokenizer=blank_line_tokenizer)) == []

    def test_truncation(self):
        rows = [row([0, 1], STEPS[:2]), row((0.9, None, None)), row((0.9, 0.2, None)), row(prompt="3+4*2+1+1+1+1\n")]
        diagnosis = diagnose(*rows, max_length=9)
        assert found(diagnosis) == [
            ("warning", 0, "loses steps"),
            ("warning", 1, "loses steps"),
            ("warning", 2, "loses steps"),
            ("warning", 3, "loses all steps and is left out"),
        ]
        # The first step of the first three ends within 9 tokens; labels cut: 1 + 0 + 1 + 3.
        assert "`max_length` 9 cuts 8 steps (5 labels) off 4 rows" in detail(diagnosis, "truncation")
        assert diagnosis.counts == {"rows": 3, "steps": 3, "labels": 3}

    def test_truncation_of_everything(self):
        [finding] = [f for f in found(diagnose(row(), row(), max_length=6)) if f[0] == "error"]
        assert finding[1:] == (None, "no row keeps a step within 6 tokens. Raise `max_length`, for example to 15.")

    def test_training_and_scoring_that_differ(self, monkeypatch):
        def scoring_ids(format, tokenizer, rows):
            whole = format.encode_batch(tokenizer, [r["prompt"] for r in rows], [r["completions"] for r in rows])
            return [EncodedSolution([*e.input_ids[:5], 99, *e.input_ids[6:]], e.step_ends) for e in whole[:1]] + whole[
                1:
            ]

        monkeypatch.setattr(doctor, "_scoring_ids", scoring_ids)
        [finding] = [f for f in found(diagnose(row(), row())) if "differ" in f[2]]
        assert finding[:2] == ("error", 0) and "training and scoring differ from token 5 on" in finding[2]

    def test_training_ids_that_are_too_few(self, monkeypatch):
        """A step cut off without being counted as dropped."""
        training_ids = doctor._training_ids

        def loses_an_id(*args):
            return [
                {**one, "input_ids": one["input_ids"][:-1], "step_ends": [7, 11, 13]} for one in training_ids(*args)
            ]

        monkeypatch.setattr(doctor, "_training_ids", loses_an_id)
        [finding] = [f for f in found(diagnose(row())) if "differ" in f[2]]
        assert "training and scoring differ from token 14 on" in finding[2]

    def test_two_bos_tokens(self):
        tokenizer = merging_tokenizer(bos=True)
        diagnosis = diagnose(row([1], ["b"], "a"), row([0], ["b"], "<s>a"), tokenizer=tokenizer)
        [(severity, number, message)] = found(diagnosis)
        assert (severity, number) == ("error", 1) and message.startswith("begins with '<s>' twice: one is added")
        assert "2 rows begin with '<s>'" in detail(diagnosis, "training ids = scoring ids")

    def test_chat_text_has_one_bos(self):
        tokenizer = byte_level_tokenizer()  # its template writes the token
        prompt = [{"role": "user", "content": "a?"}]
        for format in (TRL_TOKEN_CLASSIFICATION, QWEN_MATH_PRM):
            diagnosis = diagnose(row([0, 1], ["b", "c"], prompt), format=format, tokenizer=tokenizer)
            assert found(diagnosis) == []
            assert "1 rows begin with '<s>'" in detail(diagnosis, "training ids = scoring ids")
        diagnosis = diagnose(row(), format=QWEN_MATH_PRM, tokenizer=byte_level_tokenizer(template=CHATML_TEMPLATE))
        assert "0 rows begin with '<s>'" in detail(diagnosis, "training ids = scoring ids")

    @pytest.mark.parametrize(
        "labels, finding",
        [
            ([[0.5] * 3] * 2, ("warning", None, "all labels are 0.5: a constant fits them.")),
            (
                [[1, 1, 1]] * 6 + [[1, 1, 0.7]] + [[0.2, None, None]],
                ("warning", None, "95.5% of the labels are above"),
            ),
            ([[0, 0.5, 0]] * 7, ("warning", None, "100.0% of the labels are at most 0.5.")),
            ([[1, 0, 1], [None, float("nan"), None]], ("warning", 1, "has no label and is left out")),
        ],
    )
    def test_labels(self, labels, finding):
        [(severity, number, message)] = found(diagnose(*map(row, labels)))
        assert (severity, number) == finding[:2] and message.startswith(finding[2]), message

    def test_no_label_at_all(self):
        findings = found(diagnose(row([None] * 3)))
        assert ("error", None) in [finding[:2] for finding in findings]
        assert "no step has a label" in findings[-1][2]
        assert "no step has a label" in found(diagnose(row(prompt="")))[-1][2]  # nor is there a row

    def test_steps_with_the_tag(self):
        rows = [row([1], ["so"], "a?"), row([0], ["so\nbe it"], "a?")]
        [finding] = found(diagnose(*rows, tokenizer=byte_level_tokenizer()))
        assert finding[:2] == ("warning", 1) and finding[2].startswith("a step holds '\\n'; code that splits at tags")
        rows = [row([1], ["so"], "a?"), row([0], ["she said ки"], "a?")]
        [finding] = found(diagnose(*rows, format=MATH_SHEPHERD, tokenizer=byte_level_tokenizer()))
        assert finding[:2] == ("warning", 1) and "a step holds 'ки'" in finding[2]

    @pytest.mark.parametrize(
        "format, config, finding",
        [
            (TRL_TOKEN_CLASSIFICATION, {"num_labels": 3}, ("error", None, "reads a head with 1 or 2 labels, got 3")),
            (QWEN_MATH_PRM, {"num_labels": 1}, ("error", None, "the format reads a head with 2 labels, got 1")),
            (MATH_SHEPHERD, {}, ("error", None, "but a Qwen2ForTokenClassification has no language-model head")),
            (TRL_TOKEN_CLASSIFICATION, {"vocab_size": 20}, ("error", 0, "but there are 20 embeddings")),
            (
                TRL_TOKEN_CLASSIFICATION,
                {"max_position_embeddings": 9},
                ("warning", 0, "is longer than the context of 9 tokens"),
            ),
        ],
    )
    def test_model(self, format, config, finding):
        config = Qwen2Config(**{"vocab_size": 500, "architectures": ["Qwen2ForTokenClassification"], **config})
        tokenizer = byte_level_tokenizer()
        [(severity, number, message)] = found(diagnose(row(), format=format, tokenizer=tokenizer, config=config))
        assert (severity, number) == finding[:2] and finding[2] in message, message

    @pytest.mark.parametrize("format", [TRL_TOKEN_CLASSIFICATION, MATH_SHEPHERD])
    def test_a_language_model_will_do(self, format):
        config = Qwen2Config(vocab_size=500, architectures=["Qwen2ForCausalLM"], num_labels=3)
        diagnosis = diagnose(row(), format=format, tokenizer=byte_level_tokenizer(), config=config)
        assert found(diagnosis) == []
        is_new = "training gives it a new head" in detail(diagnosis, "model's head and sizes")
        assert is_new == (format is TRL_TOKEN_CLASSIFICATION)

    def test_a_tokenizer_that_does_not_know_the_tag(self):
        format = dataclasses.replace(TRL_TOKEN_CLASSIFICATION, step_tag="@")
        finding = found(diagnose(row(), format=format))[0]
        assert finding[:2] == ("error", None) and "The step tag '@' is not in the tokenizer's vocabulary" in finding[2]

    def test_no_chat_template(self):
        findings = found(diagnose(row(), format=QWEN_MATH_PRM, tokenizer=byte_level_tokenizer(template=None)))
        assert [finding[:2] for finding in findings[:2]] == [("error", None), ("error", 0)]
        assert all("the tokenizer has no chat template" in finding[2] for finding in findings[:2])

    def test_a_chat_template_that_refuses(self):
        template = "{% if messages|length > 2 %}{{ raise_exception('too many turns') }}{% endif %}"
        template += "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
        tokenizer = byte_level_tokenizer(template=template)
        diagnosis = diagnose(row([1], ["b"], "a"), row([1, 0], ["b", "c"], "a"), format=RLHFLOW, tokenizer=tokenizer)
        assert ("error", 1, "too many turns") in found(diagnosis)
        assert [one.number for one in diagnosis.rows] == [0]
