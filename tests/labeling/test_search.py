import pytest

from trl_erprm.labeling.search import next_prefixes


def run(label_steps, is_hopeless, is_right=False):
    """The prefixes that are rolled out, in order, if these are the truth."""
    known = [None] * len(is_hopeless)
    order = []
    while found := next_prefixes(label_steps, known, is_right):
        for index in found:
            assert known[index] is None
            known[index] = is_hopeless[index]
            order.append(index)
    return order


def test_all():
    assert run("all", [False, True, True]) == [0, 1, 2]
    assert next_prefixes("all", [None, True, None], False) == [0, 2]
    assert run("all", []) == []


@pytest.mark.parametrize("is_right", [True, False])
def test_until_hopeless(is_right):
    assert run("until_hopeless", [False, False, True, False], is_right) == [0, 1, 2]
    assert run("until_hopeless", [False, False, False], is_right) == [0, 1, 2]
    assert run("until_hopeless", [True, False, False], is_right) == [0]
    # What another solution has found out already is not asked for again.
    assert next_prefixes("until_hopeless", [False, None, True], is_right) == [1]
    assert next_prefixes("until_hopeless", [False, True, None], is_right) == []


def test_first_error_finds_every_error_with_few_rollouts():
    for n in range(17):
        for error in range(n + 1):  # the first hopeless prefix; n: only the answer itself is wrong
            is_hopeless = [index >= error for index in range(n)]
            order = run("first_error", is_hopeless)
            assert len(order) <= n.bit_length()
            visited = set(order)
            assert error == n or error in visited  # the error is labelled, and so is the step before it
            assert error == 0 or n == 0 or error - 1 in visited


def test_first_error_leaves_right_solutions_out():
    assert run("first_error", [False, False, False], is_right=True) == []
    assert run("first_error", [False, False, False], is_right=False) == [1, 2]


def test_error():
    with pytest.raises(
        ValueError, match="`label_steps` must be one of 'all', .*, got 'first'. Did you mean 'first_err"
    ):
        next_prefixes("first", [None], False)
