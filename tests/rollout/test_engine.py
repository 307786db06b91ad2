import pytest

from trl_erprm.rollout import Completion, Prefix, RolloutEngine, SamplingOptions, load_engine
from trl_erprm.rollout.engine import check_request, sample_keys


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a whole number from 1 up, got 0"),
        ({"max_new_tokens": 1.5}, "`max_new_tokens` must be a whole number from 1 up, got 1.5"),
        ({"temperature": -0.1}, "`temperature` must be a finite number from 0 up, got -0.1. Pass 0 for greedy"),
        ({"temperature": float("nan")}, "`temperature` must be a finite number from 0 up, got nan"),
        ({"temperature": float("inf")}, "`temperature` must be a finite number from 0 up, got inf"),
        ({"top_p": 0.0}, r"`top_p` must lie in \(0, 1\], got 0.0. Pass 1.0 to turn it off"),
        ({"top_p": 1.01}, r"`top_p` must lie in \(0, 1\], got 1.01"),
        ({"top_p": float("nan")}, r"`top_p` must lie in \(0, 1\], got nan"),
        ({"top_k": -1}, "`top_k` must be a whole number from 0 up, got -1. Pass 0 to turn it off"),
        ({"seed": -1}, "`seed` must be a whole number from 0 up, got -1"),
        ({"seed": True}, "`seed` must be a whole number from 0 up, got True"),
        ({"stop": ("",)}, "`stop` must hold non-empty texts, got ''"),
        ({"stop": (1,)}, "`stop` must hold non-empty texts, got 1"),
    ],
)
def test_sampling_options_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**{"max_new_tokens": 8, **changes})


def test_stop_is_a_tuple_of_texts():
    assert SamplingOptions(8, stop=["a", "b"]).stop == ("a", "b")
    with pytest.raises(TypeError, match=r"`stop` must be a tuple of texts, got the str '\\n\\n'. Pass \('\\n\\n',\)"):
        SamplingOptions(8, stop="\n\n")


def test_defaults_sample_from_the_model_as_it_is():
    options = SamplingOptions(max_new_tokens=8)
    assert (options.temperature, options.top_p, options.top_k, options.stop, options.seed) == (1.0, 1.0, 0, (), 0)


def test_prefix_is_checked():
    assert Prefix("a").completion == ""
    assert Prefix([{"role": "user", "content": "a"}], "b") == Prefix([{"role": "user", "content": "a"}], "b")
    with pytest.raises(TypeError, match="`prompt` must be a str or a list of messages, got int"):
        Prefix(1)
    with pytest.raises(TypeError, match="messages with `role` and `content`, got the item 'a'"):
        Prefix(["a"])
    with pytest.raises(ValueError, match="`prompt` must hold at least one message, got an empty list"):
        Prefix([])
    with pytest.raises(TypeError, match="`completion` must be a str, got list. Join the steps"):
        Prefix("a", ["b"])


def test_requests_are_checked():
    check_request([], 1, 0)
    with pytest.raises(ValueError, match="`num_samples` must be a whole number from 1 up, got 0"):
        check_request([Prefix("a")], 0, 0)
    with pytest.raises(ValueError, match="`first_sample` must be a whole number from 0 up, got -1"):
        check_request([Prefix("a")], 1, -1)
    with pytest.raises(TypeError, match="`prefixes` must be a list of Prefix, got one str"):
        check_request("a", 1, 0)
    with pytest.raises(TypeError, match="got a str at index 1. Pass Prefix"):
        check_request([Prefix("a"), "b"], 1, 0)


def test_sample_keys_depend_on_seed_prefix_and_number_only():
    prefix = Prefix("a", "b")
    keys = sample_keys(prefix, seed=0, num_samples=6)
    assert len(set(keys)) == 6 and all(0 <= key < 2**64 for key in keys)
    assert sample_keys(Prefix("a", "b"), 0, 2, first_sample=4) == keys[4:]
    others = [Prefix("a"), Prefix("ab"), Prefix("", "ab"), Prefix([{"role": "user", "content": "a"}], "b")]
    for other in others:
        assert set(keys).isdisjoint(sample_keys(other, 0, 6))
    assert set(keys).isdisjoint(sample_keys(prefix, 1, 6))
    # Rollouts that are stored were drawn with these: they must not change between versions.
    assert keys[0] == 3370860584308802869


def test_load_engine_names_what_there_is():
    known = "`name` must be one of 'transformers', 'vllm', 'endpoint', got"
    with pytest.raises(ValueError, match=f"{known} 'sglang'. Choose one of them"):
        load_engine("sglang")
    with pytest.raises(ValueError, match=f"{known} 'Transformers'. Did you mean 'transformers'"):
        load_engine("Transformers")


def test_the_protocol_is_recognized():
    class Engine:
        def generate(self, prefixes, num_samples, options, first_sample=0):
            return [[Completion("", 0, "stop")]]

    assert isinstance(Engine(), RolloutEngine)
    assert not isinstance(object(), RolloutEngine)
