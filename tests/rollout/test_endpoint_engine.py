"""The endpoint engine: what it sends and reads. What it promises as an engine is in test_engine_contract.py."""

import asyncio
import random
import sys
from collections import Counter

import pytest
from tokenizers import processors

from tests.rollout.contract import USER, make_tokenizer
from tests.rollout.endpoint import OPTIONS, PREFIXES, expected, texts
from tests.rollout.servers import StubServer
from trl_erprm.rollout import Completion, Prefix, SamplingOptions, load_engine
from trl_erprm.rollout.endpoint_engine import EndpointEngine
from trl_erprm.rollout.engine import sample_keys
from trl_erprm.rollout.rendering import request_seed

pytestmark = pytest.mark.usefixtures("no_proxy")


class TestRequests:
    def test_one_request_a_sample_each_with_its_seed(self, engine_for):
        with StubServer() as stub:
            result = engine_for(stub).generate(PREFIXES, 3, OPTIONS)
        assert texts(result) == expected(PREFIXES, 3)
        assert result[0][0].num_tokens == 4 and result[0][0].finish_reason == "stop"
        assert len(stub.bodies) == 15
        asked = Counter((body["prompt"], body["seed"]) for body in stub.bodies)
        assert set(asked.values()) == {1}  # nothing is asked for twice
        assert all(0 <= body["seed"] < 2**31 for body in stub.bodies)

    def test_the_body(self, engine_for):
        """What is sent says that the server's own sampling defaults are off."""
        neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        with StubServer() as stub:
            engine = engine_for(stub)
            engine.generate([Prefix("a", "b\n")], 1, OPTIONS)
            options = SamplingOptions(9, temperature=0.5, top_p=0.9, top_k=7, stop=("x", "y"), seed=3)
            engine.generate([Prefix("a", "b\n")], 1, options)
        plain, full = stub.bodies
        seed = request_seed(sample_keys(Prefix("a", "b\n"), 0, 1)[0])
        sent = {"model": "policy", "prompt": "ab\n", "max_tokens": 8, "temperature": 1.0, "top_p": 1.0, "seed": seed}
        assert plain == sent | neutral
        seed = request_seed(sample_keys(Prefix("a", "b\n"), 3, 1)[0])
        assert full == plain | {
            "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop": ["x", "y"], "seed": seed
        }  # fmt: skip

    def test_extra_body_goes_over_it(self, engine_for):
        with StubServer() as stub:
            engine_for(stub, extra_body={"min_p": 0.1, "priority": 2}).generate(PREFIXES[:1], 1, OPTIONS)
        assert stub.bodies[0]["min_p"] == 0.1 and stub.bodies[0]["priority"] == 2

    def test_greedy_is_one_request_a_prefix(self, engine_for):
        given = []
        with StubServer() as stub:
            engine = engine_for(stub, progress=given.append, samples_per_request=4)
            result = engine.generate(PREFIXES, 4, SamplingOptions(8, temperature=0))
        assert not any("n" in body for body in stub.bodies)
        assert len(stub.bodies) == 5 and [len(row) for row in result] == [4] * 5
        assert all(len(set(row)) == 1 for row in result)
        assert given == [4] * 5

    def test_tokens_are_sent_where_there_is_a_tokenizer(self, engine_for):
        prefixes = [Prefix("1+1=", "2\n"), Prefix([USER], "2\n")]
        tokenizer = make_tokenizer()
        with StubServer() as stub:
            engine_for(stub, tokenizer=tokenizer, max_concurrency=1).generate(prefixes, 1, OPTIONS)
        assert stub.bodies[0]["prompt"] == tokenizer("1+1=2\n")["input_ids"]
        chat = "<bos><user>1+1<end><assistant>2\n"
        assert stub.bodies[1]["prompt"] == tokenizer(chat, add_special_tokens=False)["input_ids"]

    def test_an_end_token_that_the_tokenizer_appends_is_taken_away(self, engine_for):
        closing = make_tokenizer()
        closing._tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", 2)]
        )
        with StubServer() as stub:
            engine_for(stub, tokenizer=closing).generate([Prefix("1+1=")], 1, OPTIONS)
        assert closing.convert_ids_to_tokens(stub.bodies[0]["prompt"]) == list("1+1=")

    def test_messages_need_a_tokenizer(self, engine_for):
        with pytest.raises(
            ValueError, match="Prefix 1 holds messages, and the engine has no tokenizer to render them"
        ):
            engine_for("http://127.0.0.1:1/v1").generate([Prefix("1"), Prefix([USER])], 1, OPTIONS)
        with pytest.raises(ValueError, match="Prefix 0 has no tokens"):
            engine_for("http://127.0.0.1:1/v1").generate([Prefix("")], 1, OPTIONS)

    def test_api_key(self, engine_for, monkeypatch):
        monkeypatch.delenv("TRL_ERPRM_API_KEY", raising=False)
        with StubServer() as stub:
            engine_for(stub).generate(PREFIXES[:1], 1, OPTIONS)
            engine_for(stub, api_key="mine").generate(PREFIXES[:1], 1, OPTIONS)
            monkeypatch.setenv("TRL_ERPRM_API_KEY", "of the environment")
            engine_for(stub).generate(PREFIXES[:1], 1, OPTIONS)
        assert [headers.get("Authorization") for headers in stub.headers] == [
            None, "Bearer mine", "Bearer of the environment"
        ]  # fmt: skip

    def test_inside_a_running_loop(self, engine_for):
        async def notebook():
            return engine_for(stub).generate(PREFIXES, 2, OPTIONS)

        with StubServer() as stub:
            assert texts(asyncio.run(notebook())) == expected(PREFIXES, 2)

    def test_progress_counts_every_completion(self, engine_for):
        given = []
        with StubServer() as stub:
            engine_for(stub, progress=given.append).generate(PREFIXES, 4, OPTIONS)
        assert sum(given) == 20

    def test_the_global_random_state_is_neither_read_nor_changed(self, engine_for, waits):
        def first_fails(number, body):
            return (500, "busy") if number % 3 == 0 else None

        random.seed(1)
        state = random.getstate()
        with StubServer(first_fails) as stub:
            engine_for(stub, max_concurrency=1).generate(PREFIXES, 1, OPTIONS)
        assert random.getstate() == state and waits


class TestConcurrency:
    @pytest.mark.parametrize("bound", [1, 3, 8])
    def test_it_is_reached_and_never_exceeded(self, engine_for, bound):
        with StubServer(num_together=bound) as stub:
            result = engine_for(stub, max_concurrency=bound).generate(PREFIXES, 6, OPTIONS)
        assert texts(result) == expected(PREFIXES, 6)
        assert stub.most_in_flight == bound and len(stub.bodies) == 30

    def test_it_is_a_bound_for_each_server(self, engine_for):
        with StubServer(num_together=2) as a, StubServer(num_together=2) as b:
            result = engine_for(a, b, max_concurrency=2).generate(PREFIXES, 6, OPTIONS)
        assert texts(result) == expected(PREFIXES, 6)
        assert a.most_in_flight == b.most_in_flight == 2

    def test_retries_are_under_it_too(self, engine_for):
        with StubServer(lambda number, body: (503, "busy") if number < 10 else None, num_together=2) as stub:
            result = engine_for(stub, max_concurrency=2, max_retries=20).generate(PREFIXES, 4, OPTIONS)
        assert texts(result) == expected(PREFIXES, 4)
        assert stub.most_in_flight == 2 and len(stub.bodies) == 30


class TestAnswers:
    def test_a_stop_text_that_the_server_leaves_in_place(self, engine_for):
        answer = {"choices": [{"index": 0, "text": " ab\n\ncd", "finish_reason": "length"}]}
        with StubServer(lambda number, body: answer) as stub:
            [[completion]] = engine_for(stub).generate([Prefix("a")], 1, SamplingOptions(4, stop=("cd", "\n\n")))
        assert completion == Completion(" ab", 4, "stop")
        assert completion.stop_text == "\n\n"

    @pytest.mark.parametrize("name", ["stop_reason", "matched_stop", "stopping_word"])
    def test_a_stop_text_that_the_server_reports(self, engine_for, name):
        answers = [("\n", "\n"), (None, None), (7, None), ("", None)]  # a token's number, or nothing: the policy's end
        for reported, stop_text in answers:
            answer = {"choices": [{"index": 0, "text": "ab", "finish_reason": "stop", name: reported}]}
            with StubServer(lambda number, body, answer=answer: answer) as stub:
                [[completion]] = engine_for(stub).generate([Prefix("a")], 1, SamplingOptions(4, stop=("\n",)))
            assert completion.text == "ab" and completion.stop_text == stop_text

    def test_choices_out_of_order(self, engine_for):
        choices = [{"index": j, "text": f"{j}", "finish_reason": "eos_token"} for j in (2, 0, 1)]
        with StubServer(lambda number, body: {"choices": choices}) as stub:
            [row] = engine_for(stub, samples_per_request=3).generate([Prefix("a")], 3, OPTIONS)
        assert [completion.text for completion in row] == ["0", "1", "2"]

    @pytest.mark.parametrize("usage", [None, {}])
    def test_without_usage(self, engine_for, caplog, usage):
        answer = {"choices": [{"index": 0, "text": "123", "finish_reason": "stop"}], "usage": usage}
        with StubServer(lambda number, body: answer) as stub:
            [[counted]] = engine_for(stub, tokenizer=make_tokenizer()).generate([Prefix("a")], 1, OPTIONS)
            assert counted.num_tokens == 4 and not caplog.records  # the end token, too
            [[unknown]] = engine_for(stub).generate([Prefix("a")], 1, OPTIONS)
        assert unknown.num_tokens == 0 and "does not report usage" in caplog.text

    def test_equal_samples_are_noticed(self, engine_for, caplog):
        answer = {"choices": [{"index": 0, "text": "same", "finish_reason": "stop"}]}
        with StubServer(lambda number, body: answer) as stub:
            engine = engine_for(stub)
            engine.generate(PREFIXES, 6, OPTIONS)  # 30: too few to tell
            engine.generate([Prefix(str(i)) for i in range(40)], 1, OPTIONS)
            engine.generate(PREFIXES, 8, SamplingOptions(8, temperature=0))
            assert not caplog.records
            engine.generate(PREFIXES, 8, OPTIONS)
            engine.generate(PREFIXES, 8, OPTIONS)
        [record] = caplog.records
        assert "All 8 samples of a prefix are equal, for each of 5 prefixes" in record.getMessage()


class TestConstruction:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"base_url": "node1:8000"}, "`base_url` must be one or more addresses such as .*, got 'node1:8000'"),
            ({"base_url": []}, r"`base_url` must be one or more addresses such as .*, got \[\]"),
            ({"base_url": ["http://a/v1", 3]}, "`base_url` must be one or more addresses such as .*, got 3"),
            ({"model": ""}, "`model` must be the name .*, got ''. GET http://a/v1/models lists the names"),
            ({"model": None}, "`model` must be the name .*, got None"),
            ({"max_concurrency": 0}, "`max_concurrency` must be a whole number from 1 up, got 0. Pass 1"),
            ({"samples_per_request": 1.5}, "`samples_per_request` must be a whole number from 1 up, got 1.5"),
            ({"max_retries": -1}, "`max_retries` must be a whole number from 0 up, got -1. Pass 0"),
            ({"timeout": 0}, "`timeout` must be a number of seconds above 0, got 0"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            load_engine("endpoint", **{"base_url": "http://a/v1", "model": "policy", **arguments})

    def test_a_slash_at_the_end_of_an_address(self, engine_for):
        with StubServer() as stub:
            engine_for(stub.url + "/").generate(PREFIXES[:1], 1, OPTIONS)
        assert len(stub.bodies) == 1

    def test_without_httpx(self, monkeypatch):
        monkeypatch.setattr("trl_erprm.rollout.endpoint_engine.httpx", None)
        with pytest.raises(
            ImportError, match=r"needs httpx, which is not installed. Run `pip install 'trl-erprm\[endp"
        ):
            EndpointEngine("http://a/v1", "policy")

    def test_vllm_that_is_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "vllm", None)
        with pytest.raises(
            ImportError, match=r"needs vLLM, which cannot be imported .* Run `pip install 'trl-erprm\[vll"
        ):
            load_engine("vllm", model="path")


def test_seeds_fit_every_server():
    assert request_seed(2**64 - 1) == 2**31 - 1 and request_seed(0) == 0
    keys = sample_keys(Prefix("a"), 0, 1000)
    assert len({request_seed(key) for key in keys}) == 1000
