"""Completion servers on loopback: real ones in a process of their own, and a stub in a thread that misbehaves."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

READY_WITHIN = 180  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server_process(command: list[str], port: int, log: Path, **environment: str) -> Iterator[str]:
    """Starts a server, waits until it is healthy, yields its base URL, and ends this process and no other."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", **environment}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + READY_WITHIN
        while not is_healthy(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                state = "is not ready" if process.poll() is None else f"has ended with {process.returncode}"
                raise RuntimeError(f"The server {state}: {log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)  # between two looks
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def transformers_server(model: str, log: Path) -> contextlib.AbstractContextManager[str]:
    """`transformers serve`; the model's name is its path."""
    port = free_port()
    program = "from transformers.cli.transformers import main; main()"  # the console script may not be on the path
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    return server_process([sys.executable, "-c", program, "serve", model, *options], port, log)


def vllm_server(model: str, log: Path, max_model_len: int) -> contextlib.AbstractContextManager[str]:
    """vLLM's server; the model's name is its path."""
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--model", model, "--dtype", "float32", "--enforce-eager"]
    options += ["--max-model-len", str(max_model_len), "--max-num-seqs", "16"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options]
    return server_process(command, port, log, VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")


class StubServer:
    """A server whose answers are known and whose faults are chosen.

    The text of choice j is `text_of(prompt, seed + j)`, so that lost, doubled and mixed-up completions show.

    Args:
        behave (`Callable[[int, dict], object]`, *optional*):
            Gets the number of the request (from 0) and its body, and gives what to do: `None` (answer), a pair of
            status and JSON (or text), `"reset"`, `"truncate"`, `"slow"` (until the stub is closed) or a dictionary
            that is put over the answer.
        num_together (`int`, *optional*, defaults to `1`):
            Each answer is held back until so many requests are in flight.
        patience (`float`, *optional*, defaults to `2.0`):
            Seconds after which it is not held back any longer.
        port (`int`, *optional*, defaults to `0`):
            Where to listen; 0 takes a free one.
        models (`list[dict]`, *optional*):
            What it says that it serves. Without it there is no such path.
    """

    def __init__(
        self,
        behave: Callable[[int, dict], object] = lambda number, body: None,
        num_together: int = 1,
        patience: float = 2.0,
        port: int = 0,
        models: list[dict] | None = None,
    ):
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._together = threading.Condition()
        self._closed = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgement of its header

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                is_known = models is not None and self.path == "/v1/models"
                data = json.dumps({"object": "list", "data": models} if is_known else {"error": "no such path"})
                self.send_response(200 if is_known else 404)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data.encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub._together:
                    number = len(stub.bodies)
                    stub.bodies.append(body)
                    stub.headers.append(dict(self.headers))
                    stub._in_flight += 1
                    stub.most_in_flight = max(stub.most_in_flight, stub._in_flight)
                    stub._together.notify_all()
                    stub._together.wait_for(lambda: stub.most_in_flight >= num_together, timeout=patience)
                try:
                    self.act(behave(number, body) if self.path == "/v1/completions" else (404, "no such path"), body)
                finally:
                    with stub._together:
                        stub._in_flight -= 1

            def act(self, action: object, body: dict) -> None:
                if action == "reset":  # a RST instead of an answer
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                if action == "slow":
                    stub._closed.wait(30)
                    self.close_connection = True
                    return
                if isinstance(action, tuple):
                    status, content, *headers = action
                else:
                    status, content, headers = (
                        200,
                        stub_answer(body) | (action if isinstance(action, dict) else {}),
                        [],
                    )
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                if action == "truncate":
                    data = data[: len(data) // 2]
                with stub._together:
                    stub._in_flight -= 1  # before the client can know, so that its next request is not counted on top
                try:
                    self.send_response(status)
                    for name, value in headers:
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                finally:
                    with stub._together:
                        stub._in_flight += 1

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that gave up

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "StubServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def text_of(prompt: str | list[int], seed: int | None) -> str:
    return f" after {prompt} by {seed}"


def stub_answer(body: dict) -> dict:
    choices = [
        {"index": j, "text": text_of(body["prompt"], body["seed"] + j if "seed" in body else None)}
        for j in range(body.get("n", 1))
    ]
    choices = [{**choice, "finish_reason": "stop"} for choice in choices]
    return {"choices": choices, "usage": {"completion_tokens": 3 * len(choices) + 1}}
