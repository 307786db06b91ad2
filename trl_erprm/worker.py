"""A function that may hang, crash or eat all memory, run in a process of its own that can be killed.

Why a process: a time limit within one (`signal.alarm`, an exception raised in a thread) works in the main thread only,
or does not arrive inside of one long operation of C code, and nothing within a process survives a stack overflow.

    worker = KillableWorker("some.module:load_function")
    worker.call(5.0, "x^2", "x*x")         None where it took longer than 5 s, or died

The process is started at the first call, kept for the next ones (a call costs about 0.05 ms more than the function),
and started again after it was killed. It is not a child by fork: it imports nothing but the module that it is given,
whatever the caller has loaded, and holds no GPU. It ends with the process that started it, however that ends.

Threads share a worker and take turns. A process that was forked from one with a worker starts its own.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["KillableWorker", "WorkerDiedError", "serve"]

START_LIMIT_SECONDS = 120.0
"""Limit for starting the process and importing the module. Generous: file systems of clusters can be slow."""

GRACE_SECONDS = 1.0
"""How much longer than the limit of a call is waited for the process to end itself before it is killed from here."""

MEMORY_LIMIT_BYTES = 2 * 1024**3
"""What the process may allocate beyond what it has after its imports, where the system can tell (Linux)."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from trl_erprm.worker import serve; serve(sys.argv[2])"
)


class WorkerDiedError(RuntimeError):
    """The process ended, or was killed, before it answered."""


class KillableWorker:
    """Calls a function in a process of its own, with a time limit.

    Args:
        target (`str`):
            `"module:name"` of a function without arguments that returns the function to call. It runs once in each
            process that is started, so imports that take long belong there: no time limit of a call counts them.
            Arguments and results of the function must be JSON.
    """

    def __init__(self, target: str):
        self.target = target
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._unread = b""
        _workers.add(self)

    def call(self, seconds: float, *args: Any) -> Any:
        """The result of the function.

        Args:
            seconds (`float`):
                Time limit, above 0. Starting the process and waiting for other threads do not count.
            *args:
                Arguments, JSON.

        Raises:
            TimeoutError: if the function did not return within the limit. The process was killed.
            WorkerDiedError: if the process ended (a crash in C code, no memory).
            RuntimeError: if the function raised, with the text of the exception.
            ImportError: if the process cannot be started: no such module or function.
        """
        with self._lock:
            try:
                if self._process is None:
                    self._start()
                started = time.monotonic()
                try:
                    answer = self._exchange([seconds, *args], seconds + GRACE_SECONDS)
                except WorkerDiedError:
                    # At the limit it ends itself, without a word.
                    if time.monotonic() - started >= seconds:
                        raise TimeoutError(f"not finished within {seconds:g} s") from None
                    raise
            except BaseException:  # Ctrl-C included: an answer that comes later must not pass for that of another call
                self._stop()
                raise
            if answer.get("error", "").startswith("MemoryError"):
                self._stop()  # what its caches leave may be too little for the next call as well
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def _start(self) -> None:
        command = [sys.executable, "-c", _START, json.dumps(list(map(str, sys.path))), self.target]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._unread = b""
        try:
            answer = self._exchange(None, START_LIMIT_SECONDS)
        except WorkerDiedError as error:
            raise ImportError(
                f"The process that runs {self.target!r} could not be started with {sys.executable!r}: {error}."
            ) from None
        if "error" in answer:
            raise ImportError(f"{self.target!r} could not be loaded: {answer['error']}")

    def _exchange(self, request: Any, seconds: float) -> dict[str, Any]:
        """Sends a request, if there is one, and reads a line."""
        deadline = time.monotonic() + seconds
        stdin, stdout = self._process.stdin, self._process.stdout
        try:
            if request is not None:
                data = memoryview(json.dumps(request).encode() + b"\n")
                while data:  # a raw pipe may take a part
                    data = data[stdin.write(data) :]
            while b"\n" not in self._unread:
                if not _is_readable(stdout.fileno(), deadline - time.monotonic()):
                    raise TimeoutError(f"not finished within {seconds:g} s")
                received = os.read(stdout.fileno(), 65_536)
                if not received:
                    raise WorkerDiedError(f"it ended with exit code {self._process.wait()}")
                self._unread += received
        except BrokenPipeError:
            raise WorkerDiedError(f"it ended with exit code {self._process.wait()}") from None
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            _close_pipes(process)
            process.wait()

    def _forget(self) -> None:
        """In a forked process: the worker is the parent's, and another thread may have held the lock."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            _close_pipes(process)  # else it would not see its owner end
            process.returncode = 0  # it is no child of this process: there is nothing to wait for


_workers: weakref.WeakSet[KillableWorker] = weakref.WeakSet()


def _close_pipes(process: subprocess.Popen) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


def _forget_all() -> None:
    for worker in list(_workers):
        worker._forget()


def _stop_all() -> None:
    for worker in list(_workers):
        worker._stop()


atexit.register(_stop_all)  # it would end anyway, but Python warns of processes that it finds running
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _is_readable(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read, or the other end was closed, within the time."""
    if not hasattr(select, "poll"):  # Windows, where pipes cannot be polled: the process still ends itself
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1_000))


# ---------------------------------------------------------------------------------------------------------------------
# In the process


def serve(target: str) -> None:
    """Answers requests from the standard input, a JSON list `[seconds, *args]` a line, until it is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what the function prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's business
    if hasattr(signal, "SIGALRM"):  # handlers and masks of the caller are inherited
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})

    def reply(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)()
    except Exception as error:
        reply(error=f"{type(error).__name__}: {error}")
        return
    gc.freeze()  # what the module brought stays: to look through it again and again took a tenth of the time
    _limit_memory()
    reply(value=None)
    for line in sys.stdin:
        seconds, *args = json.loads(line)
        reply(**_called(function, seconds, args))


def _called(function: Callable[..., Any], seconds: float, args: list[Any]) -> dict[str, Any]:
    _end_process_after(seconds)
    try:
        return {"value": function(*args)}
    except Exception as error:  # RecursionError and MemoryError among them
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        _end_process_after(0)


def _end_process_after(seconds: float) -> None:
    """Within any operation, also one of C code; 0 calls it off. Nobody needs to be there to kill the process."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)  # the system acts upon it: the signal has its default handler
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    else:
        faulthandler.cancel_dump_traceback_later()


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = used + MEMORY_LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file behind
    except (ImportError, OSError, ValueError):
        pass  # not Linux: the time limit alone guards
