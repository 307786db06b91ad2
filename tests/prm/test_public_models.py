"""`trl_erprm.prm.public_models`: published models by their id, and copies of them on a disk."""

import json
import logging

import pytest

from trl_erprm.prm.formats import FORMATS, QWEN_MATH_PRM, format_of_checkpoint
from trl_erprm.prm.public_models import PUBLIC_MODELS, public_model_of

QWEN = "Qwen/Qwen2.5-Math-PRM-7B"


def make_directory(path, name_or_path=None):
    path.mkdir(parents=True)
    if name_or_path is not None:
        (path / "config.json").write_text(json.dumps({"model_type": "qwen2", "_name_or_path": name_or_path}))
    return path


@pytest.mark.parametrize("model_id", list(PUBLIC_MODELS))
def test_each_by_its_id_and_by_its_directory(model_id, tmp_path):
    assert public_model_of(model_id) == public_model_of(model_id.upper()) == model_id
    copy = make_directory(tmp_path / "models" / model_id.rpartition("/")[2])
    assert public_model_of(copy) == model_id
    assert format_of_checkpoint(copy, None) is FORMATS[PUBLIC_MODELS[model_id]]


@pytest.mark.parametrize(
    "place",
    [
        "models/Qwen2.5-Math-PRM-7B",
        "models/qwen2.5-math-prm-7b",
        "Qwen/Qwen2.5-Math-PRM-7B",
        "hub/models--Qwen--Qwen2.5-Math-PRM-7B/snapshots/0610740060112df12585d00a1c5f4624d2f59051",
    ],
)
def test_places(place, tmp_path):
    copy = make_directory(tmp_path / place)
    assert public_model_of(str(copy)) == public_model_of(f"{copy}/") == QWEN


def test_the_directory_that_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(make_directory(tmp_path / "Qwen2.5-Math-PRM-7B"))
    assert public_model_of(".") == QWEN


def test_a_link_into_the_cache(tmp_path):
    snapshot = make_directory(tmp_path / "models--Qwen--Qwen2.5-Math-PRM-7B" / "snapshots" / "0610")
    (tmp_path / "prm").symlink_to(snapshot, target_is_directory=True)
    assert public_model_of(tmp_path / "prm") == QWEN


def test_by_the_config(tmp_path):
    assert public_model_of(make_directory(tmp_path / "prm", QWEN.lower())) == QWEN
    assert public_model_of(make_directory(tmp_path / "policy", "Qwen/Qwen2.5-Math-7B")) is None
    for number, content in enumerate(("{", "[]", '{"_name_or_path": 3}')):
        directory = make_directory(tmp_path / str(number))
        (directory / "config.json").write_text(content)
        assert public_model_of(directory) is None


@pytest.mark.parametrize("place", ["models/Qwen2.5-Math-PRM-7B-mine", "Qwen2.5-Math-PRM-7B/checkpoint-4", "qwen"])
def test_others_are_none(place, tmp_path):
    assert public_model_of(make_directory(tmp_path / place)) is None
    assert public_model_of(f"org/{place.rpartition('/')[2]}") is None
    assert public_model_of("Qwen2.5-Math-PRM-7B") is None  # no directory, and no id


def test_what_was_recognized_is_logged_once(tmp_path, caplog):
    copy = make_directory(tmp_path / "Qwen2.5-Math-PRM-7B")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert format_of_checkpoint(copy, None) is QWEN_MATH_PRM
        public_model_of(QWEN)  # an id needs no guess
    [record] = caplog.records
    assert str(copy) in record.message and f"taken for a copy of {QWEN}" in record.message
    assert "the format 'qwen2.5-math-prm'" in record.message


def test_what_a_checkpoint_says_outweighs_its_name(tmp_path):
    own = FORMATS["trl"]
    copy = make_directory(tmp_path / "Qwen2.5-Math-PRM-7B")
    own.save(copy)
    assert format_of_checkpoint(copy, json.loads((copy / "prm_format.json").read_text())) == own
