"""The contract, against the engines that need nothing else: transformers, and the endpoint engine on a real server.

vLLM, in process and as a server: test_engine_contract_vllm.py.
"""

import importlib.util

import pytest

from tests.rollout.contract import PREFIXES, WINDOW, EngineContract, make_tokenizer, options, save_policy
from tests.rollout.servers import transformers_server
from trl_erprm.rollout import load_engine
from trl_erprm.rollout.engine import description_of

# `transformers serve` samples, and sets the checkpoint's own defaults aside, only if it is told so.
SAMPLE = {"generation_config": '{"do_sample": true, "top_k": 0, "repetition_penalty": 1.0}'}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("rollout") / "policy")


class TestTransformersEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(policy)
        return load_engine("transformers", model=model, tokenizer=make_tokenizer(), batch_size=5)

    def test_description(self, engine, policy):
        expected = {"engine": "TransformersEngine", "model": policy, "revision": None, "dtype": "float32"}
        assert description_of(engine) == expected


class TestEndpointEngineOnTransformersServe(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def url(cls, policy, tmp_path_factory):
        missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}. Run pip install 'transformers[serving]'")
        with transformers_server(policy, tmp_path_factory.mktemp("serve") / "log.txt") as url:
            yield url

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy, url):
        return load_engine(
            "endpoint",
            base_url=url,
            model=policy,
            tokenizer=make_tokenizer(),
            max_concurrency=1,  # it draws from one stream, which each request's seed sets
            context_window=WINDOW,  # it does not know
            extra_body=SAMPLE,
            timeout=120,
        )

    def test_requests_at_the_same_time(self, policy, url, engine):
        """Greedy, as its samples depend on the order of the requests."""
        given = []
        of_server = {"base_url": url, "model": policy, "tokenizer": make_tokenizer(), "extra_body": SAMPLE}
        at_once = load_engine("endpoint", **of_server, max_concurrency=8, progress=given.append)
        prefixes = PREFIXES * 4
        expected = engine.generate(PREFIXES, 1, options(temperature=0)) * 4
        assert at_once.generate(prefixes, 1, options(temperature=0)) == expected
        assert given == [1] * len(prefixes)

    def test_without_a_tokenizer(self, policy, url, engine):
        bare = load_engine("endpoint", base_url=url, model=policy, extra_body=SAMPLE)
        texts = [prefix for prefix in PREFIXES if isinstance(prefix.prompt, str) and prefix.prompt]
        assert bare.generate(texts, 1, options(temperature=0)) == engine.generate(texts, 1, options(temperature=0))

    def test_a_wrong_name(self, url):
        with pytest.raises(ValueError, match="must accept the request, got status 400: Server is pinned to"):
            load_engine("endpoint", base_url=url, model="other").generate(PREFIXES[:1], 1, options())

    def test_a_server_that_decodes_greedily_is_noticed(self, policy, url, caplog):
        greedy = '{"do_sample": false}'  # what it does with a checkpoint that ships no defaults
        silent = load_engine("endpoint", base_url=url, model=policy, extra_body={"generation_config": greedy})
        silent.generate([PREFIXES[1]], 32, options(3))
        assert "All 32 samples of a prefix are equal, for each of 1 prefixes" in caplog.text
