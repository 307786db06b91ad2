import random
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_erprm.arithmetic import ArithmeticTask
from trl_erprm.evaluation.search import (
    CurvePoint,
    beam_search,
    best_of_n_curve,
    diverse_verifier_tree_search,
    search_curve,
)
from trl_erprm.rollout import Completion, Prefix, PrefixTooLongError, SamplingOptions, load_engine
from trl_erprm.rollout.engine import sample_keys
from trl_erprm.steps import step_texts
from trl_erprm.verify import verify_answer

OPTIONS = SamplingOptions(100)
METHODS = {"beam_search": beam_search, "dvts": diverse_verifier_tree_search}


class TablePolicy:
    """Writes, after each prefix, the lines of a table in turn (sample i gets line i); one character is one token.

    A line that ends with a line end is a step, one without ends the solution, one that ends with "…" is cut off.
    """

    def __init__(self, table):
        self.table = table
        self.asked = []  # (prompt, text, sample number)
        self.limits = []

    def generate(self, prefixes, num_samples, options, first_sample=0):
        self.limits.append(options.max_new_tokens)
        rows = []
        for prefix in prefixes:
            lines = self.table[prefix.completion]
            numbers = range(first_sample, first_sample + num_samples)
            self.asked += [(prefix.prompt, prefix.completion, i) for i in numbers]
            rows.append([self.complete(lines[i % len(lines)], options) for i in numbers])
        return rows

    @staticmethod
    def complete(line, options):
        if line.endswith("…"):
            return Completion(line[:-1], options.max_new_tokens, "length")
        if line.endswith(options.stop[0]):
            return Completion(line.removesuffix(options.stop[0]), len(line), "stop", options.stop[0])
        return Completion(line, len(line), "stop")


class TablePRM:
    """Scores a step by its text; a solution that holds "long" is too long."""

    def __init__(self, scores, default=0.5):
        self.scores = scores
        self.default = default
        self.scored = []

    def score(self, prompts, steps, *, none_if_too_long):
        assert none_if_too_long and len(prompts) == len(steps)
        self.scored += [tuple(of_one) for of_one in steps]
        return [
            None if "long" in of_one else [self.scores.get(step, self.default) for step in of_one] for of_one in steps
        ]


# Greedy decoding, and the score of the first step, go by "a"; the right path is "b", "x", whose first step looks a
# little worse.
GARDEN_PATH = {
    "": ["a\n", "a\n", "a\n", "b\n"],
    "a\n": ["p\n", "q\n"],
    "a\np\n": ["#1"],
    "a\nq\n": ["#2"],
    "b\n": ["x\n", "y\n"],
    "b\nx\n": ["#3"],
    "b\ny\n": ["#4"],
}
GARDEN_PATH_SCORES = {
    "a": 0.9,
    "b": 0.8,
    "p": 0.1,
    "q": 0.2,
    "x": 0.95,
    "y": 0.3,
    "#1": 0.9,
    "#2": 0.9,
    "#3": 0.9,
    "#4": 0.9,
}


def texts(result):
    return [candidate.text for candidate in result.candidates]


def best(result):
    return result.candidates[result.best]


# Beam search


def test_beam_search_finds_the_path_that_greedy_choice_misses():
    policy = TablePolicy(GARDEN_PATH)
    [result] = beam_search(policy, TablePRM(GARDEN_PATH_SCORES), ["1+1"], OPTIONS, num_beams=4, beam_width=2)
    assert best(result).text == "b\nx\n#3"
    assert best(result).steps == ["b", "x", "#3"]
    assert best(result).step_scores == [0.8, 0.95, 0.9]
    assert best(result).score == 0.8 and best(result).is_finished
    # one beam a round is greedy choice by the PRM
    [greedy] = beam_search(policy, TablePRM(GARDEN_PATH_SCORES), ["1+1"], OPTIONS, num_beams=4, beam_width=4)
    assert best(greedy).text == "a\nq\n#2"


def test_rounds_tokens_and_calls_by_hand():
    policy, prm = TablePolicy(GARDEN_PATH), TablePRM(GARDEN_PATH_SCORES)
    [result] = beam_search(policy, prm, ["1+1"], OPTIONS, num_beams=4, beam_width=2)
    # Round 1: "a" x 3 and "b", merged to two. Round 2: two of each. Kept by min: b x (0.8) and b y (0.3), as a p is
    # 0.1 and a q 0.2. Round 3: two of each of these, again merged.
    assert policy.asked == [
        *(("1+1", "", i) for i in range(4)),
        *(("1+1", text, i) for text in ("a\n", "b\n") for i in range(2)),
        *(("1+1", text, i) for text in ("b\nx\n", "b\ny\n") for i in range(2)),
    ]
    assert prm.scored == [
        ("a",), ("b",), ("a", "p"), ("a", "q"), ("b", "x"), ("b", "y"), ("b", "x", "#3"), ("b", "y", "#4"),
    ]  # fmt: skip
    assert result.num_tokens == 4 * 2 + 4 * 2 + 4 * 2
    assert result.num_prm_calls == 8
    assert result.num_rounds == 3
    assert texts(result) == ["b\nx\n#3", "b\ny\n#4"]
    assert best(result).num_tokens == 2 + 2 + 2


def test_aggregation_decides_what_is_kept():
    found = {
        how: best(
            beam_search(
                TablePolicy(GARDEN_PATH | {"a\nq\n": ["#2\n"], "a\nq\n#2\n": [""]}),
                TablePRM({"a": 0.9, "b": 0.3, "p": 0.2, "q": 0.5, "x": 0.8, "y": 0.1, "#2": 0.9, "#3": 0.4}),
                ["1+1"],
                OPTIONS,
                num_beams=4,
                beam_width=4,  # one is kept: "a" in any case
                aggregation=how,
            )[0]
        )
        for how in ("min", "last", "mean")
    }
    assert {how: candidate.score for how, candidate in found.items()} == {
        "min": 0.5,
        "last": 0.9,
        "mean": pytest.approx((0.9 + 0.5 + 0.9) / 3),
    }
    two = {"": ["a\n", "b\n"], "a\n": ["#1"], "b\n": ["#2"]}
    scores = {"a": 0.9, "#1": 0.2, "b": 0.4, "#2": 0.5}
    for how, text in (("min", "b\n#2"), ("last", "b\n#2"), ("mean", "a\n#1"), ("max", "a\n#1")):
        [result] = beam_search(TablePolicy(two), TablePRM(scores), ["1"], OPTIONS, 4, 2, aggregation=how)
        assert best(result).text == text, how


def test_duplicates_are_one_beam_and_leave_their_samples_to_others():
    table = {"": ["a\n"], "a\n": ["p\n", "q\n", "r\n", "s\n"]} | {f"a\n{x}\n": ["#1"] for x in "pqrs"}
    policy = TablePolicy(table)
    prm = TablePRM({"p": 0.4, "q": 0.9, "r": 0.8, "s": 0.1})
    [result] = beam_search(policy, prm, ["1+1"], OPTIONS, num_beams=4, beam_width=2)
    # all four samples of the second round come from the only beam, and the two best of them are kept
    assert [asked for asked in policy.asked if asked[1] == "a\n"] == [("1+1", "a\n", i) for i in range(4)]
    assert texts(result) == ["a\nq\n#1", "a\nr\n#1"]
    assert len(prm.scored) == len(set(prm.scored))


def test_finished_beams_keep_their_place_and_are_not_continued():
    table = {"": ["#1", "b\n"], "b\n": ["c\n"], "b\nc\n": ["d\n"], "b\nc\nd\n": ["#2", "#3"]}
    policy = TablePolicy(table)
    scores = {"#1": 0.6, "b": 0.9, "c": 0.9, "d": 0.9, "#2": 0.7, "#3": 0.1}
    [result] = beam_search(policy, TablePRM(scores), ["1+1"], OPTIONS, num_beams=4, beam_width=2)
    assert texts(result) == ["#1", "b\nc\nd\n#2", "b\nc\nd\n#3"]  # the last was found, and not kept
    assert best(result).text == "b\nc\nd\n#2"
    # the finished beam holds one of two places: two samples a round are left
    assert [sum(text == prefix for _, text, _ in policy.asked) for prefix in table] == [4, 2, 2, 2]
    # where it is the best, and the only one that is kept, the search is over
    [over] = beam_search(TablePolicy(table), TablePRM(scores | {"#1": 0.95}), ["1+1"], OPTIONS, 4, 4)
    assert (texts(over), over.num_rounds) == (["#1"], 1)


def test_better_beam_takes_the_place_of_a_finished_one():
    table = {"": ["#1", "b\n"], "b\n": ["c\n", "d\n"], "b\nc\n": ["#2"], "b\nd\n": ["#3"]}
    scores = {"#1": 0.6, "b": 0.9, "c": 0.9, "d": 0.8, "#2": 0.7, "#3": 0.7}
    [result] = beam_search(TablePolicy(table), TablePRM(scores), ["1+1"], OPTIONS, num_beams=4, beam_width=2)
    assert texts(result) == ["#1", "b\nc\n#2", "b\nd\n#3"]  # both were continued
    assert best(result).text == "b\nc\n#2"  # the first among equals


# DVTS


def test_trees_never_meet():
    # In one tree the beams of "a" crowd out "b"; with two trees of one beam each, the second begins with "b".
    table = {"": ["a\n", "c\n", "b\n", "c\n"], "a\n": ["p\n", "q\n"], "b\n": ["x\n", "y\n"], "c\n": ["z\n"]}
    table |= {"a\np\n": ["#1"], "a\nq\n": ["#1"], "b\nx\n": ["#2"], "b\ny\n": ["#2"]}
    scores = {"a": 0.9, "b": 0.6, "c": 0.5, "p": 0.8, "q": 0.8, "x": 0.95, "#1": 0.1, "#2": 0.9}
    one = beam_search(TablePolicy(table), TablePRM(scores), ["1"], OPTIONS, num_beams=4, beam_width=2)[0]
    two = diverse_verifier_tree_search(
        TablePolicy(table), TablePRM(scores), ["1"], OPTIONS, num_beams=4, beam_width=2
    )[0]
    assert texts(one) == ["a\np\n#1", "a\nq\n#1"]
    assert texts(two) == ["a\np\n#1", "b\nx\n#2"]
    assert [candidate.tree for candidate in two.candidates] == [0, 1]
    assert best(two).text == "b\nx\n#2"


def test_trees_at_the_same_prefix_draw_different_samples_and_pay_for_one_score():
    table = {"": ["a\n"], "a\n": [f"{i}\n" for i in range(8)]} | {f"a\n{i}\n": ["#1"] for i in range(8)}
    policy, prm = TablePolicy(table), TablePRM({})
    [result] = diverse_verifier_tree_search(policy, prm, ["1+1"], OPTIONS, num_beams=6, beam_width=2)
    assert sorted(i for _, text, i in policy.asked if text == "a\n") == list(range(6))
    assert texts(result) == ["a\n0\n#1", "a\n2\n#1", "a\n4\n#1"]  # each tree keeps the first of its own two
    assert prm.scored.count(("a",)) == 1
    assert len(prm.scored) == result.num_prm_calls == 1 + 6 + 3


def test_trees_at_the_same_text_by_other_tokens_draw_different_samples_too():
    class Uneven(TablePolicy):  # the second tree's "a" takes a token more, which leaves less for what follows
        def generate(self, prefixes, num_samples, options, first_sample=0):
            rows = super().generate(prefixes, num_samples, options, first_sample)
            if prefixes[0].completion == "":
                rows[0] = [replace(completion, num_tokens=2 + i) for i, completion in enumerate(rows[0])]
            return rows

    policy = Uneven({"": ["a\n"], "a\n": ["#1", "#2"]})
    options = replace(OPTIONS, max_new_tokens=10)
    [result] = diverse_verifier_tree_search(policy, TablePRM({}), ["1"], options, num_beams=2, beam_width=1)
    assert policy.limits == [10, 8, 7]
    assert texts(result) == ["a\n#1", "a\n#2"]


def test_finished_solution_is_chosen_before_a_cut_off_one():
    table = {"": ["#1", "a\n"], "a\n": ["a\n"]}
    [result] = diverse_verifier_tree_search(
        TablePolicy(table), TablePRM({"#1": 0.2, "a": 0.9}), ["1"], OPTIONS, num_beams=2, beam_width=1, max_steps=2
    )
    assert [(c.text, c.is_finished, c.score) for c in result.candidates] == [("#1", True, 0.2), ("a\na\n", False, 0.9)]
    assert best(result).text == "#1"


# What both share


@pytest.mark.parametrize("search", METHODS.values(), ids=METHODS)
class TestBoth:
    def test_problems_do_not_change_each_other(self, search):
        prompts = ["1", "2", "3"]
        together = search(TablePolicy(GARDEN_PATH), TablePRM(GARDEN_PATH_SCORES), prompts, OPTIONS, 4, 2)
        apart = [
            search(TablePolicy(GARDEN_PATH), TablePRM(GARDEN_PATH_SCORES), [prompt], OPTIONS, 4, 2)[0]
            for prompt in prompts
        ]
        assert together == apart

    def test_beams_without_score_are_never_kept(self, search):
        table = {"": ["long\n", "b\n"], "b\n": ["long", "#2"]}
        [result] = search(TablePolicy(table), TablePRM({"b": 0.1, "#2": 0.1}), ["1"], OPTIONS, 4, 4)
        assert best(result).text == "b\n#2"
        assert {c.text: c.score for c in result.candidates} == {"b\nlong": None, "b\n#2": 0.1}

    def test_nothing_has_a_score(self, search):
        [result] = search(TablePolicy({"": ["long\n", "long"]}), TablePRM({}), ["1"], OPTIONS, 4, 2)
        assert result.best is None
        assert [(c.text, c.step_scores) for c in result.candidates] == [("long", None)]

    def test_empty_solution_never_wins(self, search):
        [result] = search(TablePolicy({"": ["", "#1"]}), TablePRM({"#1": 0.01}), ["1"], OPTIONS, 4, 2)
        assert best(result).text == "#1"

    def test_malformed_solution_never_wins(self, search):
        table = {"": ["#1", "a\n"], "a\n": ["#2"]}
        scores = {"#1": 0.99, "a": 0.5, "#2": 0.5}

        def has_two_steps(prompt, steps):
            assert prompt == "1"
            return len(steps) == 2

        [free] = search(TablePolicy(table), TablePRM(scores), ["1"], OPTIONS, 4, 4)
        [checked] = search(TablePolicy(table), TablePRM(scores), ["1"], OPTIONS, 4, 4, is_well_formed=has_two_steps)
        assert best(free).text == "#1"
        assert best(checked).text == "a\n#2"

    def test_blank_lines_are_read_over(self, search):
        table = {"": ["\n"], "\n": ["a\n"], "a\n": ["\n"], "a\n\n": ["#1"], "\na\n": [" \n"], "\na\n \n": ["#1"]}
        policy = TablePolicy(table)
        [result] = search(policy, TablePRM({}), ["1"], OPTIONS, 2, 2)
        assert texts(result) == ["\na\n \n#1"]
        assert best(result).steps == ["a", "#1"]
        assert result.num_rounds == 2
        assert result.num_tokens == 2 * (1 + 2 + 2 + 2)  # the blank lines were paid for

    def test_nothing_but_blank_lines_ends(self, search):
        table = {"\n" * k: ["\n"] for k in range(20)}
        policy = TablePolicy(table)
        [result] = search(policy, TablePRM({}), ["1"], OPTIONS, 2, 2)
        assert (result.candidates, result.best) == ([], None)
        assert result.num_tokens == len(policy.asked) == 2 * 5

    def test_limits_of_steps_and_tokens(self, search):
        endless = {"a\n" * k: ["a\n"] for k in range(60)}
        [by_steps] = search(TablePolicy(endless), TablePRM({}), ["1"], OPTIONS, 2, 2, max_steps=3)
        assert (texts(by_steps), by_steps.num_rounds) == (["a\na\na\n"], 3)
        assert not best(by_steps).is_finished
        [by_tokens] = search(TablePolicy(endless), TablePRM({}), ["1"], replace(OPTIONS, max_new_tokens=9), 2, 2)
        assert texts(by_tokens) == ["a\n" * 5]  # the last step was begun within the limit
        policy = TablePolicy(endless)
        search(policy, TablePRM({}), ["1"], replace(OPTIONS, max_new_tokens=9), 2, 2, max_step_tokens=4)
        assert policy.limits == [4, 4, 4, 3, 1]

    def test_step_that_is_cut_off_is_not_continued(self, search):
        table = {"": ["a…", "b\n"], "b\n": ["#1"]}
        [result] = search(TablePolicy(table), TablePRM({"a": 0.9, "b": 0.1, "#1": 0.1}), ["1"], OPTIONS, 4, 4)
        assert best(result).text == "b\n#1"
        [all_cut] = search(TablePolicy({"": ["a…"]}), TablePRM({}), ["1"], OPTIONS, 4, 4)
        assert (texts(all_cut), best(all_cut).is_finished) == (["a"], False)

    def test_beam_that_outgrows_the_context_window(self, search):
        class Window(TablePolicy):
            def generate(self, prefixes, num_samples, options, first_sample=0):
                too_long = [i for i, p in enumerate(prefixes) if len(p.prompt + p.completion) > 4]
                if too_long:
                    raise PrefixTooLongError("too long", too_long)
                return super().generate(prefixes, num_samples, options, first_sample)

        table = {"": ["a\n", "bbb\n"], "a\n": ["#1"]}
        [result, alone] = search(Window(table), TablePRM({"bbb": 0.9}), ["1", "1"], OPTIONS, 8, 4)
        assert result == alone
        if search is beam_search:  # both are kept, and only one can be continued
            assert texts(result) == ["a\n#1"] and best(result).is_finished
        [all_cut] = search(Window({"": ["bbb\n"]}), TablePRM({}), ["1"], OPTIONS, 4, 4)
        assert [(c.text, c.is_finished) for c in all_cut.candidates] == [("bbb\n", False)]
        with pytest.raises(PrefixTooLongError):
            search(Window(table), TablePRM({}), ["12345"], OPTIONS, 4, 4)

    def test_further_stop_texts_end_a_solution(self, search):
        class Stopping(TablePolicy):
            @staticmethod
            def complete(line, options):
                assert options.stop == ("\n", "Problem:")
                return Completion("#1", 3, "stop", "Problem:")

        [result] = search(Stopping({"": [""]}), TablePRM({}), ["1"], replace(OPTIONS, stop=("Problem:",)), 2, 2)
        assert texts(result) == ["#1"] and best(result).is_finished

    def test_steps_of_several_lines(self, search):
        table = {"": ["a\nb\n\n"], "a\nb\n\n": ["#1"]}
        prm = TablePRM({})
        [result] = search(TablePolicy(table), prm, ["1"], OPTIONS, 2, 2, split_how="blank_line")
        assert best(result).steps == ["a\nb", "#1"]

    def test_messages_as_prompts(self, search):
        prompt = [{"role": "user", "content": "1+1"}]
        policy = TablePolicy({"": ["#2"]})
        [result] = search(policy, TablePRM({}), [prompt], OPTIONS, 2, 2)
        assert best(result).text == "#2" and policy.asked[0][0] == prompt

    def test_no_prompts(self, search):
        assert search(TablePolicy({}), TablePRM({}), [], OPTIONS, 2, 2) == []

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"num_beams": 6}, "`num_beams` must be a multiple of `beam_width`=4, got 6.* Pass, for example, 8"),
            ({"num_beams": 0}, "`num_beams` must be a whole number from 1 up, got 0"),
            ({"beam_width": 2.0}, "`beam_width` must be a whole number from 1 up, got 2.0"),
            ({"max_steps": 0}, "`max_steps` must be a whole number from 1 up, got 0"),
            ({"max_step_tokens": 0}, "`max_step_tokens` must be a whole number from 1 up, got 0"),
            ({"aggregation": "minimum"}, "Did you mean 'min'"),
            ({"split_how": "sentence"}, "`split_how` must be one of 'newline', 'blank_line', got 'sentence'"),
        ],
    )
    def test_options(self, search, changes, message):
        with pytest.raises(ValueError, match=message):
            search(TablePolicy({}), TablePRM({}), ["1"], OPTIONS, **({"num_beams": 8} | changes))


class IdealPolicy:
    """Draws from the ideal policy of the embedded task, each sample by its own key, as real engines do."""

    def __init__(self, task):
        self.task = task

    def generate(self, prefixes, num_samples, options, first_sample=0):
        return [
            [self.step(prefix, key) for key in sample_keys(prefix, options.seed, num_samples, first_sample)]
            for prefix in prefixes
        ]

    def step(self, prefix, key):
        value, chain = self.task.parse(prefix.prompt)
        written = prefix.completion.splitlines()
        value = int(written[-1][-1]) if written else value
        if len(written) == len(chain):
            return Completion(f"#{value}", 3, "stop")
        operator, b = chain[len(written)]
        p = self.task.result_distribution(value, operator, b)
        result = random.Random(key).choices(range(len(p)), p)[0]
        return Completion(f"{value}{operator}{b}={result}", 5, "stop", "\n")


class ExactPRM:
    """The exact value of each prefix."""

    def __init__(self, task):
        self.task = task

    def score(self, prompts, steps, *, none_if_too_long):
        return [
            [self.task.exact_value(p, of_one[: k + 1]) for k in range(len(of_one))]
            for p, of_one in zip(prompts, steps, strict=True)
        ]


def test_search_with_the_exact_values_beats_sampling_and_best_of_n_at_equal_cost():
    task = ArithmeticTask(num_train=1, num_validation=1, num_test=60)
    prompts = task.problems("test")
    answers = [task.solve(prompt)[-1] for prompt in prompts]
    points = search_curve(
        IdealPolicy(task),
        ExactPRM(task),
        prompts,
        answers,
        OPTIONS,
        (4, 8),
        answer_how="arithmetic",
        aggregation="last",
    )
    assert [(p.method, p.num_beams) for p in points] == [
        ("beam_search", 4),
        ("beam_search", 8),
        ("dvts", 4),
        ("dvts", 8),
    ]
    exact = [task.exact_value(prompt) for prompt in prompts]
    sampled = sum(exact) / 60
    pass_at_4 = sum(1 - (1 - p) ** 4 for p in exact) / 60  # no choice among 4 solutions does better on average
    assert sampled < pass_at_4 < points[0].accuracy.mean
    assert points[1].accuracy.mean > 0.9 and points[3].accuracy.mean > 0.9
    for point in points:
        assert point.accuracy.low < point.accuracy.mean <= point.accuracy.high
        # five operations and an answer line: N solutions' worth of tokens, less what finished beams save at the end
        assert 0.8 * point.num_beams * 28 <= point.tokens <= point.num_beams * 28


def test_seed_and_nothing_else_changes_the_result():
    task = ArithmeticTask(num_train=1, num_validation=1, num_test=20)
    prompts = task.problems("test")
    for search in METHODS.values():
        first, again, other = (
            search(IdealPolicy(task), ExactPRM(task), prompts, SamplingOptions(100, seed=seed), 4, 2)
            for seed in (0, 0, 1)
        )
        assert first == again
        assert [texts(result) for result in first] != [texts(result) for result in other]
        subset = search(IdealPolicy(task), ExactPRM(task), prompts[5:9], SamplingOptions(100), 4, 2)
        assert subset == first[5:9]


def test_search_with_a_real_policy(tiny_policy):
    task, path = tiny_policy
    policy = AutoModelForCausalLM.from_pretrained(path)
    engine = load_engine("transformers", model=policy, tokenizer=AutoTokenizer.from_pretrained(path))
    rows = task.dataset("test", 20)
    prompts, options = list(rows["prompt"]), SamplingOptions(24)

    class StepChecker:  # 0.1 from the first wrong step on; the policy is trained for seconds: some lines are no step
        def score(self, prompts, steps, *, none_if_too_long):
            verdicts = [task.check_steps(prompt, of_one) for prompt, of_one in zip(prompts, steps, strict=True)]
            return [[0.9 if all(of_one[: k + 1]) else 0.1 for k in range(len(of_one))] for of_one in verdicts]

    plain = engine.generate([Prefix(prompt) for prompt in prompts], 4, options)
    sampled = (
        sum(
            verify_answer(c.text, answer, "arithmetic") is True
            for of_one, answer in zip(plain, rows["answer"], strict=True)
            for c in of_one
        )
        / len(prompts)
        / 4
    )
    for search in METHODS.values():
        results = search(engine, StepChecker(), prompts, options, num_beams=8, beam_width=4, split_how="newline")
        right = [
            r.best is not None and verify_answer(best(r).text, answer, "arithmetic") is True
            for r, answer in zip(results, rows["answer"], strict=True)
        ]
        assert sum(right) / len(right) > sampled + 0.15
        for result in results:
            for candidate in result.candidates:
                assert candidate.steps == step_texts(candidate.text)
        # a search alone gives the same, up to the rounding that may change a token
        alone = [search(engine, StepChecker(), [prompt], options, 8, 4)[0] for prompt in prompts[:6]]
        assert sum(texts(a) == texts(b) for a, b in zip(alone, results, strict=False)) >= 5


# The curve


def test_curve_rows_by_hand():
    points = search_curve(
        TablePolicy(GARDEN_PATH), TablePRM(GARDEN_PATH_SCORES), ["1", "2"], ["3", "2"], OPTIONS, (4,), beam_width=2,
        answer_how="arithmetic",
    )  # fmt: skip
    assert [(p.method, p.num_beams, p.accuracy.mean, p.tokens, p.prm_calls) for p in points] == [
        ("beam_search", 4, 0.5, 24.0, 8.0),
        ("dvts", 4, 0.5, 24.0, 5.0),  # both trees keep "a", then "q": a, b; p, q; #2
    ]


def test_best_of_n_rows_by_hand():
    scores = [[0.9, None, 0.1], [0.2, 0.3, 0.4]]
    points = best_of_n_curve(scores, [[1, 1, 0], [0, 0, 1]], [[10, 10, 10], [20, 20, 20]], budgets=(1, 3, 9))
    assert [p[:2] for p in points] == [("best_of_n", 1), ("best_of_n", 3)]
    assert isinstance(points[0], CurvePoint)
    assert [p.accuracy.mean for p in points] == [pytest.approx((1 / 3 + 1 / 3) / 2), 1.0]
    assert [(p.tokens, p.prm_calls) for p in points] == [(15.0, pytest.approx(5 / 6)), (45.0, 2.5)]


def test_curve_errors():
    arguments = (TablePolicy({}), TablePRM({}))
    with pytest.raises(ValueError, match="`answers` must hold one answer a problem, got 1 for 2 problems"):
        search_curve(*arguments, ["1", "2"], ["1"], OPTIONS)
    with pytest.raises(ValueError, match="got 0 for 0 problems"):
        search_curve(*arguments, [], [], OPTIONS)
    with pytest.raises(ValueError, match="`methods` must be one of 'beam_search', 'dvts', got 'dvt'"):
        search_curve(*arguments, ["1"], ["1"], OPTIONS, methods=("dvt",))
    with pytest.raises(ValueError, match="`num_beams` must be a multiple of `beam_width`=4, got 6"):
        search_curve(*arguments, ["1"], ["1"], OPTIONS, budgets=(4, 6))
    with pytest.raises(ValueError, match="`num_tokens` must have the shape of `is_correct`"):
        best_of_n_curve([[0.1, 0.2]], [[1, 0]], [[3]])
