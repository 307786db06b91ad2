"""The contract, against vLLM in process and the endpoint engine on vLLM's server: `make test-vllm`."""

import pytest

from tests.rollout.contract import PREFIXES, WINDOW, EngineContract, make_tokenizer, options, save_policy
from tests.rollout.servers import vllm_server
from trl_erprm.rollout import Prefix, PrefixTooLongError, load_engine
from trl_erprm.rollout.engine import description_of

pytest.importorskip("vllm", reason="vLLM is not installed here: run `make test-vllm`")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("rollout") / "policy")


class TestVLLMEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        with pytest.MonkeyPatch.context() as patch:
            # For a CPU: little memory, no binding to cores, no look-up of this machine's address.
            patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
            patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            patch.setenv("VLLM_HOST_IP", "127.0.0.1")
            engine = load_engine(
                "vllm", model=policy, max_model_len=WINDOW, dtype="float32", enforce_eager=True, max_num_seqs=16
            )
            yield engine
            engine.llm.llm_engine.engine_core.shutdown()

    def test_description(self, engine, policy):
        expected = {"engine": "VLLMEngine", "model": policy, "dtype": "float32", "context_window": WINDOW}
        assert description_of(engine).items() >= expected.items()


class TestEndpointEngineOnVLLM(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def url(cls, policy, tmp_path_factory):
        with vllm_server(policy, tmp_path_factory.mktemp("vllm") / "log.txt", WINDOW) as url:
            yield url

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy, url):
        return load_engine(
            "endpoint", base_url=url, model=policy, tokenizer=make_tokenizer(), context_window=WINDOW, timeout=120
        )

    def test_description(self, policy, url, engine):
        served = description_of(engine)["servers"][url]
        assert served["root"] == policy and served["max_model_len"] == WINDOW

    def test_several_samples_a_request(self, policy, url):
        def samples(*calls):
            engine = load_engine("endpoint", base_url=url, model=policy, samples_per_request=4, timeout=120)
            return [engine.generate([PREFIXES[0]], n, options(), first_sample=first)[0] for first, n in calls]

        [whole] = samples((0, 10))
        first, rest = samples((0, 3), (3, 7))
        assert [c.text for c in first + rest] == [c.text for c in whole]
        assert len({c.text for c in whole}) > 5

    def test_the_window_is_known_to_the_server(self, policy, url):
        engine = load_engine("endpoint", base_url=url, model=policy, timeout=120)
        too_long = Prefix("1" * 200)
        message = "Prefix 1 and `max_new_tokens`=12 must fit into the context window"
        with pytest.raises(PrefixTooLongError, match=message) as caught:
            engine.generate([PREFIXES[0], too_long], 1, options())
        assert caught.value.indices == [1]
        almost = Prefix("1" * (WINDOW - 6))  # vLLM shortens what it may write
        message = "Prefix 0 and `max_new_tokens`=100 must .* cut off after [1-6] tokens"
        with pytest.raises(PrefixTooLongError, match=message):
            engine.generate([almost], 8, options(100))
