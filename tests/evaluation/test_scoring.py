"""`trl_erprm.evaluation.scoring`: which candidates are scored, in whose place scores stand, how scorers are called."""

import pytest

from trl_erprm.evaluation.candidates import check_step_scores, make_pool
from trl_erprm.evaluation.scoring import score_candidates, scorer_paths

ROWS = [
    {"prompt": "p", "answer": "2", "candidates": ["a\n#2", "no answer", "skip\n#3", "long\nlong\n#4"]},
    {"prompt": "q", "answer": "2", "candidates": ["", "#2", "b\nc\n#2", "#9"]},
]


class PRM:
    """A score tells its prompt, step and place; four steps and more are too long."""

    def __init__(self):
        self.options = []

    def score(self, prompts, steps, **options):
        self.options.append(options)
        return [
            None if "long" in of_one else [f"{prompt} {step} {k}" for k, step in enumerate(of_one)]
            for prompt, of_one in zip(prompts, steps, strict=True)
        ]


class Constant:
    def score(self, prompts, steps, **options):
        return [[0.5] * len(of_one) for of_one in steps]


def test_scores_stand_where_their_candidate_does():
    prm, pool = PRM(), make_pool(ROWS, "arithmetic")
    found = score_candidates(prm, pool, 7, lambda prompt, steps: steps[0] != "skip", show_progress=True)
    assert found == [
        [["p a 0", "p #2 1"], None, None, None],
        [None, ["q #2 0"], ["q b 0", "q c 1", "q #2 2"], ["q #9 0"]],
    ]
    assert prm.options == [{"batch_size": 7, "none_if_too_long": True, "show_progress": True}]


def test_without_a_check_of_the_form():
    pool = make_pool(ROWS, "arithmetic")
    found = score_candidates(Constant(), pool)
    assert [[s is None for s in problem] for problem in found] == [[False, True, False, False], [True, *[False] * 3]]
    assert check_step_scores(found, pool) == found


def test_a_problem_without_a_prompt():
    pool = make_pool([ROWS[0], {**ROWS[1], "prompt": None}], "arithmetic")
    with pytest.raises(ValueError, match="Problem 1 has no `prompt`, which a reward model has to read. Add a column"):
        score_candidates(PRM(), pool)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("outputs/prm-soft", "prm-soft"),
        ("outputs/prm/", "prm"),
        ("a/step_scores_qwen.jsonl.gz", "qwen"),
        ("a/mine.parquet", "mine"),
        ("run/scores/er/step_scores.jsonl", "er"),
    ],
)
def test_names_of_paths_alone(text, name):
    assert scorer_paths([text, f"other={text}"], "prm_path") == {name: text, "other": text}


def test_a_path_with_an_equals_sign(tmp_path):
    path = tmp_path / "eta=2"
    path.mkdir()
    assert scorer_paths([str(path)], "prm_path") == {"eta=2": str(path)}
    assert scorer_paths([f"er={path}"], "prm_path") == {"er": str(path)}


def test_no_scorers():
    assert scorer_paths(None, "prm_path") == scorer_paths([], "prm_path") == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a/prm", "b/prm"], "got 'prm' for 'b/prm' and for 'a/prm'. Write prm-2=b/prm"),
        (["er=a", "er=b"], "got 'er' for 'b' and for 'a'. Write er-2=b"),
        (["x/y=a"], "without a slash, got 'x/y' for 'a'. Write x-y-2=a"),
    ],
)
def test_names_that_cannot_be(texts, message):
    with pytest.raises(ValueError, match=f"`prm_path` must give each a name of its own.*{message}"):
        scorer_paths(texts, "prm_path")
