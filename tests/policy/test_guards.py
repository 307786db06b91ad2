"""`trl_erprm.policy.guards`: each hack that pays without its guard, and does not with it."""

import pytest

from trl_erprm import ProcessReward
from trl_erprm.policy.guards import (
    StepGuards,
    are_fillers,
    are_repeats,
    characters_per_step,
    is_empty_step,
    normalized_step,
    share_of_empty_steps,
    share_of_repeated_steps,
    share_of_white_space,
)
from trl_erprm.steps import split_steps


class WordPRM:
    """
    Scores as models were seen to: what claims little scores high, a wrong fact low, and one wrong fact among much else
    in a step not so low.
    """

    def score(self, prompts, steps, batch_size, none_if_too_long):
        return [[self.score_of(step) for step in solution] for solution in steps]

    @staticmethod
    def score_of(step):
        num_wrong = sum(fact in step for fact in ("2+2=5", "5+1=7"))
        num_facts = max(step.count("="), 1)
        return round(0.9 - 0.8 * num_wrong / num_facts, 10)


# One step of four is wrong: 0.9, 0.1, 0.9, 0.9.
SOLUTION = ["1+1=2", "2+2=5", "5+0=5", "#5"]


def score(steps, aggregation="mean", **options):
    reward = ProcessReward(WordPRM(), aggregation, answer_how="arithmetic", reward_if_malformed=0.0, **options)
    [value] = reward(["1+1+2+0"], ["\n".join(steps)])
    return value


def test_the_honest_scores():
    assert score(SOLUTION) == pytest.approx(0.7)
    assert score(SOLUTION, "min") == pytest.approx(0.1)


# What a policy can do to the solution above, the aggregation under which it pays, and the guard that stops it.
HACKS = {
    "filler": (["1+1=2", "2+2=5", "5+0=5", *["..."] * 6, "#5"], "mean", {"credit_fillers": False}),
    "many_fillers": (["1+1=2", "2+2=5", "5+0=5", *["..."] * 6, "#5"], "mean", {"max_share_of_fillers": 0.25}),
    "repeats": (["1+1=2"] * 5 + SOLUTION[1:], "mean", {"credit_fillers": False}),
    "renumbered_repeats": (
        [*(f"Step {k}: 1 + 1 = 2." for k in range(1, 6)), *SOLUTION[1:]],
        "mean",
        {"credit_fillers": False},
    ),
    "many_repeats": (["1+1=2"] * 5 + SOLUTION[1:], "mean", {"max_share_of_fillers": 0.25}),
    "words_that_claim_nothing": (
        ["1+1=2", "2+2=5", *(f"well {word}" for word in ("now", "then", "so", "yes", "ok")), "5+0=5", "#5"],
        "mean",
        {"max_steps": 6},
    ),
    "splitting": (["1", "+", "1", "=2", "2+2=5", "5+", "0", "=5", "#5"], "mean", {"min_characters_per_step": 3}),
    "merging": (["1+1=2 2+2=5 5+0=5", "#5"], "min", {"max_step_characters": 12}),
    "merging_into_few": (["1+1=2 2+2=5 5+0=5", "#5"], "min", {"min_steps": 3}),
    "merging_under_product": (["1+1=2 2+2=5 5+0=5", "#5"], "product", {"min_steps": 3}),
    "skipping": (["1+1=2", "#5"], "min", {"min_steps": 3}),
    "skipping_under_product": (["#5"], "product", {"min_steps": 2}),
    "a_step_that_never_ends": (
        ["1+1=2 2+2=5 " + "5+0=5 " * 20, "#5"],
        "mean",
        {"max_step_characters": 12},
    ),
}


@pytest.mark.parametrize("name", HACKS)
def test_the_hack_pays_and_the_guard_stops_it(name):
    hacked, aggregation, guard = HACKS[name]
    honest = score(SOLUTION, aggregation)
    assert score(hacked, aggregation) > honest + 0.02
    assert score(SOLUTION, aggregation, guards=guard) == honest  # the guard leaves the honest solution alone
    assert score(hacked, aggregation, guards=guard) <= honest + 1e-9


def test_ending_without_an_answer():
    """The step that commits itself is the risky one: here it is the wrong one, and leaving it out pays."""
    honest = ["1+1=2", "#2 2+2=5\n#5"]
    dropped = ["1+1=2", "so far so good"]
    assert score(dropped, "min", require_answer=False) > score(honest, "min", require_answer=False)
    assert score(dropped, "min") == 0.0


def test_blank_lines_change_nothing():
    """A scorer that cuts at each line end would score every blank line; here they are no steps."""
    prm, text = WordPRM(), "1+1=2\n\n\n\n2+2=5\n \n\n5+0=5\n\n#5"
    naive = [prm.score_of(line) for line in text.split("\n")]
    assert sum(naive) / len(naive) > score(SOLUTION) + 0.05
    for aggregation in ("mean", "min", "product", "last", "max"):
        [value] = ProcessReward(prm, aggregation, answer_how="arithmetic")(["p"], [text])
        assert value == score(SOLUTION, aggregation)
    blank, honest = share_of_white_space(split_steps(text)), share_of_white_space(split_steps("\n".join(SOLUTION)))
    assert blank > 1.5 * honest > 0


@pytest.mark.parametrize("aggregation", ["min", "product"])
@pytest.mark.parametrize("name", ["filler", "repeats", "words_that_claim_nothing", "splitting"])
def test_no_added_step_pays_under_min_and_product(name, aggregation):
    assert score(HACKS[name][0], aggregation) <= score(SOLUTION, aggregation)


class TestCredit:
    def test_no_filler_raises_the_score_under_any_aggregation(self):
        steps = ["a1", "...", "b2", "a1", "---"]
        guards = StepGuards(credit_fillers=False)
        for how in ("min", "product", "mean", "last", "max", "softmin(0.1)"):
            without = StepGuards().aggregate(["a1", "b2"], [0.5, 0.4], how)
            assert guards.aggregate(steps, [0.5, 0.99, 0.4, 0.99, 0.99], how) <= without + 1e-12, how
            assert StepGuards().aggregate(steps, [0.5, 0.99, 0.4, 0.99, 0.99], how) >= without * 0.97, how

    def test_a_filler_that_scores_low_still_counts(self):
        """Else a repeat would be a way to hide a step from `min`."""
        guards = StepGuards(credit_fillers=False)
        assert guards.aggregate(["a1", "a1"], [0.9, 0.1], "min") == 0.1
        assert guards.aggregate(["a1", "a1"], [0.9, 0.1], "mean") == 0.5

    def test_nothing_but_fillers(self):
        assert StepGuards(credit_fillers=False).violation(["...", "---"]) == "fillers"
        assert StepGuards().violation(["...", "---"]) is None


class TestTexts:
    @pytest.mark.parametrize("step", ["...", "—", "$$", "\\[", "```", "Step 12:", "**Step 2:**", "- ", "==="])
    def test_empty(self, step):
        assert is_empty_step(step)

    @pytest.mark.parametrize("step", ["3.", "#3", "so", "数", "½", "Step 2: x", "\\[x\\]", "12)"])
    def test_not_empty(self, step):
        assert not is_empty_step(step)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("2+1=3", "2 + 1 = 3."),
            ("Step 1: so 3", "Step 9: So 3!"),
            ("1. x", "2) x"),
            ("**Step 3:** x", "x"),
            ("Straße", "STRASSE"),
        ],
    )
    def test_the_same(self, one, other):
        assert normalized_step(one) == normalized_step(other)

    @pytest.mark.parametrize(
        ("one", "other"), [("2+1=3", "2-1=3"), ("-3", "3"), ("x<y", "x>y"), ("3.5", "35"), ("3²", "32"), ("1", "2")]
    )
    def test_not_the_same(self, one, other):
        assert normalized_step(one) != normalized_step(other)

    def test_shares(self):
        steps = ["2+0=2", "...", "2+0=2", "2+0=2", "#2"]
        assert are_repeats(steps) == [False, False, True, True, False]
        assert are_fillers(steps) == [False, True, True, True, False]
        assert (share_of_empty_steps(steps), share_of_repeated_steps(steps)) == (0.2, 0.4)
        assert characters_per_step(["a b", "c"]) == 1.5

    def test_of_no_steps(self):
        assert are_fillers([]) == []
        for function in (share_of_empty_steps, share_of_repeated_steps, share_of_white_space, characters_per_step):
            assert function([]) == 0.0


class TestStepGuards:
    @pytest.mark.parametrize(
        ("guard", "bound", "passes", "breaks", "reason"),
        [
            ("min_steps", 2, ["a", "b"], ["a"], "few_steps"),
            ("max_steps", 2, ["a", "b"], ["a", "b", "c"], "many_steps"),
            ("min_characters_per_step", 2, ["a b c", "d"], ["a b c", "d", "e"], "short_steps"),
            ("max_step_characters", 3, ["abc", "d"], ["abcd"], "long_step"),
            ("max_share_of_fillers", 0.5, ["a", "a"], ["a", "a", "..."], "fillers"),
        ],
    )
    def test_bounds(self, guard, bound, passes, breaks, reason):
        guards = StepGuards(**{guard: bound})
        assert guards.violation(passes) is None
        assert guards.violation(breaks) == reason
        assert (guards.reasons, guards.settings) == ([reason], {guard: bound})
        assert StepGuards().violation(breaks) is None

    def test_nothing_is_guarded_by_default(self):
        assert (StepGuards().reasons, StepGuards().settings) == ([], {})
        assert StepGuards(credit_fillers=False).reasons == ["fillers"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_steps": 0}, "`max_steps` must be at least 1, or None for no bound, got 0"),
            ({"min_characters_per_step": float("nan")}, "`min_characters_per_step` must be at least 1"),
            ({"max_share_of_fillers": 1.0}, "`max_share_of_fillers` must be at least 0 and below 1"),
            ({"min_steps": 5, "max_steps": 4}, "`min_steps` must not be above `max_steps`, got 5 and 4"),
            (
                {"min_characters_per_step": 9, "max_step_characters": 8},
                "`min_characters_per_step` must not be above `max_step_characters`",
            ),
        ],
    )
    def test_bad_bounds(self, options, message):
        with pytest.raises(ValueError, match=message):
            StepGuards(**options)
