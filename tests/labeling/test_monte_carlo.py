import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from trl_erprm.labeling import LabelingConfig, MonteCarloLabeler, relabel
from trl_erprm.labeling.estimators import (
    entropy_regularized_value_from_counts,
    entropy_regularized_value_from_probability,
)
from trl_erprm.manifest import content_hash
from trl_erprm.rollout import Completion
from trl_erprm.rollout.engine import sample_keys

CONFIG = LabelingConfig(num_rollouts=4, verify_how="arithmetic", max_new_tokens=16, eta=1.0, prefixes_per_chunk=2)
INF = math.inf


class ScriptedEngine:
    """Gives, for each prefix text, the completions of a table in turn; records every call and every sample."""

    def __init__(self, table=None, default="#1", fail_at_call=None):
        self.table = table or {}
        self.default = default
        self.fail_at_call = fail_at_call
        self.calls = []
        self.samples = []  # (prefix, sample number) of every completion that was paid for
        self.options = []

    def generate(self, prefixes, num_samples, options, first_sample=0):
        self.calls.append(list(prefixes))
        self.options.append(options)
        if self.fail_at_call == len(self.calls):
            raise KeyboardInterrupt
        result = []
        for prefix in prefixes:
            texts = self.table.get((str(prefix.prompt), prefix.completion), [self.default])
            of_prefix = []
            for i in range(first_sample, first_sample + num_samples):
                self.samples.append((str(prefix.prompt), prefix.completion, i))
                text = texts[i % len(texts)]
                of_prefix.append(Completion(text.rstrip("…"), 3, "length" if text.endswith("…") else "stop"))
            result.append(of_prefix)
        return result


class BernoulliEngine:
    """Right with a known probability for each prefix; sample i depends on seed, prefix and i only."""

    def __init__(self, probability):
        self.probability = probability
        self.samples = []

    def generate(self, prefixes, num_samples, options, first_sample=0):
        result = []
        for prefix in prefixes:
            keys = np.array(sample_keys(prefix, options.seed, num_samples, first_sample), dtype=np.uint64)
            self.samples += [(prefix.prompt, prefix.completion, first_sample + i) for i in range(num_samples)]
            is_right = (keys >> np.uint64(11)) * 2.0**-53 < self.probability(prefix)
            result.append([Completion("#1" if right else "#0", 2, "stop") for right in is_right])
        return result


def rows(*given, answer="1"):
    return Dataset.from_list([{"answer": answer, **row} for row in given])


THREE_STEPS = {"prompt": "p\n", "completions": ["a", "b", "#1"]}
TABLE = {("p\n", "a\n"): ["b\n#1", "b\n#2", "b\n#1", "b…"], ("p\n", "a\nb\n"): ["#1"]}


class TestLabels:
    def test_counts_and_labels_by_hand(self):
        engine = ScriptedEngine(TABLE)
        result = MonteCarloLabeler(engine, CONFIG).label(rows(THREE_STEPS))
        [row] = result
        assert row["completions"] == ["a", "b", "#1"]
        assert row["num_rollouts"] == [4, 4, 1]
        assert row["num_correct"] == [2, 4, 1]
        assert row["num_unparsed"] == [1, 0, 0]
        assert row["labels"] == pytest.approx([math.log(1 + 0.5 * (math.e - 1)), 1, 1], abs=1e-15)
        assert (row["prompt"], row["answer"], row["outcome"]) == ("p\n", "1", 1.0)
        assert result.column_names == [
            "prompt", "completions", "labels", "label_low", "label_high", "num_correct", "num_rollouts",
            "num_unparsed", "answer", "outcome", "eta",
        ]  # fmt: skip
        assert sorted(prefix.completion for call in engine.calls for prefix in call) == ["a\n", "a\nb\n"]

    def test_last_step_is_its_own_outcome(self):
        solutions = [["#1"], ["#2"], ["no answer"]]
        engine = ScriptedEngine()
        result = MonteCarloLabeler(engine, CONFIG).label(rows(*({"prompt": "p", "completions": s} for s in solutions)))
        assert engine.calls == []
        assert result["labels"][:] == [[1.0], [0.0], [0.0]]
        assert result["outcome"][:] == [1.0, 0.0, None]
        assert result["num_correct"][:] == [[1], [0], [0]]
        assert result["num_rollouts"][:] == [[1], [1], [1]]
        assert result["num_unparsed"][:] == [[0], [0], [1]]

    def test_labels_follow_eta(self):
        for eta, expected in [(0, 0.5), (INF, 1.0), (-INF, 0.0), (-2.0, -math.log((1 + math.exp(-2)) / 2) / 2)]:
            [row] = MonteCarloLabeler(ScriptedEngine(TABLE), replace(CONFIG, eta=eta)).label(rows(THREE_STEPS))
            assert row["labels"][0] == pytest.approx(expected, abs=1e-15) and row["eta"] == eta

    def test_the_whole_answer_is_verified_against_the_own_reference(self):
        """The same rollouts are right for one row and wrong for another; and the verifier sees the steps before."""
        seen = []

        def verifier(text, answer):
            seen.append((text, answer))
            return text.endswith("#" + answer)

        engine = ScriptedEngine({("p", "a\n"): ["b\n#1", "b\n#2"]})
        given = [{"prompt": "p", "completions": ["a", "#1"], "answer": answer} for answer in ("1", "2", "3")]
        result = MonteCarloLabeler(engine, CONFIG, verifier).label(rows(*given))
        assert [row["num_correct"] for row in result] == [[2, 1], [2, 0], [0, 0]]
        assert ("a\nb\n#2", "1") in seen and ("a\n#1", "3") in seen
        assert len([s for s in seen if s[0] == "a\nb\n#1"]) == 3  # equal rollouts of a prefix are verified once

    def test_text_is_split_and_the_policy_continues_what_stood_there(self):
        engine = ScriptedEngine()
        text = "  a \n\n b \n#1\n"
        [row] = MonteCarloLabeler(engine, CONFIG).label(rows({"prompt": "p", "completion": text, "id": 7}))
        assert row["completions"] == ["a", "b", "#1"]
        assert row["id"] == 7 and "completion" not in row
        assert {prefix.completion for call in engine.calls for prefix in call} == {"  a \n\n", "  a \n\n b \n"}

    def test_no_space_is_left_at_the_end_of_a_prefix(self):
        """A tokenizer puts the space in front of the next word: a prefix that ends with one is out of distribution."""
        engine = ScriptedEngine()
        config = replace(CONFIG, split_how="sentence", step_separator=" ", verify_how="gsm8k")
        given = [{"prompt": "p", "completion": "One is 1. Two is 2.\n#### 1"}]
        MonteCarloLabeler(engine, config).label(rows(*given))
        given = [{"prompt": "p", "completions": ["One.", "#### 1"]}]
        MonteCarloLabeler(engine, config).label(rows(*given))
        texts = [prefix.completion for call in engine.calls for prefix in call]
        assert texts and all(text == text.rstrip(" ") for text in texts)
        assert texts[-1] == "One."

    def test_messages(self):
        prompt = [{"role": "user", "content": "1+0"}]
        engine = ScriptedEngine()
        [row] = MonteCarloLabeler(engine, CONFIG).label(rows({"prompt": prompt, "completions": ["a", "#1"]}))
        assert row["prompt"] == prompt
        assert engine.calls[0][0].prompt == prompt
        assert row["num_correct"] == [4, 1]

    def test_a_list_of_rows_and_columns_that_are_carried_along(self):
        given = [{**THREE_STEPS, "answer": "1", "level": 3, "labels": [True, True, True], "outcome": 5}]
        result = MonteCarloLabeler(ScriptedEngine(TABLE), CONFIG).label(given)
        assert result["level"][:] == [3]
        assert result["labels"][0][1:] == [1.0, 1.0] and result["outcome"][:] == [1.0]

    def test_sampling_options(self):
        engine = ScriptedEngine()
        config = replace(CONFIG, temperature=0.7, top_p=0.9, top_k=5, max_new_tokens=9, stop=["\n\n"], seed=3)
        MonteCarloLabeler(engine, replace(config, solution_temperature=0.3)).label(rows({"prompt": "p"}))
        MonteCarloLabeler(engine, config).label(rows(THREE_STEPS))
        solution, rollout = engine.options
        assert (rollout.temperature, rollout.top_p, rollout.top_k) == (0.7, 0.9, 5)
        assert (rollout.max_new_tokens, rollout.stop, rollout.seed) == (9, ("\n\n",), 3)
        assert solution == replace(rollout, temperature=0.3)


class TestDeduplication:
    def test_equal_prefixes_are_rolled_out_once(self):
        engine = ScriptedEngine()
        given = [
            {"prompt": "p", "completions": ["a", "b", "#1"]},
            {"prompt": "p", "completions": ["a", "c", "#1"]},
            {"prompt": "p", "completions": ["a", "b", "#1"]},
            {"prompt": "q", "completions": ["a", "#1"]},
        ]
        labeler = MonteCarloLabeler(engine, CONFIG)
        result = labeler.label(rows(*given))
        assert len(engine.samples) == len(set(engine.samples)) == 4 * 4  # pa, pab, pac, qa
        assert len(result) == 4
        assert labeler.summary["num_prefixes"] == 7
        assert labeler.summary["num_unique_prefixes"] == 4
        assert labeler.summary["num_rollouts"] == 16

    def test_chunks(self):
        given = [{"prompt": f"{i}", "completions": ["a", "#1"]} for i in range(7)]
        for size, expected in ((2, [2, 2, 2, 1]), (100, [7])):
            engine = ScriptedEngine()
            MonteCarloLabeler(engine, replace(CONFIG, prefixes_per_chunk=size)).label(rows(*given))
            assert [len(call) for call in engine.calls] == expected


class TestSampledSolutions:
    TABLE = {("p", ""): ["a\n#1", "#2", "", "a\n\n#1"], ("q", ""): ["#1"]}

    def test_solutions_are_sampled_split_and_labelled(self, caplog):
        engine = ScriptedEngine(self.TABLE)
        labeler = MonteCarloLabeler(engine, replace(CONFIG, solutions_per_prompt=4))
        result = labeler.label(rows({"prompt": "p", "id": 1}, {"prompt": "q", "id": 2}))
        assert result["completions"][:] == [["a", "#1"], ["#2"], ["a", "#1"], ["#1"], ["#1"], ["#1"], ["#1"]]
        assert result["outcome"][:] == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        assert result["id"][:] == [1, 1, 1, 2, 2, 2, 2]
        assert labeler.summary["num_empty_solutions"] == 1
        assert labeler.summary["num_solutions"] == 7
        assert labeler.summary["num_solution_tokens"] == 8 * 3
        assert "1 of the sampled solutions are empty and were left out, 7 remain" in caplog.text

    def test_number_of_solutions(self):
        engine = ScriptedEngine(self.TABLE)
        result = MonteCarloLabeler(engine, replace(CONFIG, solutions_per_prompt=2)).label(rows({"prompt": "p"}))
        assert len(result) == 2

    def test_only_empty_solutions(self):
        engine = ScriptedEngine({("p", ""): [" \n"]})
        with pytest.raises(ValueError, match="must write solutions with at least one step, got 4 empty ones"):
            MonteCarloLabeler(engine, CONFIG).label(rows({"prompt": "p"}))

    def test_equal_prompts_share_their_solutions(self):
        engine = ScriptedEngine(self.TABLE)
        result = MonteCarloLabeler(engine, CONFIG).label(rows({"prompt": "q", "id": 1}, {"prompt": "q", "id": 2}))
        assert len(engine.samples) == 4 and len(result) == 8

    def test_solutions_are_not_paid_twice(self, tmp_path):
        config = replace(CONFIG, solutions_per_prompt=2)
        given = rows({"prompt": "p"}, {"prompt": "q"}, {"prompt": "r"})
        expected = MonteCarloLabeler(ScriptedEngine(self.TABLE), config).label(given)
        samples = []
        for fail_at_call in (2, 2, None):  # in the solutions, then in the rollouts, then through
            engine = ScriptedEngine(self.TABLE, fail_at_call=fail_at_call)
            labeler = MonteCarloLabeler(engine, config)
            if fail_at_call is None:
                assert labeler.label(given, tmp_path).to_list() == expected.to_list()
            else:
                with pytest.raises(KeyboardInterrupt):
                    labeler.label(given, tmp_path)
            samples += engine.samples
        assert len(samples) == len(set(samples))


class TestTruncated:
    """What is cut off at `max_new_tokens` has no answer but one that it marks ("…" here: cut off)."""

    AUTO = replace(CONFIG, verify_how="auto")  # finds a number in nearly every text

    def test_rollouts_by_hand(self, caplog):
        table = {("p\n", "a\n"): ["so 1…", "so 1", "so 1…", "so 2"], ("p\n", "a\nb\n"): ["so 1…"]}
        labeler = MonteCarloLabeler(ScriptedEngine(table), self.AUTO)
        [row] = labeler.label(rows({**THREE_STEPS, "completions": ["a", "b", "so 1"]}))
        assert (row["num_correct"], row["num_unparsed"]) == ([1, 0, 1], [2, 4, 0])
        assert row["labels"] == pytest.approx([math.log(1 + 0.25 * (math.e - 1)), 0, 1], abs=1e-15)
        assert labeler.summary["unparsed_share"] == labeler.summary["truncated_share"] == 6 / 8
        assert "75.0 % of the rollouts are cut off at `max_new_tokens`=16 and count as not right unless" in caplog.text

    @pytest.mark.parametrize("how", ["auto", "math", "gsm8k", "arithmetic"])
    def test_a_marked_answer_counts(self, how):
        """A policy that goes on behind its answer has answered."""
        config = replace(CONFIG, verify_how=how)
        text = {"arithmetic": "2+2\n#1", "math": r"\boxed{1}, as"}.get(how, "#### 1\n2 of")
        [row] = MonteCarloLabeler(ScriptedEngine(default=f"{text}…"), config).label(rows(THREE_STEPS))
        assert row["num_correct"][:2] == [4, 4]

    def test_a_verifier_of_ones_own_is_asked(self):
        labeler = MonteCarloLabeler(ScriptedEngine(default="so 1…"), CONFIG, lambda text, answer: text[-1] == answer)
        [row] = labeler.label(rows(THREE_STEPS))
        assert row["num_correct"] == [4, 4, 1]
        assert labeler.summary["truncated_share"] == 1

    def test_the_last_number_of_an_unfinished_text(self):
        cut = "bakes 4, so 16 - 7 = 9 eggs are left and now she sells each of these 9 for"
        given = rows({"prompt": "p", "completions": ["16 eggs a day.", "The answer is 9."]}, answer="9")
        for text, num_correct in [(cut, 4), (f"{cut}…", 0)]:
            [row] = MonteCarloLabeler(ScriptedEngine(default=text), self.AUTO).label(given)
            assert row["num_correct"] == [num_correct, 1]

    @pytest.mark.parametrize("label_steps", ["all", "until_hopeless", "first_error"])
    @pytest.mark.parametrize("label_tolerance", [None, 0.4])
    def test_counts_as_one_without_an_answer(self, label_steps, label_tolerance):
        config = replace(self.AUTO, label_steps=label_steps, label_tolerance=label_tolerance, num_rollouts=12)
        given = rows({"prompt": "p", "completions": ["a", "b", "c", "d", "so 2"]})

        def label(text):
            table = {("p", "a\n"): ["1", text, "2"], ("p", "a\nb\n"): [text, "1"], ("p", "a\nb\nc\n"): [text]}
            labeler = MonteCarloLabeler(ScriptedEngine(table), config)
            return labeler.label(given).to_list(), labeler.summary["unparsed_share"]

        assert label("1…") == label("no answer") != label("1")

    @pytest.mark.parametrize("merge_equal_solutions", [False, True])
    def test_sampled_solutions(self, merge_equal_solutions, caplog):
        table = {("p", ""): ["a\nso 1…", "a\nso 1", "a\nso 2…", "a\nso 1…"], ("p", "a\n"): ["so 1"]}
        config = replace(self.AUTO, merge_equal_solutions=merge_equal_solutions)
        labeler = MonteCarloLabeler(ScriptedEngine(table), config)
        result = labeler.label(rows({"prompt": "p"}))
        if merge_equal_solutions:
            assert result["num_duplicates"][:] == [2, 1, 1]
            result = result.select([0, 1, 2, 0])
        assert result["outcome"][:] == [None, 1.0, None, None]
        assert result["num_correct"][:] == [[4, 0], [4, 1], [4, 0], [4, 0]]
        assert [labels[-1] for labels in result["labels"]] == [0.0, 1.0, 0.0, 0.0]
        num_solutions = labeler.summary["num_solutions"]
        assert labeler.summary["num_truncated_solutions"] == num_solutions - 1
        message = f"{num_solutions - 1} of the {num_solutions} solutions are cut off at `max_new_tokens`=16"
        assert message in caplog.text

    def test_a_run_continues_with_what_was_cut_off(self, tmp_path):
        table = {("p", ""): ["a\n1…", "b\n1", "a\n2"], ("p", "a\n"): ["1…", "1"], ("p", "b\n"): ["1"]}
        given = rows({"prompt": "p"})
        expected = MonteCarloLabeler(ScriptedEngine(table), self.AUTO).label(given, tmp_path).to_list()
        again = ScriptedEngine(table)
        assert MonteCarloLabeler(again, self.AUTO).label(given, tmp_path).to_list() == expected
        assert again.samples == []


class TestReport:
    def test_summary(self):
        engine = ScriptedEngine({("p", "a\n"): ["#1", "#2", "b", "b…"]})
        labeler = MonteCarloLabeler(engine, CONFIG)
        labeler.label(rows({"prompt": "p", "completions": ["a", "b"]}, {"prompt": "p", "completions": ["#1"]}))
        summary = dict(labeler.summary)
        assert summary.pop("seconds_of_call") > summary.pop("seconds") > 0 and summary.pop("rollouts_per_second") > 0
        assert summary == {
            "num_solutions": 2, "num_distinct_solutions": 2, "num_unanswered_solutions": 1, "num_empty_solutions": 0,
            "num_truncated_solutions": 0, "num_prefixes": 1, "num_unique_prefixes": 1, "num_labelled_prefixes": 1,
            "num_skipped_prefixes": 0, "num_skipped_prompts": 0, "num_rollouts": 4, "num_tokens": 12,
            "num_solution_tokens": 0, "unparsed_share": 0.5, "truncated_share": 0.25, "num_new_rollouts": 4,
            "eta": 1.0, "max_new_tokens": 16,
        }  # fmt: skip

    def test_unparsed_and_cut_off_rollouts_are_warned_of(self, caplog):
        engine = ScriptedEngine({("p", "a\n"): ["#1", "#2", "b", "b…"]})
        MonteCarloLabeler(engine, CONFIG).label(rows({"prompt": "p", "completions": ["a", "#1"]}))
        assert "50.0 % of the rollouts have no readable answer and count as not right" in caplog.text
        assert "25.0 % of the rollouts are cut off at `max_new_tokens`=16" in caplog.text

    def test_no_warning_without_a_reason(self, caplog):
        with caplog.at_level(logging.INFO):
            MonteCarloLabeler(ScriptedEngine(), CONFIG).label(rows(THREE_STEPS))
        assert [record.levelname for record in caplog.records if record.name.startswith("trl_erprm")] == ["INFO"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ([{"prompt": "p"}], ValueError, "must have the columns prompt, answer .*, got prompt; answer missing"),
            ([{"question": "p", "solution": "#1"}], ValueError, "got question, solution; prompt and answer missing"),
            (
                [{"prompt": "p", "answer": "1", "completion": "a", "completions": ["a"]}],
                ValueError,
                "got both. Remove",
            ),
            ([], TypeError, "`dataset` must be a datasets.Dataset or a list of rows, got list"),
            ("rows", TypeError, "`dataset` must be a datasets.Dataset or a list of rows, got str"),
            (Dataset.from_dict({"prompt": [], "answer": []}), ValueError, "must have at least one row, got none"),
        ],
    )
    def test_columns(self, given, error, message):
        with pytest.raises(error, match=message):
            MonteCarloLabeler(ScriptedEngine(), CONFIG).label(given)

    @pytest.mark.parametrize(
        ("row", "error", "message"),
        [
            ({"prompt": " \n"}, ValueError, r"Row 1: `prompt` must not be empty, got ' \\n'. Leave"),
            ({"prompt": None}, TypeError, "Row 1: `prompt` must be a str or a list of messages, got NoneType"),
            ({"answer": None}, ValueError, "Row 1: `answer` must be the text of the reference answer, got None"),
            ({"answer": " "}, ValueError, "Row 1: `answer` must not be empty, got ' '"),
            ({"answer": "xy"}, ValueError, "Row 1: `answer` must be an integer such as"),
            ({"completions": []}, ValueError, r"Row 1: `completions` must have at least one step, got \[\]"),
            ({"completions": None}, TypeError, "Row 1: `completions` must be a list of step texts, got None"),
            (
                {"completions": ["a", " "]},
                ValueError,
                "Row 1: no step of `completions` may be empty, got ' ' as step 1",
            ),
        ],
    )
    def test_rows(self, row, error, message):
        good = {"prompt": "p", "completions": ["a", "#1"], "answer": "1"}
        engine = ScriptedEngine()
        with pytest.raises(error, match=message):
            MonteCarloLabeler(engine, CONFIG).label(rows(good, {**good, **row}))
        assert engine.calls == []

    def test_text_rows(self):
        good = {"prompt": "p", "completion": "#1"}
        for text, error, message in [
            (" \n", ValueError, r"Row 1: `completion` must not be empty, got ' \\n'"),
            (None, TypeError, "Row 1: `completion` must be a str, got NoneType"),
        ]:
            with pytest.raises(error, match=message):
                MonteCarloLabeler(ScriptedEngine(), CONFIG).label(rows(good, {**good, "completion": text}))

    def test_numbers_as_answers(self):
        with pytest.raises(
            TypeError, match="Row 0: `answer` must be the text .* got 1. .* convert the answer with str"
        ):
            MonteCarloLabeler(ScriptedEngine(), CONFIG).label([{"prompt": "p", "answer": 1, "completions": ["#1"]}])

    def test_verifier_must_give_true_false_or_none(self):
        with pytest.raises(TypeError, match="`verifier` must return True, False or None .*, got 0.5"):
            MonteCarloLabeler(ScriptedEngine(), CONFIG, lambda text, answer: 0.5).label(rows(THREE_STEPS))
        labeler = MonteCarloLabeler(ScriptedEngine(), CONFIG, lambda text, answer: np.bool_(True))
        assert labeler.label(rows(THREE_STEPS))["labels"][0] == [1.0, 1.0, 1.0]

    def test_errors_of_the_engine_name_the_rows(self):
        class Refusing:
            def generate(self, prefixes, num_samples, options, first_sample=0):
                raise ValueError("Prefix 1 has 99 tokens")

        given = [{"prompt": f"p{i}", "completions": ["a", "#1"]} for i in range(2)]
        with pytest.raises(ValueError, match="Prefix 1 has 99 tokens") as caught:
            MonteCarloLabeler(Refusing(), CONFIG).label(rows(*given))
        assert caught.value.__notes__ == ["These prefixes, in order, come from the rows [0, 1]."]

    def test_engine(self):
        with pytest.raises(TypeError, match="`engine` must have a method `generate` as RolloutEngine has, got str"):
            MonteCarloLabeler("transformers", CONFIG)


class TestConfig:
    def test_defaults_are_those_of_the_paper(self):
        config = LabelingConfig()
        assert (config.num_rollouts, config.temperature, config.top_p, config.top_k) == (16, 1.0, 1.0, 0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_rollouts": 0}, "`num_rollouts` must be a whole number from 1 up, got 0"),
            ({"solutions_per_prompt": 0}, "`solutions_per_prompt` must be a whole number from 1 up, got 0"),
            ({"prefixes_per_chunk": 0}, "`prefixes_per_chunk` must be a whole number from 1 up, got 0"),
            ({"eta": math.nan}, "`eta` must be finite or one of inf, -inf, got nan"),
            ({"split_how": "lines"}, "`split_how` must be one of 'newline', .*, got 'lines'"),
            ({"verify_how": "gsm8"}, "`verify_how` must be one of .*, got 'gsm8'"),
            ({"step_separator": ""}, "`step_separator` must be a text that is not empty, got ''"),
            ({"temperature": -1.0}, "`temperature` must be a finite number from 0 up, got -1.0"),
            ({"solution_temperature": -1.0}, "`solution_temperature` must be a finite number from 0 up, got -1.0"),
            ({"top_p": 2.0}, r"`top_p` must lie in \(0, 1\], got 2.0"),
            ({"top_k": -1}, "`top_k` must be a whole number from 0 up"),
            ({"max_new_tokens": 0}, "`max_new_tokens` must be a whole number from 1 up"),
            ({"seed": -1}, "`seed` must be a whole number from 0 up"),
            ({"stop": [""]}, "`stop` must hold non-empty texts"),
        ],
    )
    def test_values_are_checked(self, changes, message):
        with pytest.raises(ValueError, match=message):
            LabelingConfig(**changes)

    def test_is_read_from_the_command_line(self):
        from trl import TrlParser

        [config] = TrlParser(LabelingConfig).parse_args_and_config(
            ["--eta", "inf", "--num_rollouts", "8", "--stop", "x", "y", "--step_separator", " "]
        )
        assert config == LabelingConfig(eta=INF, num_rollouts=8, stop=["x", "y"], step_separator=" ")

    def test_identity_holds_what_changes_results(self):
        assert LabelingConfig().identity() == LabelingConfig(eta=7, prefixes_per_chunk=1).identity()
        assert LabelingConfig().identity() != LabelingConfig(top_k=1).identity()


class TestRelabel:
    LABELLED = {"prompt": ["p", "q"], "completions": [["a", "b"], ["c"]], "labels": [[0.1, 0.2], [0.3]],
                "num_correct": [[1, 1], [0]], "num_rollouts": [[4, 1], [0]], "id": [1, 2]}  # fmt: skip

    def test_counts_decide(self):
        result = relabel(Dataset.from_dict(self.LABELLED), 2)
        assert result["labels"][:] == [[pytest.approx(math.log((math.e**2 + 3) / 4) / 2), 1.0], [None]]
        assert result.column_names == [*self.LABELLED, "eta"] and result["eta"][:] == [2.0, 2.0]
        others = result.remove_columns(["labels", "eta"])
        assert others.to_dict() == {k: v for k, v in self.LABELLED.items() if k != "labels"}

    def test_eta_is_replaced_in_its_place(self):
        """Also where it was read from JSON, which holds an infinite one as text."""
        result = relabel(Dataset.from_dict({"eta": ["inf", "inf"], **self.LABELLED}), 0.5)
        assert result.column_names == ["eta", *self.LABELLED] and result["eta"][:] == [0.5, 0.5]

    def test_hard_labels_that_were_booleans_become_numbers(self):
        labelled = Dataset.from_dict({**self.LABELLED, "labels": [[True, True], [False]]})
        assert relabel(labelled, 0)["labels"][0] == [0.25, 1.0]

    def test_there_and_back(self):
        labels = relabel(Dataset.from_dict(self.LABELLED), 1.0)
        assert relabel(relabel(labels, INF), 1.0).to_list() == labels.to_list()

    def test_errors(self):
        labelled = Dataset.from_dict(self.LABELLED)
        with pytest.raises(ValueError, match="must have the columns num_correct and num_rollouts, got prompt, .*"):
            relabel(labelled.remove_columns("num_correct"), 1)
        with pytest.raises(ValueError, match="Row 1: `num_correct` and `num_rollouts` must have one item a step"):
            relabel(Dataset.from_dict({**self.LABELLED, "num_correct": [[1, 1], [0, 0]]}), 1)
        with pytest.raises(ValueError, match="Row 0: .* must have one item a step, got None and"):
            relabel(Dataset.from_dict({**self.LABELLED, "num_correct": [None, [0]]}), 1)
        with pytest.raises(ValueError, match="`num_correct` must not exceed `num_rollouts`, got 5 of 4"):
            relabel(Dataset.from_dict({**self.LABELLED, "num_correct": [[5, 1], [0]]}), 1)
        with pytest.raises(ValueError, match="`eta` must be finite"):
            relabel(labelled, math.nan)


class TestConvergence:
    """Labels of N rollouts approach the exact value of the prefix as N^(-1/2), through the whole labeler.

    The root-mean-square error over 800 prefixes with known success probabilities p in [0.1, 0.9] is fitted against N
    on log-log axes. The law holds from where rollouts that are all wrong are rare: at eta = 10 and p = 0.1 the exact
    value is 0.77, and none right of 16 (in 19 % of cases) gives the label 0. So eta = 10 is fitted for p above 0.5.
    For eta = inf the label is 0 or 1: it is wrong with probability (1 - p)^N, and reaches 1.
    """

    NUMBERS = (16, 64, 256, 1024)

    @pytest.fixture(scope="class")
    @classmethod
    def labelled(cls):
        def probability(prefix):
            return 0.1 + 0.8 * int(content_hash(prefix.prompt)[:8], 16) / 16**8

        given = [{"prompt": f"p{i}", "completions": ["a", "#1"]} for i in range(800)]
        results = {}
        for n in cls.NUMBERS:
            engine = BernoulliEngine(probability)
            config = replace(CONFIG, num_rollouts=n, seed=n, prefixes_per_chunk=800)
            results[n] = MonteCarloLabeler(engine, config).label(rows(*given))
        exact = np.array([0.1 + 0.8 * int(content_hash(row["prompt"])[:8], 16) / 16**8 for row in given])
        return results, exact

    @pytest.mark.parametrize(("eta", "from_p"), [(-2.0, 0.1), (0.0, 0.1), (0.5, 0.1), (1.0, 0.1), (10.0, 0.5)])
    def test_error_falls_as_one_over_the_root_of_n(self, labelled, eta, from_p):
        results, p = labelled
        is_used = p >= from_p
        p = p[is_used]
        exact = entropy_regularized_value_from_probability(p, eta)
        errors = []
        for n in self.NUMBERS:
            labels = np.array([of_row[0] for of_row in relabel(results[n], eta)["labels"]])[is_used]
            errors.append(math.sqrt(np.mean((labels - exact) ** 2)))
            # the delta method: dV/dp times the standard error of p
            slope = np.expm1(eta) / eta / (1 + p * np.expm1(eta)) if eta else np.ones_like(p)
            predicted = math.sqrt(np.mean(slope**2 * p * (1 - p) / n))
            if n >= 256:
                assert errors[-1] == pytest.approx(predicted, rel=0.15)
        fitted = np.polyfit(np.log(self.NUMBERS), np.log(errors), 1)[0]
        assert -0.57 < fitted < -0.43

    def test_the_hard_label_reaches_one(self, labelled):
        results, p = labelled
        shares = []
        for n in self.NUMBERS:
            labels = np.array([of_row[0] for of_row in relabel(results[n], INF)["labels"]])
            assert set(labels) <= {0.0, 1.0}
            expected = np.mean((1 - p) ** n)
            assert np.mean(labels == 0) == pytest.approx(expected, abs=4 * math.sqrt(expected / 800) + 1e-9)
            shares.append(np.mean(labels == 1))
        assert shares[0] < shares[-1] == 1.0

    def test_counts_are_right_on_average(self, labelled):
        results, p = labelled
        correct = np.array([of_row[0] for of_row in results[1024]["num_correct"]])
        z = (correct / 1024 - p) / np.sqrt(p * (1 - p) / 1024)
        assert abs(z.mean()) < 4 / math.sqrt(800) and 0.85 < z.std() < 1.15
        soft = entropy_regularized_value_from_counts(correct, 1024, 0)
        assert np.corrcoef(soft, p)[0, 1] > 0.99
