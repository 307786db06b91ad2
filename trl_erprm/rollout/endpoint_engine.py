"""Rollouts from any server with OpenAI's `/v1/completions`: vLLM, SGLang, TGI, llama.cpp, `transformers serve`.

Each sample is a request of its own (`n` = 1) with a seed of its own, the hash of seed, prefix and sample number. The
servers differ, and what they do with a request decides how much of the engines' contract holds:

| Server | takes token ids | what a seed does |
|---|---|---|
| vLLM | yes | a stream for each request: the contract holds; a repeated prefix is cached |
| SGLang | yes | the same, if started with `--enable-deterministic-inference` |
| llama.cpp | since August 2025 | a stream for each request |
| TGI | no, text | a stream for each request |
| `transformers serve` | no, text | sets torch's global state: the contract holds with `max_concurrency=1` |

(The tests run vLLM 0.32 and `transformers serve` 5.23; the other lines are what those projects say.) Where a server
ignores the seed, samples are independent draws, but cannot be repeated.

With a tokenizer, prompts are sent as token ids, which no server can read differently. To a server that takes only text
go texts of which the tokenizer has said that they give the same ids (a template's begin-of-sequence token, which the
server adds again, is left out). Without a tokenizer, prompts are text and the server tokenizes them.

vLLM, SGLang and llama.cpp apply sampling defaults of the checkpoint or of their own where a request is silent (top-k,
min-p, repetition penalty), so every request says that they are off. A server that refuses one of these fields, or `n`,
or `seed`, is asked again without it, with one warning.
"""

import asyncio
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

try:
    import httpx
except ImportError:  # reported where an engine is made
    httpx = None

from .engine import Completion, Prefix, PrefixTooLongError, SamplingOptions, check_request, sample_keys
from .rendering import check_window, cut_at_stop, encode, render, request_seed
from .server_answers import error_message, reported_stop_text, seconds_to_wait

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EndpointEngine"]

logger = logging.getLogger(__name__)

# Asked again: the server is busy, restarting, or behind a proxy that says so.
_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504, 529}
_CONTEXT_ERROR = re.compile(
    r"context (length|size|window)|max_model_len|max_total_tokens|longer than the model|`inputs` tokens", re.IGNORECASE
)
_FINISH_REASONS = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}
# What a server may refuse, how its message names it, and what follows.
_OPTIONAL_FIELDS = {
    "n": (r"(?<![\w\\])n(?!\w)|best_of|one completion", "samples are asked for one a request"),
    "seed": (r"\bseed\b", "samples cannot be repeated"),
    "stop": (r"\bstop\b", "it gets the first 4, and the others cut a text after it was written"),
    "top_k": (r"\btop_k\b", "its own default applies"),
    "min_p": (r"\bmin_p\b", "its own default applies"),
    "repetition_penalty": (r"\brepetition_penalty\b", "its own default applies"),
    "prompt": (r"\bprompt\b", "it gets text that the tokenizer turns into the same tokens"),
}
_MOST_STOP_TEXTS = 4  # of OpenAI's API, and of vLLM 0.32
_SECONDS_DOWN = 30.0  # for which a server that could not be reached is left out while there are others
_LONGEST_WAIT = 60.0  # seconds
_CONNECT_TIMEOUT = 10.0  # seconds


class EndpointEngine:
    """A [`~rollout.engine.RolloutEngine`] that asks one or more completion servers.

    Requests are dealt out to the servers in turn, at most `max_concurrency` at a time to each; one that is faster
    gets more of them. A request that fails (no connection, reset, timeout, status 408, 425, 429 or 5xx, an answer
    that is no completion) is tried at the other servers and then, after a wait that doubles each time, again. A
    server that cannot be reached is left out for 30 seconds while another answers. A request that a server rejects
    (other 4xx) is an error at once.

    Differences from the other engines: `Completion.num_tokens` is what the server reports, and with
    `samples_per_request` above 1 an equal share of it, as usage is reported by request. If there are more stop texts
    than the server takes, text after one of the others is generated and cut off. A server that leaves a stop text in
    place and reports "length" (`transformers serve`) is corrected. `transformers serve` drops white space at the
    beginning of a completion where the tokenizer is SentencePiece's.

    Args:
        base_url (`str` or `list[str]`):
            Where the API begins, for example `"http://node1:8000/v1"`; several servers of the same model share the
            work.
        model (`str`):
            Name under which the servers know the model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer. It is needed for prompts that are messages, and makes text exact and too long
            prefixes known before they are sent.
        api_key (`str`, *optional*):
            Sent as a bearer token. Defaults to the environment variable `TRL_ERPRM_API_KEY`; none if that is not set.
        samples_per_request (`int`, *optional*, defaults to `1`):
            Samples asked for in one request (`n`). Above 1, samples `k * samples_per_request` up to the next multiple
            are one request with one seed, sent whole even where a part of it is wanted, so that the contract holds;
            choose a divisor of the number of rollouts. Default: 1, as usage is then exact and prefix caching makes
            it cheap. Completions depend on this number.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Most requests in flight at one server. Default: our own choice, a quarter of the 256 sequences that vLLM
            has in a batch by default, so that four processes of one launch fill it.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds until an answer must be complete, waiting in the server's queue included. Default: that of the
            OpenAI client.
        max_retries (`int`, *optional*, defaults to `5`):
            How often all servers are tried again for one request. The waits are 1, 2, 4, 8 and 16 seconds, each
            shortened by up to a half at random.
        context_window (`int`, *optional*):
            Most tokens of prefix and completion, checked before anything is sent where there is a tokenizer. `None`:
            it is left to the server to refuse what is too long (vLLM does, `transformers serve` does not).
        extra_body (`dict`, *optional*):
            Further fields of each request, put over those of the engine. For example, `transformers serve` samples
            only if told so: `{"generation_config": '{"do_sample": true, "top_k": 0}'}`.
        progress (`Callable[[int], object]`, *optional*):
            Called after each answer with the number of completions that it gave, for example `tqdm.update`.

    Raises:
        ImportError: if httpx is not installed.
        ValueError: if an argument is out of range.

    Example:

    ```python
    >>> EndpointEngine("node1:8000", model="policy")
    Traceback (most recent call last):
        ...
    ValueError: `base_url` must be one or more addresses such as 'http://localhost:8000/v1', got 'node1:8000'. ...

    ```
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        api_key: str | None = None,
        samples_per_request: int = 1,
        max_concurrency: int = 64,
        timeout: float = 600.0,
        max_retries: int = 5,
        context_window: int | None = None,
        extra_body: dict[str, Any] | None = None,
        progress: Callable[[int], object] | None = None,
    ):
        if httpx is None:
            raise ImportError(
                "The endpoint engine needs httpx, which is not installed. Run `pip install 'trl-erprm[endpoint]'`."
            )
        urls = [base_url] if isinstance(base_url, str) else list(base_url)
        for url in urls or [base_url]:
            if not isinstance(url, str) or not url.startswith(("http://", "https://")):
                raise ValueError(
                    "`base_url` must be one or more addresses such as 'http://localhost:8000/v1', got "
                    f"{url!r}. Begin it with http:// or https:// and end it with the API's version."
                )
        if not isinstance(model, str) or not model:
            raise ValueError(
                f"`model` must be the name under which the server knows the model, got {model!r}. GET "
                f"{urls[0]}/models lists the names."
            )
        for name, value, minimum in (
            ("samples_per_request", samples_per_request, 1),
            ("max_concurrency", max_concurrency, 1),
            ("max_retries", max_retries, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise ValueError(f"`{name}` must be a whole number from {minimum} up, got {value!r}. Pass {minimum}.")
        if not timeout > 0:
            raise ValueError(f"`timeout` must be a number of seconds above 0, got {timeout!r}. Pass 600.")
        self.urls = [url.rstrip("/") for url in urls]
        self.model = model
        self.tokenizer = tokenizer
        self.samples_per_request = samples_per_request
        self.max_concurrency = max_concurrency
        self.timeout = timeout
        self.max_retries = max_retries
        self.context_window = context_window
        self.extra_body = dict(extra_body or {})
        self.progress = progress
        self._api_key = os.environ.get("TRL_ERPRM_API_KEY") if api_key is None else api_key
        self._refused: set[str] = set()  # optional fields that the servers do not take
        self._warned: set[str] = set()
        self._down_until: dict[str, float] = {}  # by address, in seconds of `_clock`
        self._sleep: Callable[[float], Coroutine[Any, Any, object]] = asyncio.sleep  # replaced in tests
        self._clock = time.monotonic

    def generate(
        self,
        prefixes: Sequence[Prefix],
        num_samples: int,
        options: SamplingOptions,
        first_sample: int = 0,
    ) -> list[list[Completion]]:
        """Samples completions: see [`~rollout.engine.RolloutEngine.generate`].

        Greedy decoding (`temperature=0`) is one request a prefix; its samples are equal. It may be called where an
        event loop runs already (a notebook).

        Raises:
            ValueError: if a prefix is empty, if messages are given and there is no tokenizer or chat template, if a
                number is out of range, or if the server rejects the request (with its status and message).
            PrefixTooLongError: if prefixes and `max_new_tokens` together exceed `context_window`, or if the server
                says so of one.
            PermissionError: if the server wants another API key.
            ConnectionError: if no server has answered after all retries.
        """
        check_request(prefixes, num_samples, first_sample)
        if not prefixes:
            return []
        prompts = [self._prompt(index, prefix, options) for index, prefix in enumerate(prefixes)]
        if self.tokenizer is not None:
            encoded = encode(prefixes, [prompt.text for prompt in prompts], self.tokenizer)
            check_window(list(map(len, encoded)), self.context_window, options.max_new_tokens)
            for prompt, ids in zip(prompts, encoded, strict=True):
                prompt.ids = ids
        is_greedy = options.temperature == 0
        wanted = range(1) if is_greedy else range(first_sample, first_sample + num_samples)
        size = 1 if is_greedy else self.samples_per_request
        jobs = [
            _Job(prompt, start, size, wanted)
            for prompt in prompts
            for start in range(wanted.start // size * size, wanted.stop, size)
        ]
        run = _Run(self, options, copies=num_samples if is_greedy else 1)
        _run_to_end(run.complete(jobs))
        grouped = [[prompt.completions[number] for number in wanted] for prompt in prompts]
        if is_greedy:
            return [group * num_samples for group in grouped]
        if num_samples > 1 and len(jobs) >= 32 and all(len({c.text for c in group}) == 1 for group in grouped):
            self._warn_once(
                "equal samples",
                f"All {num_samples} samples of a prefix are equal, for each of {len(grouped)} prefixes. Unless the "
                "policy is that sure, the server decodes greedily or gives every request the same seed: look for an "
                "option of the server, to be sent as `extra_body`.",
            )
        return grouped

    def describe(self) -> dict[str, Any]:
        """The servers and what each says of the model (`GET /models`), for the manifest of a run.

        A server that does not answer, or has no such list, is noted with the reason.
        """
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        servers = {}
        with httpx.Client(headers=headers, timeout=_CONNECT_TIMEOUT) as client:
            for url in self.urls:
                try:
                    listed = client.get(f"{url}/models").raise_for_status().json()["data"]
                    found = [one for one in listed if self.model in (one["id"], one.get("root"))]
                    # Without permissions and the like, and without times, which some set anew for each answer
                    names = ("id", "root", "parent", "max_model_len", "owned_by", "meta")
                    servers[url] = {name: found[0][name] for name in names if found and found[0].get(name) is not None}
                except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
                    servers[url] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"model": self.model, "servers": servers}

    def _prompt(self, index: int, prefix: Prefix, options: SamplingOptions) -> "_Prompt":
        if self.tokenizer is not None:
            text = render(index, prefix, self.tokenizer)
        elif isinstance(prefix.prompt, str):
            text = prefix.prompt + prefix.completion
            if not text:
                raise ValueError(f"Prefix {index} has no tokens. Pass a prompt that is not empty.")
        else:
            raise ValueError(
                f"Prefix {index} holds messages, and the engine has no tokenizer to render them. Pass `tokenizer`, "
                "that of the served model, or prompts as text."
            )
        return _Prompt(index, prefix, text)

    def _body(self, prompt: "_Prompt", options: SamplingOptions, seed: int, num_choices: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self._server_text(prompt) if "prompt" in self._refused or not prompt.ids else prompt.ids,
            "max_tokens": options.max_new_tokens,
            "temperature": float(options.temperature),
            "top_p": float(options.top_p),
            "seed": seed,
            "top_k": options.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        if num_choices > 1:
            body["n"] = num_choices
        if options.stop:
            body["stop"] = list(options.stop)
        for name in self._refused - {"prompt"}:
            if name == "stop":
                body["stop"] = body.get("stop", [])[:_MOST_STOP_TEXTS]
            elif not (name == "top_k" and options.top_k):  # what was asked for is never left out in silence
                body.pop(name, None)
        if not body.get("stop", True):
            del body["stop"]
        return body | self.extra_body

    def _server_text(self, prompt: "_Prompt") -> str:
        """Text that a server which adds special tokens turns into the ids of the prompt, as far as can be told."""
        if self.tokenizer is None:
            return prompt.text
        begin = self.tokenizer.bos_token or ""
        for text in (prompt.text, prompt.text.removeprefix(begin)):
            if self.tokenizer(text)["input_ids"] == prompt.ids:
                return text
        self._warn_once(
            "text",
            f"The server takes text only, and no text gives exactly the tokens of prefix {prompt.index}: special "
            "tokens at its ends may be missing or doubled.",
        )
        return prompt.text

    def _leave_out(self, body: dict[str, Any], message: str, options: SamplingOptions) -> bool:
        """Whether fields are left out from now on, as the server's message names them and can do without them."""
        found = []
        for name, (pattern, _) in _OPTIONAL_FIELDS.items():
            can_go = {
                "prompt": isinstance(body["prompt"], list),
                "stop": len(body.get("stop", ())) > _MOST_STOP_TEXTS,
                "top_k": options.top_k == 0,
            }.get(name, True)
            if name in body and name not in self.extra_body and can_go and re.search(pattern, message):
                found.append(name)
                self._refuse(name, message)
        return bool(found)

    def _refuse(self, name: str, message: str) -> None:
        self._refused.add(name)
        what = "prompts as token ids" if name == "prompt" else f"`{name}`"
        self._warn_once(name, f"The server does not take {what} ({message[:200]}): {_OPTIONAL_FIELDS[name][1]}.")

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message)


class _Prompt:
    """What is sent for a prefix, and the completions that came back, by number."""

    def __init__(self, index: int, prefix: Prefix, text: str):
        self.index = index
        self.prefix = prefix
        self.text = text
        self.ids: list[int] | None = None
        self.completions: dict[int, Completion] = {}


@dataclass
class _Job:
    """Samples `start` to `start + size` of a prefix, those in `wanted` for the caller: one request."""

    prompt: _Prompt
    start: int
    size: int
    wanted: range


@dataclass(eq=False)
class _Server:
    url: str
    slots: asyncio.Semaphore
    last_fault: str = ""


@dataclass(frozen=True)
class _Worker:
    """Does one job after another."""

    client: "httpx.AsyncClient"
    home: int  # number of its server


class _Fault(Exception):
    """This attempt has failed, and another may succeed."""

    def __init__(self, message: str, wait: float = 0.0, is_down: bool = False):
        super().__init__(message)
        self.wait = wait  # seconds, where the server asks for them
        self.is_down = is_down


class _LeftOut(Exception):
    """The server has refused fields that are left out from now on: ask again."""


class _Run:
    """One call of `generate`, on one event loop."""

    def __init__(self, engine: EndpointEngine, options: SamplingOptions, copies: int):
        self.engine = engine
        self.options = options
        self.copies = copies  # completions that the caller gets for one
        self.servers = [_Server(url, asyncio.Semaphore(engine.max_concurrency)) for url in engine.urls]

    async def complete(self, jobs: Sequence[_Job]) -> None:
        """Does all jobs: the completions are then in their prompts."""
        engine = self.engine
        # Each request is timed as a whole, in `_post`.
        settings: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {engine._api_key}"} if engine._api_key else {},
            "timeout": httpx.Timeout(None, connect=min(_CONNECT_TIMEOUT, engine.timeout)),
            "verify": httpx.create_ssl_context(),  # made once for all clients
        }
        waiting = iter(jobs)  # shared by the workers: each job is taken once

        async def work(home: int) -> None:
            # A client each, as what a client spends on a request grows with its connections: with 64 of them, one
            # client for all gave 360 requests a second, and clients of their own 1,800.
            async with httpx.AsyncClient(**settings) as client:
                for job in waiting:
                    await self._do(_Worker(client, home), job)

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(min(len(jobs), engine.max_concurrency * len(self.servers))):
                    group.create_task(work(number % len(self.servers)))
        except BaseExceptionGroup as errors:  # at the first one the other requests were cancelled
            raise errors.exceptions[0] from None

    async def _do(self, worker: _Worker, job: _Job) -> None:
        if job.size > 1 and "n" not in self.engine._refused:
            completions = await self._ask(worker, job)
            if completions is not None:
                return self._store(job, completions)
        for number in range(max(job.start, job.wanted.start), min(job.start + job.size, job.wanted.stop)):
            single = _Job(job.prompt, number, 1, job.wanted)
            self._store(single, await self._ask(worker, single))

    def _store(self, job: _Job, completions: list[Completion]) -> None:
        numbered = {number: c for number, c in enumerate(completions, start=job.start) if number in job.wanted}
        job.prompt.completions.update(numbered)
        if self.engine.progress is not None:
            self.engine.progress(len(numbered) * self.copies)

    async def _ask(self, worker: _Worker, job: _Job) -> list[Completion] | None:
        """The completions of a job, from whichever server gives them; `None` if the servers do not take `n`."""
        engine = self.engine
        key = sample_keys(job.prompt.prefix, self.options.seed, 1, job.start)[0]
        jitter = random.Random(key)  # a stream of its own: the caller's random state is not touched
        tried: set[_Server] = set()  # in this round
        num_attempts, num_waits, asked_wait, started = 0, 0, 0.0, engine._clock()
        while True:
            server = self._next_server(worker, tried)
            if server is None:
                if num_waits == engine.max_retries:
                    raise ConnectionError(self._no_answer(num_attempts, engine._clock() - started))
                back_off = 2.0**num_waits * (1 - 0.5 * jitter.random())
                await engine._sleep(min(max(back_off, asked_wait), _LONGEST_WAIT))
                num_waits, asked_wait = num_waits + 1, 0.0
                tried.clear()
                continue
            tried.add(server)
            try:
                async with server.slots:
                    if job.size > 1 and "n" in engine._refused:
                        return None
                    num_attempts += 1
                    body = engine._body(job.prompt, self.options, request_seed(key), job.size)
                    answer = await self._post(worker, server, job, body)
                return self._completions(job, answer)
            except _LeftOut:
                tried.discard(server)
            except _Fault as fault:
                server.last_fault = str(fault)
                asked_wait = max(asked_wait, fault.wait)
                if fault.is_down:
                    engine._down_until[server.url] = engine._clock() + _SECONDS_DOWN

    def _next_server(self, worker: "_Worker", tried: set[_Server]) -> _Server | None:
        """The worker's own server or one of those that follow it, not tried in this round; any if all seem down."""
        now = self.engine._clock()
        in_turn = self.servers[worker.home :] + self.servers[: worker.home]
        untried = [server for server in in_turn if server not in tried]
        up = [server for server in untried if self.engine._down_until.get(server.url, now) <= now]
        candidates = up or ([] if tried else untried)
        return candidates[0] if candidates else None

    async def _post(self, worker: _Worker, server: _Server, job: _Job, body: dict[str, Any]) -> str:
        """The text of an answer with status 200."""
        engine = self.engine
        url = f"{server.url}/completions"
        try:
            async with asyncio.timeout(engine.timeout):
                response = await worker.client.post(url, json=body)
        except TimeoutError:
            raise _Fault(f"no complete answer within `timeout`={engine.timeout:g} seconds") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Fault(f"it cannot be reached ({error or type(error).__name__})", is_down=True) from None
        except httpx.RequestError as error:
            raise _Fault(f"the connection broke ({error or type(error).__name__})") from None
        engine._down_until.pop(server.url, None)
        if response.status_code == 200:
            return response.text
        status, message = response.status_code, error_message(response.text)
        if status in _RETRIED_STATUS:
            raise _Fault(f"status {status}: {message}", wait=seconds_to_wait(response.headers.get("retry-after")))
        if status in (400, 413, 422) and _CONTEXT_ERROR.search(message):
            length = "" if job.prompt.ids is None else f" ({len(job.prompt.ids)} tokens)"
            raise PrefixTooLongError(
                f"Prefix {job.prompt.index}{length} and `max_new_tokens`={self.options.max_new_tokens} must fit into "
                f"the context window of the server, got status {status} from {url}: {message}. Lower "
                "`max_new_tokens`, or leave this prefix out.",
                [job.prompt.index],
            )
        if status in (400, 422) and engine._leave_out(body, message, self.options):
            raise _LeftOut
        if status in (401, 403):
            raise PermissionError(
                f"{url} must accept the API key, got status {status}: {message}. Pass `api_key`, or set "
                "TRL_ERPRM_API_KEY."
            )
        raise ValueError(
            f"{url} must accept the request, got status {status}: {message}. Check `model` ({engine.model!r}), "
            "`base_url`, which mostly ends with /v1, and the sampling options."
        )

    def _completions(self, job: _Job, answer: str) -> list[Completion] | None:
        engine, options = self.engine, self.options
        try:
            parsed = json.loads(answer)
            choices = sorted(parsed["choices"], key=lambda choice: choice.get("index", 0))[: job.size]
            found = [
                (choice["text"], _FINISH_REASONS[choice["finish_reason"]], reported_stop_text(choice))
                for choice in choices
            ]
            if not found or not all(isinstance(text, str) for text, *_ in found):
                raise ValueError("no text")
            used = (parsed.get("usage") or {}).get("completion_tokens")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Fault(f"the answer is no completion ({error!r}): {answer[:200]}") from None
        if len(found) < job.size:  # it has not refused `n`, but ignored it
            engine._refuse("n", f"{len(found)} of {job.size} choices in an answer")
            return None
        completions = []
        for number, (text, reason, reported) in enumerate(found):
            text, stop_text = cut_at_stop(text, options.stop)
            reason = "stop" if stop_text is not None else reason
            if used is not None:  # of the whole request: divided so that the sum is right
                num_tokens = used // job.size + (number < used % job.size)
            elif engine.tokenizer is not None:
                num_tokens = len(engine.tokenizer(text, add_special_tokens=False)["input_ids"]) + (reason == "stop")
            else:
                engine._warn_once("usage", "The server does not report usage, and there is no tokenizer to count by.")
                num_tokens = 0
            # Some servers shorten `max_tokens` to what is left of the window. (One token less: of a server that does
            # not count the last one.)
            if used is not None and job.size == 1 and reason == "length" and used < options.max_new_tokens - 1:
                raise PrefixTooLongError(
                    f"Prefix {job.prompt.index} and `max_new_tokens`={options.max_new_tokens} must fit into the "
                    f"context window of the server, got an answer that was cut off after {used} tokens. Lower "
                    "`max_new_tokens`, or leave this prefix out.",
                    [job.prompt.index],
                )
            completions.append(Completion(text, num_tokens, reason, reported if stop_text is None else stop_text))
        return completions

    def _no_answer(self, num_attempts: int, seconds: float) -> str:
        faults = "; ".join(f"{server.url}: {server.last_fault or 'not tried'}" for server in self.servers)
        return (
            f"`base_url` must name servers that answer, got no completion in {num_attempts} attempts over "
            f"{seconds:.0f} seconds. {faults}. Start the server (GET {self.servers[0].url}/models must answer), or "
            "raise `timeout` or `max_retries`; a labelling run then goes on where it stopped."
        )


def _run_to_end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine, also where an event loop runs already: that one cannot wait, so another thread does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, coroutine).result()
