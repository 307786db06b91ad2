"""The endpoint engine against servers that misbehave."""

import contextlib
import time

import pytest

from tests.rollout.contract import USER, make_tokenizer
from tests.rollout.endpoint import OPTIONS, PREFIXES, expected, texts
from tests.rollout.servers import StubServer, free_port, text_of
from trl_erprm.rollout import Completion, Prefix, SamplingOptions

pytestmark = pytest.mark.usefixtures("no_proxy")


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
