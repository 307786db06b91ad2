"""The endpoint engine against servers that misbehave. What it promises as an engine is in test_engine_contract.py."""

import asyncio
import contextlib
import random
import sys
import time
from collections import Counter

import pytest
from tokenizers import processors

from tests.rollout.contract import USER, make_tokenizer
from tests.rollout.servers import StubServer, free_port, stub_answer, text_of
from trl_erprm.rollout import Completion, Prefix, PrefixTooLongError, SamplingOptions, load_engine
from trl_erprm.rollout.endpoint_engine import EndpointEngine
from trl_erprm.rollout.engine import description_of, sample_keys
from trl_erprm.rollout.rendering import request_seed

OPTIONS = SamplingOptions(8)
PREFIXES = [Prefix(f"problem {i}\n", "step\n") for i in range(5)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def waits():
    return []


@pytest.fixture
def engine_for(waits):
    """Makes engines that do not wait between attempts, but note how long they would have."""

    def make(*servers, **changes) -> EndpointEngine:
        urls = [server if isinstance(server, str) else server.url for server in servers]
        engine = load_engine("endpoint", base_url=urls, model="policy", **{"timeout": 20, **changes})

        async def sleep(seconds):
            waits.append(seconds)
            await asyncio.sleep(0)

        engine._sleep = sleep
        return engine

    return make


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


class TestFaultsThatPass:
    @pytest.mark.parametrize(
        "fault",
        [
            *((status, {"error": {"message": "busy"}}) for status in (408, 429, 500, 502, 503, 504)),
            "reset",
            "truncate",
            (200, "not JSON"),
            (200, {"error": "out of memory"}),
            (200, {"choices": []}),
            (200, {"choices": None}),
            (200, ["choices"]),
            {"choices": [{"index": 0, "text": None, "finish_reason": "stop"}]},
            {"choices": [{"index": 0, "text": "half", "finish_reason": "abort"}]},
            {"choices": [{"index": 0, "text": "half", "finish_reason": None}]},
        ],
        ids=lambda fault: str(fault)[:40],
    )
    def test_every_third_request_fails(self, engine_for, waits, fault):
        with StubServer(lambda number, body: fault if number % 3 == 0 else None) as stub:
            engine = engine_for(stub, max_concurrency=1)
            result = engine.generate(PREFIXES, 2, OPTIONS)
        assert texts(result) == expected(PREFIXES, 2)  # none lost, none doubled, none in another's place
        assert len(stub.bodies) == 15 and len(waits) == 5  # 5 of 15 failed

    def test_a_slow_answer(self, engine_for, waits):
        with StubServer(lambda number, body: "slow" if number == 0 else None) as stub:
            engine = engine_for(stub, max_concurrency=1, timeout=0.3)
            started = time.monotonic()
            result = engine.generate(PREFIXES[:2], 1, OPTIONS)
            assert time.monotonic() - started < 5
        assert texts(result) == expected(PREFIXES[:2], 1)
        assert len(stub.bodies) == 3 and len(waits) == 1

    def test_waits_double_and_start_anew_with_each_request(self, engine_for, waits):
        with StubServer(lambda number, body: (500, "busy") if number % 5 != 4 else None) as stub:
            engine_for(stub, max_concurrency=1).generate(PREFIXES[:2], 1, OPTIONS)
        assert len(waits) == 8 and len(stub.bodies) == 10
        for k, wait in enumerate(waits):
            assert 2 ** (k % 4) / 2 <= wait <= 2 ** (k % 4)
        assert len({wait / 2 ** (k % 4) for k, wait in enumerate(waits)}) == 8  # not all clients at one moment

    def test_a_server_may_ask_for_a_longer_wait(self, engine_for, waits):
        after = [("Retry-After", "7")], [("Retry-After", "1000")], [("Retry-After", "Fri, 31 Dec 2027 23:59:59 GMT")]
        with StubServer(lambda number, body: (429, "slowly", *after[number]) if number < 3 else None) as stub:
            engine_for(stub).generate(PREFIXES[:1], 1, OPTIONS)
        assert waits[:2] == [7.0, 60.0] and 2 <= waits[2] <= 4

    def test_a_server_that_comes_up_late(self, engine_for):
        port, started = free_port(), []
        engine = engine_for(f"http://127.0.0.1:{port}/v1")
        with contextlib.ExitStack() as stack:

            async def start_on_second_wait(seconds):
                started.append(stack.enter_context(StubServer(port=port)) if len(started) == 1 else None)

            engine._sleep = start_on_second_wait
            assert texts(engine.generate(PREFIXES[:1], 1, OPTIONS)) == expected(PREFIXES[:1], 1)
        assert len(started) == 2


class TestFaultsThatStay:
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ((500, {"error": {"message": "out of memory"}}), "status 500: out of memory"),
            ("reset", "the connection broke"),
            ("truncate", "the answer is no completion .*: {"),
        ],
        ids=["500", "reset", "truncate"],
    )
    def test_the_error_says_what_was_tried(self, engine_for, waits, fault, message):
        with StubServer(lambda number, body: fault) as stub:
            with pytest.raises(ConnectionError, match=f"got no completion in 4 attempts .*{stub.url}: {message}"):
                engine_for(stub, max_retries=3).generate(PREFIXES[:1], 1, OPTIONS)
        assert len(stub.bodies) == 4 and len(waits) == 3

    def test_a_server_that_is_down(self, engine_for, waits):
        url = f"http://127.0.0.1:{free_port()}/v1"
        with pytest.raises(
            ConnectionError,
            match=rf"`base_url` must name servers that answer, got no completion in 6 attempts over 0 seconds. {url}: "
            r"it cannot be reached \(.*\). Start the server \(GET .*/models must answer\), or raise",
        ):
            engine_for(url).generate(PREFIXES[:1], 1, OPTIONS)
        assert len(waits) == 5

    def test_the_first_error_ends_the_others(self, engine_for):
        """With 20 prefixes, 4 at a time, the fifth of which is refused."""
        with StubServer(lambda number, body: (400, "no") if "problem 4" in body["prompt"] else None) as stub:
            prefixes = [Prefix(f"problem {i};") for i in range(20)]
            with pytest.raises(ValueError, match="got status 400: no. Check `model`"):
                engine_for(stub, max_concurrency=4).generate(prefixes, 1, OPTIONS)
        assert len(stub.bodies) < 12

    @pytest.mark.parametrize(
        ("status", "content", "error", "message"),
        [
            (401, {"error": {"message": "Incorrect key"}}, PermissionError, "got status 401: Incorrect key. Pass `ap"),
            (403, "no", PermissionError, "got status 403: no. Pass `api_key`, or set TRL_ERPRM_API_KEY"),
            (404, {"message": "no model x"}, ValueError, r"got status 404: no model x. Check `model` \('policy'\)"),
            (400, {"detail": "bad"}, ValueError, "got status 400: bad. Check"),
            (422, {"detail": [{"loc": ["body", "max_tokens"], "msg": "too many", "input": {"seed": 1}}]}, ValueError,
             "got status 422: body.max_tokens: too many. Check"),
            (307, "", ValueError, "got status 307: no message. Check"),
            (501, "", ValueError, "got status 501: no message. Check"),
        ],
    )  # fmt: skip
    def test_a_refusal_is_an_error_at_once(self, engine_for, waits, status, content, error, message):
        with StubServer(lambda number, body: (status, content)) as stub:
            with pytest.raises(error, match=f"{stub.url}/completions must accept .*{message}"):
                engine_for(stub, api_key="secret").generate(PREFIXES[:1], 1, OPTIONS)
        assert len(stub.bodies) == 1 and not waits

    def test_a_key_is_not_shown(self, engine_for):
        with StubServer(lambda number, body: (401, "no")) as stub:
            with pytest.raises(PermissionError) as raised:
                engine_for(stub, api_key="secret").generate(PREFIXES[:1], 1, OPTIONS)
        assert "secret" not in str(raised.value)


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


class TestFieldsThatAreRefused:
    def refuse(self, *names):
        def behave(number, body):
            found = [name for name in names if name in body]
            return (422, {"detail": f"Unexpected fields in the request: {set(found)}"}) if found else None

        return behave

    def test_the_ones_that_only_switch_defaults_off(self, engine_for, waits, caplog):
        with StubServer(self.refuse("top_k", "min_p", "repetition_penalty")) as stub:
            engine = engine_for(stub, max_concurrency=1)
            result = engine.generate(PREFIXES, 2, OPTIONS)
            assert texts(result) == expected(PREFIXES, 2)
            assert len(stub.bodies) == 11 and not waits  # once is enough, and at once
            assert engine.generate(PREFIXES, 2, OPTIONS) == result and len(stub.bodies) == 21
        assert [record.getMessage()[:37] for record in caplog.records] == [
            "The server does not take `top_k` (Une", "The server does not take `min_p` (Une",
            "The server does not take `repetition_",
        ]  # fmt: skip

    def test_not_what_was_asked_for(self, engine_for):
        with StubServer(self.refuse("top_k")) as stub:
            with pytest.raises(ValueError, match="got status 422: Unexpected fields in the request: {'top_k'}. Check"):
                engine_for(stub).generate(PREFIXES[:1], 1, SamplingOptions(8, top_k=5))
            with pytest.raises(ValueError, match="got status 422"):
                engine_for(stub, extra_body={"top_k": -1}).generate(PREFIXES[:1], 1, OPTIONS)
            # asked for later, by an engine that knows of the refusal
            engine = engine_for(stub)
            engine.generate(PREFIXES[:1], 1, OPTIONS)
            with pytest.raises(ValueError, match="got status 422"):
                engine.generate(PREFIXES[:1], 1, SamplingOptions(8, top_k=5))

    def test_seed(self, engine_for, caplog):
        with StubServer(self.refuse("seed")) as stub:
            result = engine_for(stub, max_concurrency=1).generate(PREFIXES, 2, OPTIONS)
        assert texts(result) == [[text_of(p.prompt + p.completion, None)] * 2 for p in PREFIXES]
        assert len(stub.bodies) == 11
        [record] = caplog.records
        assert "does not take `seed`" in record.getMessage() and "samples cannot be repeated" in record.getMessage()

    def test_more_stop_texts_than_four(self, engine_for, caplog):
        def at_most_four(number, body):
            if len(body.get("stop", ())) > 4:
                return 400, {"error": {"message": "2 validation errors: body.stop: List should have at most 4 items"}}
            return {"choices": [{"index": 0, "text": "one six two", "finish_reason": "length"}]}

        stop = ("three", "two", "four", "five", "six")
        with StubServer(at_most_four) as stub:
            [[completion]] = engine_for(stub).generate([Prefix("a")], 1, SamplingOptions(4, stop=stop))
        assert [body["stop"] for body in stub.bodies] == [list(stop), list(stop[:4])]
        assert completion == Completion("one ", 4, "stop")
        assert "it gets the first 4" in caplog.text

    @pytest.mark.parametrize(
        "message",
        ["prompt must be a string.", "Failed to deserialize the JSON body into the target type: prompt: data did not"],
    )  # of `transformers serve` and TGI
    def test_prompts_as_token_ids(self, engine_for, caplog, message):
        prefixes = [Prefix("1+1=", "2\n"), Prefix([USER], "2\n")]
        tokenizer = make_tokenizer()

        def text_only(number, body):
            return (400, {"detail": message}) if isinstance(body["prompt"], list) else None

        with StubServer(text_only) as stub:
            engine_for(stub, tokenizer=tokenizer, max_concurrency=1).generate(prefixes, 1, OPTIONS)
        # The server writes <bos>, as the template has done.
        assert [body["prompt"] for body in stub.bodies[1:]] == ["1+1=2\n", "<user>1+1<end><assistant>2\n"]
        assert "does not take prompts as token ids" in caplog.text and len(caplog.records) == 1

    def test_a_text_that_cannot_be_exact_is_reported(self, engine_for, caplog):
        """A template that does not begin as the tokenizer does."""
        tokenizer = make_tokenizer()
        tokenizer.chat_template = "{{ messages[0]['content'] }}"

        def text_only(number, body):
            return (400, "no prompt ids") if isinstance(body["prompt"], list) else None

        with StubServer(text_only) as stub:
            engine_for(stub, tokenizer=tokenizer).generate([Prefix([USER])], 1, OPTIONS)
        assert stub.bodies[-1]["prompt"] == "1+1" and "no text gives exactly the tokens of prefix 0" in caplog.text


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
