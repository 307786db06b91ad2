"""`trl_erprm.arithmetic.task`: the problems and their exact truth."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from trl_erprm.arithmetic import VALUES, ArithmeticTask
from trl_erprm.labeling import LabelingConfig, MonteCarloLabeler, relabel
from trl_erprm.manifest import content_hash
from trl_erprm.rollout import Completion

INF = math.inf
SMALL = {"num_train": 60, "num_validation": 20, "num_test": 20}
# Four misconceptions among nine facts and many errors, so that every path has a visible probability.
ERRING = ArithmeticTask(
    modulus=3, operators="+*", num_operations=4, misconception_share=0.4, random_error_rate=0.2, **SMALL
)
HARD = ArithmeticTask(
    modulus=13, operators="+-*", num_operations=3, misconception_share=0.3, random_error_rate=0.1, num_distractors=2,
    **SMALL,
)  # fmt: skip
# Not a prime: multiplications bring values together.
COMPOSITE = ArithmeticTask(modulus=12, num_operations=3, misconception_share=0.3, random_error_rate=0.1, **SMALL)


class TestProblems:
    @pytest.mark.parametrize(
        "modulus, problem, solution",
        [
            (5, "3+4*2+1", ["3+4=2", "2*2=4", "4+1=0", "#0"]),  # left to right: (3 + 4) * 2, not 3 + 4 * 2
            (10, "3+4*2+1", ["3+4=7", "7*2=4", "4+1=5", "#5"]),
            (5, "1-3", ["1-3=3", "#3"]),  # -2 modulo 5
            (7, "6*6-1", ["6*6=1", "1-1=0", "#0"]),
            (13, "9+3*c-1", ["9+3=c", "c*c=1", "1-1=0", "#0"]),  # 12 * 12 = 144 = 11 * 13 + 1
            (36, "z+y*2-a", ["z+y=x", "x*2=u", "u-a=k", "#k"]),  # 35 + 34 = 69, 33 * 2 = 66, 30 - 10 = 20
            (13, "a*b\n?9+3*c\n4+4", ["9+3=c", "c*c=1", "#1"]),  # the marked chain
            (5, "?3+4*2", ["3+4=2", "2*2=4", "#4"]),
        ],
    )
    def test_solutions_by_hand(self, modulus, problem, solution):
        task = ArithmeticTask(modulus=modulus, operators="+-*", **SMALL)
        assert task.solve(problem) == solution
        assert task.solve(problem + "\n") == solution

    def test_operations_that_change_nothing_are_left_out(self):
        assert ArithmeticTask(modulus=4, operators="+*", **SMALL).operations == [
            ("+", 1), ("+", 2), ("+", 3), ("*", 2), ("*", 3)
        ]  # fmt: skip

    def test_splits_are_disjoint_and_of_the_sizes_asked_for(self):
        task = ArithmeticTask()
        splits = [task.problems(name) for name in ("train", "validation", "test")]
        assert [len(split) for split in splits] == [4000, 500, 500]
        assert len(set(itertools.chain(*splits))) == 5000
        assert all(len(problem) == 11 for problem in splits[0])

    def test_every_problem_can_be_asked_for(self):
        task = ArithmeticTask(modulus=3, num_operations=1, num_train=7, num_validation=1, num_test=1)
        assert task.num_problems == 9
        assert sorted(sum((task.problems(s) for s in ("train", "validation", "test")), [])) == sorted(
            f"{a}{o}{b}" for a in range(3) for o, b in task.operations
        )

    def test_equal_values_give_equal_problems(self):
        first, second = ArithmeticTask(**SMALL), ArithmeticTask(**SMALL)
        assert first.problems("test") == second.problems("test")
        assert first.misconceptions == second.misconceptions
        other = ArithmeticTask(seed=1, **SMALL)
        assert first.problems("test") != other.problems("test")
        assert first.misconceptions != other.misconceptions

    def test_the_problems_do_not_change_between_versions(self):
        """Cached outputs rest on them: where this fails, they are of another task."""
        task, hard = ArithmeticTask(), ArithmeticTask(num_operations=8, modulus=7, seed=13)
        assert task.problems("test")[:2] == KNOWN_PROBLEMS
        splits = [
            content_hash([of.problems(split) for split in ("train", "validation", "test")]) for of in (task, hard)
        ]
        assert [hash[:16] for hash in splits] == KNOWN_SPLITS
        wrong = [content_hash([[*fact, value] for fact, value in of.misconceptions.items()]) for of in (task, hard)]
        assert [hash[:16] for hash in wrong] == KNOWN_MISCONCEPTIONS

    def test_distractors_stand_beside_the_same_problems(self):
        alone = replace(HARD, num_distractors=0)
        places = set()
        for split in ("train", "validation", "test"):
            for prompt, problem in zip(HARD.problems(split), alone.problems(split), strict=True):
                lines = prompt.split("\n")
                assert len(lines) == 3 and [line[1:] for line in lines if line[0] == "?"] == [problem]
                assert problem not in lines
                assert {len(line.removeprefix("?")) for line in lines} == {7}
                assert HARD.parse(prompt) == alone.parse(problem)
                places.add(lines.index(f"?{problem}"))
        assert places == {0, 1, 2}
        assert HARD.problems("test") == replace(HARD).problems("test")
        assert HARD.misconceptions == alone.misconceptions

    def test_distractors_have_the_seed_of_the_task(self):
        drawn = [
            [line for problem in task.problems("train") for line in problem.split("\n") if line[0] != "?"]
            for task in (HARD, replace(HARD, seed=1))
        ]
        assert drawn[0] != drawn[1]

    def test_splits_share_no_chain_that_is_asked_for(self):
        task = ArithmeticTask(
            modulus=3, num_operations=1, num_train=7, num_validation=1, num_test=1, num_distractors=1
        )
        asked = [str(task.parse(p)) for split in ("train", "validation", "test") for p in task.problems(split)]
        assert len(set(asked)) == 9
        # nine chains in all: among ten distractors the one that is asked for would be by chance
        for problem in replace(task, num_distractors=10).problems("train"):
            lines = problem.split("\n")
            asked_line = next(line for line in lines if line[0] == "?")
            assert asked_line.removeprefix("?") not in lines

    @pytest.mark.parametrize("modulus", [5, 13, 36])
    def test_parse_reads_what_the_problems_write(self, modulus):
        task = ArithmeticTask(modulus=modulus, operators="+-*", num_distractors=1, **SMALL)
        seen = set()
        for problem in task.problems("train"):
            start, chain = task.parse(problem)
            seen |= {start, *(b for _, b in chain)}
            asked = next(line for line in problem.split("\n") if line[0] == "?")
            assert asked == f"?{VALUES[start]}" + "".join(f"{o}{VALUES[b]}" for o, b in chain)
        assert max(seen) == modulus - 1

    def test_dataset(self):
        task = ArithmeticTask(**SMALL)
        rows = task.dataset("test", 3)
        assert rows.column_names == ["prompt", "answer"] and len(rows) == 3
        for row, problem in zip(rows, task.problems("test"), strict=False):
            assert row == {"prompt": problem + "\n", "answer": task.solve(problem)[-1].removeprefix("#")}

    @pytest.mark.parametrize(
        "num_rows, message", [(-1, "at least 1, got -1"), (0, "at least 1, got 0"), (2.0, "a whole")]
    )
    def test_rows_that_cannot_be(self, num_rows, message):
        with pytest.raises(ValueError, match=f"`num_rows` must be {message}"):
            ArithmeticTask(**SMALL).dataset("train", num_rows)

    def test_unknown_split(self):
        with pytest.raises(ValueError, match="`split` must be one of 'train', 'validation', 'test', got 'dev'"):
            ArithmeticTask(**SMALL).problems("dev")

    @pytest.mark.parametrize(
        "text",
        ["", "3+", "A+1", "3/2", "3+4*", "+3", "3 + 4", "12", "٣+1", "3?4", "??3+4"]
        + ["3+4\n1+2", "?3+4\n?1+2", "?3+4\n\n1+2", "?3+4\n1+", "?3+4\nx=1", "?3+4\n 1+2", "?", "?\n3+4"],
    )
    def test_what_is_no_problem(self, text):
        with pytest.raises(ValueError, match="is not a problem of this task"):
            ArithmeticTask.parse(text)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"modulus": 37}, "`modulus` must be from 3 to 36"),
            ({"modulus": 2}, "`modulus` must be from 3 to 36"),
            ({"modulus": 5.0}, "`modulus` must be a whole number, got 5.0"),
            ({"modulus": True}, "`modulus` must be a whole number, got True"),
            ({"num_operations": 2.5}, "`num_operations` must be a whole number, got 2.5"),
            ({"num_train": -5}, "`num_train` must be at least 0, got -5"),
            ({"num_validation": -1}, "`num_validation` must be at least 0, got -1"),
            ({"num_test": -1}, "`num_test` must be at least 0, got -1"),
            ({"num_test": "9"}, "`num_test` must be a whole number, got '9'"),
            ({"seed": 0.0}, "`seed` must be a whole number, got 0.0"),
            ({"num_distractors": -1}, "`num_distractors` must be at least 0, got -1"),
            ({"operators": "+/"}, "`operators` must be one or more of"),
            ({"operators": ""}, "`operators` must be one or more of"),
            ({"num_operations": 0}, "`num_operations` must be at least 1"),
            ({"misconception_share": 1.5}, r"`misconception_share` must be in \[0, 1\], got 1.5"),
            ({"systematic_error_rate": -0.1}, r"`systematic_error_rate` must be in \[0, 1\]"),
            ({"random_error_rate": math.nan}, r"`random_error_rate` must be in \[0, 1\], got nan"),
            ({"num_operations": 1}, "ask for 5000 different problems, but 1 operations modulo 5 .* make only 35"),
        ],
    )
    def test_values_are_checked(self, changes, message):
        with pytest.raises(ValueError, match=message):
            ArithmeticTask(**changes)

    @pytest.mark.parametrize(
        "text, strange", [("c+4", "c"), ("3+9", "9"), ("5*2", "5"), ("3+4*5\n", "5"), ("?3+4\n3+7", "7"), ("z+z", "z")]
    )
    def test_values_of_another_modulus_are_none_of_the_task(self, text, strange):
        """`parse` reads the problems of every modulus; the task takes those of its own."""
        task, rng = ArithmeticTask(5, num_distractors=1, **SMALL), np.random.default_rng(0)
        start, chain = task.parse(text)
        assert ArithmeticTask(36, **SMALL).solve(text)[0][0] == VALUES[start] and chain
        for method, more in [
            (task.solve, ()),
            (task.check_steps, (["3+4=2"],)),
            (task.is_well_formed, (["3+4=2", "#2"],)),
            (task.exact_value, ()),
            (task.sample_solution, (rng,)),
        ]:
            with pytest.raises(ValueError, match=f"is not a problem of this task: '{strange}' is no value modulo 5"):
                method(text, *more)

    @pytest.mark.parametrize("text, strange", [("3-1", "-1"), ("3+4*1", "[*]1"), ("3+0", "[+]0"), ("3*0", "[*]0")])
    def test_operations_that_the_ideal_policy_does_not_know(self, text, strange):
        task = ArithmeticTask(5, **SMALL)
        assert task.check_steps(text, task.solve(text)) == [True] * (len(text) // 2 + 1)
        for method, more in [(task.exact_value, ()), (task.sample_solution, (np.random.default_rng(0),))]:
            with pytest.raises(
                ValueError, match=f"'{strange}' is none of its operations, which are [+]1 [+]2 .* [*]4"
            ):
                method(text, *more)


KNOWN_PROBLEMS = ["1*2+3+2*2+3", "0*2*2+3+3+2"]
KNOWN_SPLITS = ["3e676053aeb637c3", "ddddd190a7eb0532"]
KNOWN_MISCONCEPTIONS = ["3b441a1c97c770d0", "13f68a79d705c134"]


class TestChecker:
    TASK = ArithmeticTask(modulus=5, operators="+-*", **SMALL)

    @pytest.mark.parametrize(
        "steps, verdicts",
        [
            (["3+4=2", "2*2=4", "4+1=0", "#0"], [True, True, True, True]),
            (["3+4=2", "2*2=3", "3+1=4", "#4"], [True, False, True, True]),  # right given what was written before
            (["3+4=2", "2*2=4", "4+1=0", "#1"], [True, True, True, False]),  # another value than the last step's
            (["3+4=2", "1*2=2"], [True, False]),  # does not take up the value before it
            (["3+4=2", "2+1=3"], [True, False]),  # a step skipped
            (["3+4=2", "2*2=x", "4+1=0"], [True, False, False]),  # nothing can follow what cannot be read
            (["3+4=2", "2*2=x", "x+1=4"], [True, False, False]),  # a letter is no value modulo 5
            (["3+4=7", "7*2=4", "4+1=0"], [False, True, True]),
            (["3+4=2", "2*2=", "#"], [True, False, False]),
            (["3+4=2", "2*2=4", "4+1=0", "#0", "#0"], [True, True, True, True, False]),  # beyond the answer
            (["#3"], [False]),
            (["3+4=7"], [False]),  # not reduced
            (["3+4=12"], [False]),
            ([], []),
        ],
    )
    def test_steps(self, steps, verdicts):
        assert self.TASK.check_steps("3+4*2+1", steps) == verdicts

    @pytest.mark.parametrize(
        "steps, verdicts",
        [
            (["3+9=c", "c*b=2", "#2"], [True, True, True]),
            (["3+9=b", "b*b=4", "#4"], [False, True, True]),
            (["3+9=c", "c*b=z", "#z"], [True, False, False]),  # 35 is no value modulo 13
            (["c+4=3", "3*b=7", "#7"], [False, True, True]),  # the distractor's first step
            (["3+9=C", "c*b=2", "#2"], [False, False, False]),
        ],
    )
    def test_steps_beside_a_distractor(self, steps, verdicts):
        assert HARD.check_steps("c+4*b\n?3+9*b", steps) == verdicts

    @pytest.mark.parametrize("task", [TASK, HARD, COMPOSITE])
    def test_solutions_are_right(self, task):
        for problem in task.problems("train"):
            assert all(task.check_steps(problem, task.solve(problem)))
            assert task.is_well_formed(problem, task.solve(problem))
            # a wrong value of this task anywhere is seen there, and what is no value makes it malformed
            steps = task.solve(problem)
            for k, step in enumerate(steps):
                wrong = VALUES[(VALUES.index(step[-1]) + 1) % task.modulus]
                changed = [*steps[:k], step[:-1] + wrong, *steps[k + 1 :]]
                verdicts = task.check_steps(problem, changed)
                assert verdicts.index(False) == k and task.is_well_formed(problem, changed)
                changed[k] = step[:-1] + VALUES[task.modulus]
                assert not task.is_well_formed(problem, changed)

    @pytest.mark.parametrize(
        "steps, expected",
        [
            (["3+4=2", "2*2=4", "#4"], True),
            (["3+4=1", "0*2=4", "#0"], True),  # wrong all over, but nothing is missing
            (["3+4=1", "7*2=4", "#0"], False),  # 7 is no value modulo 5
            (["3+4=5", "1*2=4", "#0"], False),
            (["3+4=2", "2*2=4", "#5"], False),
            (["3+4=٢", "2*2=4", "#4"], False),  # a digit of another alphabet
            (["3+4=2", "#2"], False),  # a step skipped
            (["3+4=2", "2*2=4"], False),  # no answer
            (["3+4=2", "2*2=4", "#"], False),  # an empty answer
            (["3+4=2", "2*2=4", ""], False),  # an empty last step
            (["3+4=2", "2*2=4", "#4", "#4"], False),  # an extra step
            (["3+4=2", "2*2=4", "4+1=0", "#0"], False),
            (["3+4=2", "2*3=1", "#1"], False),  # another operation than asked for
            (["3+4=", "2*2=4", "#4"], False),
            (["3+4=12", "2*2=4", "#4"], False),
            (["3+4=2", "2*2=4", "4"], False),
            ([], False),
        ],
    )
    def test_is_well_formed(self, steps, expected):
        assert self.TASK.is_well_formed("3+4*2", steps) is expected

    @pytest.mark.parametrize(
        "steps, expected",
        [
            (["3+9=c", "c*b=2", "#2"], True),
            (["a+9=1", "1*b=c", "#0"], True),
            (["3+9=d", "c*b=2", "#2"], False),  # 13 is no value modulo 13
            (["3+9=c", "c*b=2", "#d"], False),
            (["3+9=C", "c*b=2", "#2"], False),
            (["c+4=3", "3*b=7", "#7"], False),  # the distractor's operation
        ],
    )
    def test_is_well_formed_beside_a_distractor(self, steps, expected):
        assert HARD.is_well_formed("c+4*b\n?3+9*b", steps) is expected


class TestIdealPolicy:
    @pytest.mark.parametrize("share, expected", [(0.0, 0), (0.15, 5), (0.2, 7), (1.0, 35)])
    def test_number_of_misconceptions(self, share, expected):
        """35 facts: 5 values by 4 additions and 3 multiplications."""
        task = ArithmeticTask(misconception_share=share)
        assert len(task.misconceptions) == expected
        assert all(wrong != task.result(*fact) for fact, wrong in task.misconceptions.items())

    def test_result_distribution_by_hand(self):
        task = ArithmeticTask(systematic_error_rate=0.6, random_error_rate=0.08)
        wrongly_learnt, wrong = next(iter(task.misconceptions.items()))
        p = task.result_distribution(*wrongly_learnt)
        assert p[task.result(*wrongly_learnt)] == pytest.approx(0.92 * 0.4)
        assert p[wrong] == pytest.approx(0.92 * 0.6 + 0.02)
        known = next(f for a in range(5) for o, b in task.operations if (f := (a, o, b)) not in task.misconceptions)
        p = task.result_distribution(*known)
        assert p[task.result(*known)] == pytest.approx(0.92)
        assert sorted(p)[:4] == pytest.approx([0.02] * 4)

    def test_result_distributions_sum_to_1(self):
        for task, a in ((of, a) for of in (ERRING, HARD) for a in range(of.modulus)):
            for o, b in task.operations:
                p = task.result_distribution(a, o, b)
                assert p.sum() == pytest.approx(1.0, abs=1e-12) and (p >= 0).all()

    @staticmethod
    def value_by_enumeration(task, problem, steps):
        """Sum over every path of the rest of the chain, one by one."""
        start, chain = task.parse(problem)
        truth = VALUES.index(task.solve(problem)[-1][1:])
        value = VALUES.index(steps[-1][-1]) if steps else start
        total = 0.0
        rest = chain[len(steps) :]
        for path in itertools.product(range(task.modulus), repeat=len(rest)):
            probability, current = 1.0, value
            for (o, b), written in zip(rest, path, strict=True):
                probability *= task.result_distribution(current, o, b)[written]
                current = written
            total += probability * (current == truth)
        return total

    @pytest.mark.parametrize("task, num_problems", [(ERRING, 20), (COMPOSITE, 4), (HARD, 4)])
    def test_exact_value_against_enumeration(self, task, num_problems):
        rng = np.random.default_rng(0)
        values = []
        for problem in task.problems("train")[:num_problems]:
            solution = task.sample_solution(problem, rng)
            for k in range(len(solution) + 1):
                expected = self.value_by_enumeration(task, problem, solution[:k])
                values.append(task.exact_value(problem, solution[:k]))
                assert values[-1] == pytest.approx(expected, abs=1e-12)
        assert len(set(np.round(values, 6))) > num_problems  # many different values were compared

    @pytest.mark.parametrize("task", [ERRING, COMPOSITE, HARD])
    def test_exact_value_against_20000_samples(self, task):
        rng = np.random.default_rng(0)
        for problem in task.problems("test")[:2]:
            truth = task.solve(problem)[-1]
            share = np.mean([task.sample_solution(problem, rng)[-1] == truth for _ in range(20_000)])
            p = task.exact_value(problem)
            assert 0.05 < p < 0.95
            assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 20_000))

    def test_samples_are_those_of_the_result_distributions(self):
        """Draw by draw what numpy makes of the probabilities: policies rest on it."""
        rng, again = np.random.default_rng(0), np.random.default_rng(0)
        for problem in HARD.problems("train"):
            value, chain = HARD.parse(problem)
            for step, (o, b) in zip(HARD.sample_solution(problem, rng), chain, strict=False):
                written = again.choice(13, p=HARD.result_distribution(value, o, b))
                assert step == f"{VALUES[value]}{o}{VALUES[b]}={VALUES[written]}"
                value = written

    def test_samples_are_well_formed_and_err(self):
        rng = np.random.default_rng(0)
        solutions = [(p, ERRING.sample_solution(p, rng)) for p in ERRING.problems("train")]
        assert all(ERRING.is_well_formed(p, s) for p, s in solutions)
        assert any(s != ERRING.solve(p) for p, s in solutions)
        again = np.random.default_rng(0)
        assert [ERRING.sample_solution(p, again) for p, _ in solutions] == [s for _, s in solutions]

    def test_a_whole_solution_is_right_or_wrong(self):
        task = ArithmeticTask(**SMALL)
        for eta in (-INF, -2.0, 0.0, 1.0, INF):
            assert task.exact_value("3+4*2", ["3+4=2", "2*2=4", "#4"], eta) == 1.0
            assert task.exact_value("3+4*2", ["3+4=2", "2*2=4"], eta) == 1.0  # only the answer line is left
            assert task.exact_value("3+4*2", ["3+4=2", "2*2=3", "#3"], eta) == 0.0
            assert task.exact_value("3+4*2", ["3+4=2", "2*2=4", "#3"], eta) == 0.0

    def test_without_errors_every_right_prefix_is_worth_1(self):
        task = ArithmeticTask(misconception_share=0.0, random_error_rate=0.0, **SMALL)
        for problem in task.problems("test"):
            solution = task.solve(problem)
            assert [task.exact_value(problem, solution[:k]) for k in range(7)] == [1.0] * 7

    def test_eta(self):
        """The limits, the definition, and the order soft < ER < hard."""
        problem, steps = ERRING.problems("train")[0], []
        p = ERRING.exact_value(problem, steps)
        assert 0 < p < 1
        assert ERRING.exact_value(problem, steps, INF) == 1.0
        assert ERRING.exact_value(problem, steps, -INF) == 0.0
        for eta in (-2.0, 0.5, 10.0):
            expected = math.log(1 + p * (math.exp(eta) - 1)) / eta
            assert ERRING.exact_value(problem, steps, eta) == pytest.approx(expected, abs=1e-12)
        values = [ERRING.exact_value(problem, steps, eta) for eta in (-INF, -2, 0, 0.5, 1, 10, INF)]
        assert values == sorted(values) and len(set(values)) == 7

    def test_values_of_another_modulus_are_named(self):
        with pytest.raises(ValueError, match="its last one ends in a value from 0 to c"):
            HARD.exact_value("1+2\n?3+9", ["3+9=d"])

    @pytest.mark.parametrize("steps", [["3+4=2", "2*2=4", "#4", "#4"], ["3+4="], [""]])
    def test_what_is_no_prefix(self, steps):
        with pytest.raises(ValueError, match="is not a prefix of a solution of '3[+]4[*]2'"):
            ArithmeticTask(**SMALL).exact_value("3+4*2\n", steps)


class IdealEngine:
    """Rollouts of the ideal policy: completes a prefix with steps drawn from its distributions."""

    def __init__(self, task):
        self.task = task

    def generate(self, prefixes, num_samples, options, first_sample=0):
        result = []
        for prefix in prefixes:
            key = content_hash(options.seed, prefix.prompt, prefix.completion, first_sample)
            rng = np.random.default_rng(int(key[:16], 16))
            start, chain = self.task.parse(prefix.prompt)
            steps = prefix.completion.splitlines()
            values = np.full(num_samples, int(steps[-1][-1]) if steps else start)
            texts = [""] * num_samples
            for o, b in chain[len(steps) :]:
                cumulative = np.cumsum([self.task.result_distribution(a, o, b) for a in range(self.task.modulus)], 1)
                written = (rng.random((num_samples, 1)) > cumulative[values, :-1]).sum(axis=1)
                texts = [f"{t}{v}{o}{b}={w}\n" for t, v, w in zip(texts, values, written, strict=True)]
                values = written
            texts = [f"{t}#{v}" for t, v in zip(texts, values, strict=True)]
            result.append([Completion(text, 1, "stop") for text in texts])
        return result


class TestLabelsOfTheIdealPolicy:
    """Labels of N rollouts approach `exact_value` of the ideal policy as N^(-1/2), through the whole labeler.

    Asserted is the root-mean-square error over some hundred prefixes of 300 solutions against the delta method,
    |dV/dp| sqrt(p (1 - p) / N), within 15 %, and the slope of log error on log N, within 0.08 of -1/2. For eta = 10
    the law holds only where some rollouts are right: of p = 0.05 the exact value is 0.70, and 256 rollouts give
    between 4 and 24 right ones, whose logarithm is not yet linear. So eta = 10 is asserted for p > 0.3. For eta = inf
    there is no such law: the label is 1 as soon as one rollout is right, and so wrong with probability (1 - p)^N.
    """

    TASK = ArithmeticTask(
        num_operations=4, misconception_share=0.3, random_error_rate=0.1, num_train=150, num_validation=1, num_test=1
    )
    NUMBERS = (64, 256, 1024)

    @pytest.fixture(scope="class")
    @classmethod
    def labelled(cls):
        rng = np.random.default_rng(0)
        problems = cls.TASK.problems("train")
        rows = [
            {"prompt": p + "\n", "completions": cls.TASK.sample_solution(p, rng), "answer": cls.TASK.solve(p)[-1][1:]}
            for p in problems
            for _ in range(2)
        ]
        results = {}
        for n in cls.NUMBERS:
            config = LabelingConfig(num_rollouts=n, seed=n, verify_how="arithmetic", max_new_tokens=32)
            results[n] = MonteCarloLabeler(IdealEngine(cls.TASK), config).label(Dataset.from_list(rows))
        return results

    def values(self, labelled, n, eta):
        """Labels and exact values of the prefixes that rollouts decide (0 < p < 1), each prefix once."""
        found = {}
        for row in relabel(labelled[n], eta):
            for k, label in enumerate(row["labels"][:-1], start=1):
                found[(row["prompt"], *row["completions"][:k])] = label
        keys = [key for key in found if 0 < self.TASK.exact_value(key[0], key[1:]) < 1]
        p = np.array([self.TASK.exact_value(key[0], key[1:]) for key in keys])
        exact = np.array([self.TASK.exact_value(key[0], key[1:], eta) for key in keys])
        return np.array([found[key] for key in keys]), exact, p

    @pytest.mark.parametrize(
        "eta, above", [(-2.0, 0.0), (0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (10.0, 0.3)]
    )  # fmt: skip
    def test_error_falls_as_one_over_the_root_of_n(self, labelled, eta, above):
        errors = []
        for n in self.NUMBERS:
            labels, exact, p = self.values(labelled, n, eta)
            used = p > above
            labels, exact, p = labels[used], exact[used], p[used]
            assert len(p) > 300
            errors.append(math.sqrt(np.mean((labels - exact) ** 2)))
            slope = np.expm1(eta) / eta / (1 + p * np.expm1(eta)) if eta else np.ones_like(p)
            assert errors[-1] == pytest.approx(math.sqrt(np.mean(slope**2 * p * (1 - p) / n)), rel=0.15)
        assert np.polyfit(np.log(self.NUMBERS), np.log(errors), 1)[0] == pytest.approx(-0.5, abs=0.08)

    def test_hard_labels(self, labelled):
        for n in self.NUMBERS:
            labels, exact, p = self.values(labelled, n, INF)
            assert (exact == 1.0).all() and set(labels) <= {0.0, 1.0}
            expected = np.sum((1 - p) ** n)
            assert np.sum(labels == 0) == pytest.approx(expected, abs=4 * math.sqrt(expected) + 0.5)
        assert (labels == 1.0).all()

    def test_last_steps_are_their_own_outcome(self, labelled):
        for row in labelled[64]:
            assert row["labels"][-1] == self.TASK.exact_value(row["prompt"], row["completions"])
            assert row["labels"][-2] == row["labels"][-1]  # with the last result written, nothing can change
