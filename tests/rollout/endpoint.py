"""What the tests of the endpoint engine ask of it, and what the stub server answers."""

from tests.rollout.servers import text_of
from trl_erprm.rollout import Prefix, SamplingOptions
from trl_erprm.rollout.engine import sample_keys
from trl_erprm.rollout.rendering import request_seed

OPTIONS = SamplingOptions(8)
PREFIXES = [Prefix(f"problem {i}\n", "step\n") for i in range(5)]


def expected(prefixes, num_samples, first_sample=0, seed=0):
    """The stub's answers: each text names its prompt and its seed."""
    return [
        [
            text_of(prefix.prompt + prefix.completion, request_seed(key))
            for key in sample_keys(prefix, seed, num_samples, first_sample)
        ]
        for prefix in prefixes
    ]


def texts(result):
    return [[completion.text for completion in row] for row in result]
