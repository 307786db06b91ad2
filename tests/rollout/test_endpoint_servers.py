"""The endpoint engine: what it asks of its servers, several samples a request, several servers."""

import asyncio
import contextlib

import pytest

from tests.rollout.contract import make_tokenizer
from tests.rollout.endpoint import OPTIONS, PREFIXES, expected, texts
from tests.rollout.servers import StubServer, free_port, stub_answer, text_of
from trl_erprm.rollout import Completion, Prefix, PrefixTooLongError
from trl_erprm.rollout.engine import description_of, sample_keys
from trl_erprm.rollout.rendering import request_seed

pytestmark = pytest.mark.usefixtures("no_proxy")


class TestContextWindow:
    @pytest.mark.parametrize(
        "message",
        [
            "This model's maximum context length is 128 tokens. However, your prompt contains 150 input tokens",
            "max_tokens=200 cannot be greater than max_model_len=128.",
            "The input (150 tokens) is longer than the model's context length (128 tokens).",
            "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 12 `max_new_tokens`",
            "request (150 tokens) exceeds the available context size (128 tokens), try increasing it",
        ],
    )  # of vLLM (two), SGLang, TGI and llama.cpp
    def test_a_refusal_names_the_prefix(self, engine_for, message):
        def refuse_third(number, body):
            return (400, {"error": {"message": message}}) if len(body["prompt"]) > 30 else None

        prefixes = [*PREFIXES[:2], Prefix("1" * 31)]
        with StubServer(refuse_third) as stub:
            expected = "Prefix 2 and `max_new_tokens`=8 must fit .* got status 400 from"
            with pytest.raises(PrefixTooLongError, match=expected) as caught:
                engine_for(stub, max_concurrency=1).generate(prefixes, 1, OPTIONS)
            assert caught.value.indices == [2]
            with pytest.raises(ValueError, match=r"Prefix 0 \(32 tokens\) and `max_new_tokens`=8 must fit"):
                engine_for(stub, tokenizer=make_tokenizer()).generate([Prefix("1" * 31)], 1, OPTIONS)
        assert len(stub.bodies) == 4  # nothing is tried again

    def test_an_answer_that_is_shorter_than_its_limit(self, engine_for):
        def length(used):
            choice = {"index": 0, "text": "abc", "finish_reason": "length"}
            return {"choices": [choice], "usage": {"completion_tokens": used}}

        for used in (8, 7):  # 7: a server that does not count the last token
            with StubServer(lambda number, body, used=used: length(used)) as stub:
                [[completion]] = engine_for(stub).generate(PREFIXES[:1], 1, OPTIONS)
            assert completion == Completion("abc", used, "length")
        with StubServer(lambda number, body: length(6)) as stub:
            message = "Prefix 0 and .*, got an answer that was cut off after 6 tokens"
            with pytest.raises(PrefixTooLongError, match=message):
                engine_for(stub).generate(PREFIXES[:1], 1, OPTIONS)

    def test_it_is_checked_before_anything_is_sent(self, engine_for):
        with StubServer() as stub:
            engine = engine_for(stub, tokenizer=make_tokenizer(), context_window=20)
            engine.generate([Prefix("1" * 11)], 1, OPTIONS)  # and the begin-of-sequence token
            with pytest.raises(
                ValueError, match="Prefix 1 has 13 tokens, and at most 12 fit: the context window of 20"
            ):
                engine.generate([Prefix("1"), Prefix("1" * 12)], 1, OPTIONS)
        assert len(stub.bodies) == 1


def test_what_the_servers_say_of_the_model_is_described(engine_for):
    """Of vLLM's answer: what lasts. One server has no list, and one is not there."""
    listed = [
        {"id": "other", "root": "/other"},
        {
            "id": "policy",
            "root": "/models/policy-7b",
            "max_model_len": 4096,
            "created": 1,
            "permission": [{"id": "x"}],
        },
    ]
    with StubServer(models=listed) as one, StubServer() as two:
        away = f"http://127.0.0.1:{free_port()}/v1"
        found = description_of(engine_for(one, two, away))
        assert not one.bodies and not two.bodies
    assert found["engine"] == "EndpointEngine" and found["model"] == "policy"
    assert found["servers"][one.url] == {"id": "policy", "root": "/models/policy-7b", "max_model_len": 4096}
    assert found["servers"][two.url].startswith("HTTPStatusError: ") and "404" in found["servers"][two.url]
    assert found["servers"][away].startswith("ConnectError: ")


class TestSeveralSamplesARequest:
    def blocks(self, prefix, numbers, size):
        """Sample i is choice i mod `size` of a request with the seed of its block."""
        seeds = [request_seed(key) for key in sample_keys(prefix, 0, max(numbers) + 1)]
        return [text_of(prefix.prompt + prefix.completion, seeds[i // size * size] + i % size) for i in numbers]

    def test_blocks(self, engine_for):
        with StubServer() as stub:
            engine = engine_for(stub, samples_per_request=4)
            result = engine.generate(PREFIXES, 8, OPTIONS)
            assert [body["n"] for body in stub.bodies] == [4] * 10
            assert texts(result) == [self.blocks(prefix, range(8), 4) for prefix in PREFIXES]
            # a part of a block is cut from the whole of it
            assert engine.generate(PREFIXES, 5, OPTIONS, first_sample=2) == [row[2:7] for row in result]
            assert len(stub.bodies) == 20 and all(body["n"] == 4 for body in stub.bodies)

    def test_tokens_are_shared_out_and_none_is_lost(self, engine_for):
        with StubServer() as stub:  # reports 3 tokens a choice and one more
            [row] = engine_for(stub, samples_per_request=4).generate(PREFIXES[:1], 4, OPTIONS)
        assert [completion.num_tokens for completion in row] == [4, 3, 3, 3]

    def test_progress_counts_what_was_asked_for(self, engine_for):
        given = []
        with StubServer() as stub:
            engine_for(stub, samples_per_request=4, progress=given.append).generate(PREFIXES[:1], 6, OPTIONS)
        assert sorted(given) == [2, 4]

    @pytest.mark.parametrize(
        "refusal",
        [
            (400, {"error": {"message": "n > 1 is not supported"}}),
            (400, {"error": {"message": "Only one completion choice is allowed"}}),
            (422, {"detail": [{"loc": ["body", "n"], "msg": "Input should be 1"}]}),
            "ignore",
        ],
        ids=["message", "llama.cpp", "FastAPI", "one choice"],
    )
    def test_a_server_that_gives_one_at_a_time(self, engine_for, caplog, refusal):
        def behave(number, body):
            if "n" not in body:
                return None
            return stub_answer({**body, "n": 1}) if refusal == "ignore" else refusal

        given = []
        with StubServer(behave) as stub:
            engine = engine_for(stub, samples_per_request=4, max_concurrency=1, progress=given.append)
            result = engine.generate(PREFIXES, 6, OPTIONS, first_sample=1)
        assert texts(result) == expected(PREFIXES, 6, first_sample=1)  # as with one sample a request
        assert len(stub.bodies) == 31 and sum(given) == 30
        assert len(caplog.records) == 1 and "samples are asked for one a request" in caplog.text

    def test_a_newline_in_a_message_is_no_n(self, engine_for):
        with StubServer(lambda number, body: (400, r"bad:\n, x")) as stub:
            with pytest.raises(ValueError, match="got status 400"):
                engine_for(stub, samples_per_request=2).generate(PREFIXES[:1], 2, OPTIONS)
        assert len(stub.bodies) == 1


class TestSeveralServers:
    def test_round_robin(self, engine_for):
        with StubServer() as a, StubServer() as b:
            result = engine_for(a, b).generate(PREFIXES, 2, OPTIONS)
        assert texts(result) == expected(PREFIXES, 2)
        assert len(a.bodies) == len(b.bodies) == 5

    def test_a_faster_one_gets_more(self, engine_for):
        with StubServer(num_together=2, patience=0.5) as slow, StubServer() as fast:
            engine_for(slow, fast, max_concurrency=1).generate(PREFIXES, 2, OPTIONS)
        assert len(slow.bodies) < len(fast.bodies) and len(slow.bodies) + len(fast.bodies) == 10

    def test_one_at_a_time_they_take_turns(self, engine_for):
        with StubServer() as a, StubServer() as b, StubServer() as c:
            engine = engine_for(a, b, c)
            for prefix in PREFIXES:
                engine.generate([prefix] * 3, 1, OPTIONS)
            assert len(a.bodies) == len(b.bodies) == len(c.bodies) == 5

    def test_one_is_down(self, engine_for, waits):
        down = f"http://127.0.0.1:{free_port()}/v1"
        with StubServer() as stub:
            engine = engine_for(down, stub, max_concurrency=4)
            result = engine.generate(PREFIXES, 6, OPTIONS)
            assert texts(result) == expected(PREFIXES, 6)
            assert len(stub.bodies) == 30 and not waits  # the other one takes over at once

    def test_one_that_is_down_is_left_out_for_half_a_minute(self, engine_for):
        port = free_port()
        down = f"http://127.0.0.1:{port}/v1"
        with StubServer() as stub:
            engine = engine_for(down, stub, max_concurrency=2)
            engine._clock = lambda: 100.0
            engine.generate(PREFIXES, 2, OPTIONS)
            with StubServer(port=port) as back:
                for now, is_asked in ((129.0, False), (131.0, True)):
                    engine._clock = lambda now=now: now
                    engine.generate(PREFIXES, 2, OPTIONS)
                    assert bool(back.bodies) is is_asked

    def test_one_that_comes_back_is_used_at_once(self, engine_for):
        dead, port = f"http://127.0.0.1:{free_port()}/v1", free_port()
        engine = engine_for(dead, f"http://127.0.0.1:{port}/v1", max_retries=100)
        engine._clock = lambda: 100.0
        with contextlib.ExitStack() as stack:
            started = []

            async def start_on_first_wait(seconds):
                if not started:
                    started.append(stack.enter_context(StubServer(port=port)))
                await asyncio.sleep(0.01)

            engine._sleep = start_on_first_wait
            assert texts(engine.generate(PREFIXES, 2, OPTIONS)) == expected(PREFIXES, 2)

    def test_one_fails(self, engine_for, waits):
        with StubServer(lambda number, body: (500, "broken")) as bad, StubServer() as good:
            result = engine_for(bad, good, max_concurrency=2).generate(PREFIXES, 4, OPTIONS)
        assert texts(result) == expected(PREFIXES, 4)
        assert len(good.bodies) == 20 and not waits

    def test_the_one_that_is_left_gets_no_more_at_once(self, engine_for):
        bad = StubServer(lambda number, body: (500, "broken"))
        with bad, StubServer(num_together=3, patience=0.3) as good:
            engine_for(bad, good, max_concurrency=2).generate(PREFIXES[:2], 2, OPTIONS)
        assert good.most_in_flight == 2 and len(good.bodies) == 4

    def test_an_order_for_each(self, engine_for):
        """With the middle one of three down, its work goes on to the third."""
        with StubServer() as a, StubServer(lambda number, body: (500, "broken")) as b, StubServer() as c:
            engine_for(a, b, c, max_concurrency=1).generate(PREFIXES[:3], 1, OPTIONS)
        assert (len(a.bodies), len(b.bodies), len(c.bodies)) == (1, 1, 2)

    def test_all_fail(self, engine_for, waits):
        down = f"http://127.0.0.1:{free_port()}/v1"
        with StubServer(lambda number, body: (500, "broken")) as bad:
            with pytest.raises(ConnectionError) as raised:
                engine_for(down, bad, max_retries=2).generate(PREFIXES[:1], 1, OPTIONS)
        assert f"{down}: it cannot be reached" in str(raised.value)
        assert f"{bad.url}: status 500: broken" in str(raised.value)
        assert len(bad.bodies) == 3 and len(waits) == 2
