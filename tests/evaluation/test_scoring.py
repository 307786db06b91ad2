"""`trl_erprm.evaluation.scoring`: which candidates are scored, in whose place scores stand, how scorers are called."""

from types import SimpleNamespace

import pytest

from trl_erprm.evaluation.candidates import check_step_scores, make_pool
from trl_erprm.evaluation.scoring import score_candidates, score_recorded, scorer_paths
from trl_erprm.rollout.recorded import SharedRecords

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


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_what_is_recorded_is_what_one_call_gives(tmp_path, chunk):
    """In chunks, and equal candidates once."""
    prm, pool = PRM(), make_pool([ROWS[0], ROWS[1], ROWS[1] | {"answer": "9"}], "arithmetic")
    records = SharedRecords(tmp_path, SimpleNamespace(process_index=0, num_processes=1, is_main_process=True))
    how = {"batch_size": 7, "is_well_formed": lambda prompt, steps: steps[0] != "skip"}
    found = score_recorded(prm, pool, records, **how, solutions_per_chunk=chunk)
    assert found == score_candidates(PRM(), pool, **how) and found[0][3] is None and found[2] == found[1]
    assert prm.options == [{"batch_size": 7, "none_if_too_long": True, "show_progress": False}] * -(-5 // chunk)
    assert len(list(records.read("scored"))) == 5
    assert score_recorded(prm, pool, records, **how) == found and len(prm.options) == -(-5 // chunk)


def test_a_problem_without_a_prompt(tmp_path):
    pool = make_pool([ROWS[0], {**ROWS[1], "prompt": None}], "arithmetic")
    for score in (score_candidates, lambda *given: score_recorded(*given, SharedRecords(tmp_path, None))):
        with pytest.raises(ValueError, match="Problem 1 has no `prompt`, which a reward model has to read. Add a col"):
            score(PRM(), pool)


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
