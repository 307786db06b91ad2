"""`trl_erprm.rollout.arguments`: what goes together, and by which name a policy is known again.

The engines that the recipes load are tested through `recipes/label.py` in `tests/recipes/test_recipes.py`.
"""

import pytest

from trl_erprm.rollout.arguments import EngineArguments, name_of_weights


def test_weights_that_are_not_loaded_are_named_by_their_files(tmp_path):
    path = tmp_path / "policy"
    assert name_of_weights(str(path)) == str(path)
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"a")
    before = name_of_weights(str(path))
    (path / "model.safetensors").write_bytes(b"b")
    assert before.startswith(f"{path} (") and name_of_weights(str(path)) != before
    assert (name_of_weights("org/policy"), name_of_weights("org/policy", "v2")) == ("org/policy", "org/policy@v2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"generation_batch_size": 0}, "`generation_batch_size` must be at least 1, got 0"),
        ({"endpoint_model": "m"}, "`endpoint_model` goes with `engine: endpoint`, got 'm' with 'transformers'. Set"),
        ({"engine": "endpoint", "endpoint_model": "m"}, "`endpoint_url` goes with .*, got None .* Name the servers"),
    ],
)
def test_what_does_not_go_together(given, message):
    with pytest.raises(ValueError, match=message):
        EngineArguments(**given)
