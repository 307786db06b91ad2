"""`trl_erprm.arithmetic`: the problems, their exact truth, and the tiny models."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from trl_erprm.arithmetic import STEP_TAG, ArithmeticTask, build_model, build_tokenizer, train_policy
from trl_erprm.labeling import LabelingConfig, MonteCarloLabeler, relabel
from trl_erprm.manifest import content_hash
from trl_erprm.rollout import Completion, Prefix, SamplingOptions, load_engine

INF = math.inf
SMALL = {"num_train": 60, "num_validation": 20, "num_test": 20}
# Four misconceptions among nine facts and many errors, so that every path has a visible probability.
ERRING = ArithmeticTask(
    modulus=3, operators="+*", num_operations=4, misconception_share=0.4, random_error_rate=0.2, **SMALL
)


class TestProblems:
    @pytest.mark.parametrize(
        "modulus, problem, solution",
        [
            (5, "3+4*2+1", ["3+4=2", "2*2=4", "4+1=0", "#0"]),  # left to right: (3 + 4) * 2, not 3 + 4 * 2
            (10, "3+4*2+1", ["3+4=7", "7*2=4", "4+1=5", "#5"]),
            (5, "1-3", ["1-3=3", "#3"]),  # -2 modulo 5
            (7, "6*6-1", ["6*6=1", "1-1=0", "#0"]),
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
        assert ArithmeticTask().problems("test")[:2] == KNOWN_PROBLEMS

    def test_dataset(self):
        task = ArithmeticTask(**SMALL)
        rows = task.dataset("test", 3)
        assert rows.column_names == ["prompt", "answer"] and len(rows) == 3
        for row, problem in zip(rows, task.problems("test"), strict=False):
            assert row == {"prompt": problem + "\n", "answer": task.solve(problem)[-1].removeprefix("#")}

    def test_unknown_split(self):
        with pytest.raises(ValueError, match="`split` must be one of 'train', 'validation', 'test', got 'dev'"):
            ArithmeticTask(**SMALL).problems("dev")

    @pytest.mark.parametrize("text", ["", "3+", "a+1", "3/2", "3+4*", "+3", "3 + 4", "12"])
    def test_what_is_no_problem(self, text):
        with pytest.raises(ValueError, match="is not a problem of this task"):
            ArithmeticTask.parse(text)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"modulus": 11}, "`modulus` must be from 3 to 10"),
            ({"modulus": 2}, "`modulus` must be from 3 to 10"),
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


KNOWN_PROBLEMS = ["1*2+3+2*2+3", "0*2*2+3+3+2"]


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

    def test_solutions_are_right(self):
        for problem in self.TASK.problems("train"):
            assert all(self.TASK.check_steps(problem, self.TASK.solve(problem)))
            assert self.TASK.is_well_formed(problem, self.TASK.solve(problem))

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
        for a in range(ERRING.modulus):
            for o, b in ERRING.operations:
                p = ERRING.result_distribution(a, o, b)
                assert p.sum() == pytest.approx(1.0, abs=1e-12) and (p >= 0).all()

    @staticmethod
    def value_by_enumeration(task, problem, steps):
        """Sum over every path of the rest of the chain, one by one."""
        start, chain = task.parse(problem)
        truth = task.solve(problem)[-1][1:]
        value = int(steps[-1][-1]) if steps else start
        total = 0.0
        rest = chain[len(steps) :]
        for path in itertools.product(range(task.modulus), repeat=len(rest)):
            probability, current = 1.0, value
            for (o, b), written in zip(rest, path, strict=True):
                probability *= task.result_distribution(current, o, b)[written]
                current = written
            total += probability * (str(current) == truth)
        return total

    def test_exact_value_against_enumeration(self):
        rng = np.random.default_rng(0)
        values = []
        for problem in ERRING.problems("train")[:20]:
            solution = ERRING.sample_solution(problem, rng)
            for k in range(len(solution) + 1):
                expected = self.value_by_enumeration(ERRING, problem, solution[:k])
                values.append(ERRING.exact_value(problem, solution[:k]))
                assert values[-1] == pytest.approx(expected, abs=1e-12)
        assert len(set(np.round(values, 6))) > 20  # many different values were compared

    def test_exact_value_against_20000_samples(self):
        rng = np.random.default_rng(0)
        for problem in ERRING.problems("test")[:2]:
            truth = ERRING.solve(problem)[-1]
            share = np.mean([ERRING.sample_solution(problem, rng)[-1] == truth for _ in range(20_000)])
            p = ERRING.exact_value(problem)
            assert 0.05 < p < 0.95
            assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 20_000))

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


class TestTokenizer:
    def test_a_step_is_five_tokens(self):
        tokenizer = build_tokenizer()
        assert tokenizer.tokenize("3+4=2\n", add_special_tokens=False) == ["3", "+4=", "2", "\u010a"]
        assert len(tokenizer("3+4*2\n", add_special_tokens=False)["input_ids"]) == 4

    def test_text_comes_back(self):
        tokenizer = build_tokenizer()
        for text in ("3+4*2\n3+4=2\n2*2=4\n#4", "9-9=0\n", f"1+1=2{STEP_TAG}"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text

    def test_the_tag_is_one_token(self):
        assert len(build_tokenizer()(STEP_TAG, add_special_tokens=False)["input_ids"]) == 1

    def test_round_trip_beside_a_model(self, tmp_path):
        """transformers picks the tokenizer class of the model type, whatever was saved: ids have to stay."""
        build_model(hidden_size=32).save_pretrained(tmp_path)
        tokenizer = build_tokenizer()
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        for text in ["3+4*2\n", "3+4=2\n2*2=4\n#4", f"0-9=1{STEP_TAG}", "3 x"]:
            assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
            assert loaded.decode(loaded(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
        names = ("pad_token_id", "eos_token_id", "unk_token_id", "bos_token_id", "padding_side")
        assert [getattr(loaded, n) for n in names] == [getattr(tokenizer, n) for n in names]
        assert len(loaded) == len(tokenizer)


class TestModel:
    def test_seed(self):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = build_model(hidden_size=32)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        second, other = build_model(hidden_size=32), build_model(hidden_size=32, seed=1)
        weights = [m.model.layers[0].mlp.up_proj.weight for m in (first, second, other)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])

    def test_size(self):
        model = build_model()
        assert sum(p.numel() for p in model.parameters()) < 200_000
        assert model.config.vocab_size == len(build_tokenizer())
        wide = build_model(hidden_size=32, num_layers=1, initializer_range=0.5)
        assert (wide.config.hidden_size, len(wide.model.layers)) == (32, 1)
        assert wide.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.5, rel=0.1)


class TestTrainPolicy:
    OPTIONS = {"num_steps": 120, "batch_size": 32, "solutions_per_problem": 2}  # those of the fixture `tiny_policy`

    def test_it_writes_solutions(self, tiny_policy):
        task, path = tiny_policy
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        engine = load_engine("transformers", model=model, tokenizer=tokenizer)
        rows = task.dataset("test", 20)
        groups = engine.generate([Prefix(p) for p in rows["prompt"]], 4, SamplingOptions(max_new_tokens=20, seed=0))
        completions = [(p, c) for p, group in zip(rows["prompt"], groups, strict=True) for c in group]
        well_formed = [task.is_well_formed(p, c.text.splitlines()) for p, c in completions]
        assert np.mean(well_formed) > 0.75
        assert np.mean([c.finish_reason == "stop" for _, c in completions]) > 0.9

    def test_it_is_cached(self, tiny_policy, monkeypatch):
        task, path = tiny_policy

        def train(self):
            raise AssertionError("trained again")

        monkeypatch.setattr(Trainer, "train", train)
        assert str(train_policy(task, path, **self.OPTIONS)) == path
        for other, options in [
            (task, {"num_steps": 121}),
            (task, {"learning_rate": 1e-4}),
            (task, {"batch_size": 16}),
            (task, {"solutions_per_problem": 3}),
            (task, {"seed": 1}),
            (replace(task, random_error_rate=0.1), {}),
        ]:
            with pytest.raises(ValueError, match="holds a policy that was trained with other arguments"):
                train_policy(other, path, **{**self.OPTIONS, **options})

    def test_an_interrupted_training_starts_again(self, tmp_path, monkeypatch):
        task = ArithmeticTask(num_operations=2, **SMALL)

        def train(self):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train", train)
            with pytest.raises(KeyboardInterrupt):
                train_policy(task, tmp_path / "policy", num_steps=1)
        train_policy(task, tmp_path / "policy", num_steps=1)
        record = json.loads((tmp_path / "policy" / "arithmetic_policy.json").read_text())
        assert record["num_steps"] == 1 and record["task"]["num_operations"] == 2
