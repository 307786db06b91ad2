import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trl_erprm.worker import KillableWorker, WorkerDiedError

ROOT = Path(__file__).parents[1]
TARGET = "tests.worker_targets:load"


@pytest.fixture
def worker():
    worker = KillableWorker(TARGET)
    yield worker
    worker._stop()


@pytest.mark.parametrize("value", [None, 1.5, "\u00e9\ud800\n", ["a", {"b": [True]}], "x" * 1_000_000])
def test_arguments_and_results_pass_unchanged(worker, value):
    assert worker.call(10, "echo", value) == value


def test_process_is_another_and_is_kept(worker):
    first = worker.call(10, "process_id")
    assert first != os.getpid()
    assert worker.call(10, "process_id") == first


def test_what_is_printed_is_no_answer(worker):
    assert worker.call(10, "print_something") == "answer"
    assert worker.call(10, "echo", 1) == 1


@pytest.mark.parametrize("call", [("sleep", 60), ("compute_one_huge_number",), ("swallow",)])
def test_time_limit_strikes_within_any_operation(worker, call):
    before = worker.call(10, "process_id")
    with pytest.raises(TimeoutError, match="not finished within 0.2 s"):
        worker.call(0.2, *call)
    assert worker.call(10, "process_id") != before  # the next call has a new process


def test_time_limit_holds_where_the_caller_ignores_alarms(worker, monkeypatch):
    monkeypatch.setattr("trl_erprm.worker.GRACE_SECONDS", 60)  # the process has to end itself
    previous = signal.signal(signal.SIGALRM, signal.SIG_IGN)  # which a process inherits
    try:
        with pytest.raises(TimeoutError):
            worker.call(0.1, "sleep", 4)
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_alarm_of_the_caller_is_left_alone(worker):
    rung = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 30)
        with pytest.raises(TimeoutError):
            worker.call(0.1, "sleep", 60)
        assert 20 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert worker.call(10, "sleep", 0.2) is None  # interrupted by it, and goes on waiting
        assert rung == [True]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_process_that_does_not_end_itself_is_killed(worker, monkeypatch):
    monkeypatch.setattr("trl_erprm.worker.GRACE_SECONDS", 0.1)
    pid = worker.call(10, "process_id")
    os.kill(pid, signal.SIGSTOP)  # its own timer cannot strike
    with pytest.raises(TimeoutError):
        worker.call(0.1, "echo", 1)
    assert worker.call(10, "process_id") != pid


def test_crash_is_an_error_of_one_call(worker):
    with pytest.raises(WorkerDiedError, match=f"exit code {-signal.SIGSEGV}"):
        worker.call(10, "crash")
    assert worker.call(10, "echo", 1) == 1
    os.kill(worker.call(10, "process_id"), signal.SIGKILL)  # as the system does where memory runs out
    with pytest.raises(WorkerDiedError):
        worker.call(10, "echo", 1)
    assert worker.call(10, "echo", 1) == 1


def test_exceptions_leave_the_process_running(worker):
    pid = worker.call(10, "process_id")
    with pytest.raises(RuntimeError, match="RecursionError: maximum recursion depth"):
        worker.call(10, "recurse")
    with pytest.raises(RuntimeError, match="KeyError: 'no_such_function'"):
        worker.call(10, "no_such_function")
    assert worker.call(10, "process_id") == pid


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux only")
def test_memory_is_limited(worker):
    assert worker.call(60, "allocate", 0.01) > 0
    before = worker.call(10, "process_id")
    with pytest.raises(RuntimeError, match="MemoryError"):
        worker.call(60, "allocate", 3)
    assert worker.call(10, "process_id") != before  # a new one, with all of the memory again


def test_threads_take_turns_and_get_their_own_answers(worker):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: worker.call(10, "echo", i), range(400))) == list(range(400))


def test_interrupted_call_leaves_no_answer_behind(worker, monkeypatch):
    worker.call(10, "echo", 1)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_erprm.worker._is_readable", interrupt)
    with pytest.raises(KeyboardInterrupt):
        worker.call(10, "echo", "of the interrupted call")
    monkeypatch.undo()
    assert worker.call(10, "echo", "of the next") == "of the next"


@pytest.mark.parametrize(
    "target, message",
    [
        ("no_such_module:load", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("tests.worker_targets:no_such_name", "AttributeError"),
        ("tests.worker_targets:load_nothing", "could not be loaded: OSError: no such file"),
    ],
)
def test_function_that_cannot_be_loaded(target, message):
    with pytest.raises(ImportError, match=message):
        KillableWorker(target).call(10)


def test_python_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ImportError, match="could not be started with '/bin/false': it ended with exit code 1"):
        KillableWorker(TARGET).call(10)


def run(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_forked_process_starts_its_own():
    done = run(
        """
        import json, os, threading
        from trl_erprm.worker import KillableWorker

        worker = KillableWorker("tests.worker_targets:load")
        own = worker.call(10, "process_id")
        # forked while a thread waits for an answer, with the lock held
        thread = threading.Thread(target=worker.call, args=(10, "sleep", 0.5))
        thread.start()
        while not worker._lock.locked():
            pass
        read, write = os.pipe()
        if os.fork() == 0:
            found = [worker.call(10, "echo", i) for i in range(3)], worker.call(10, "process_id")
            os.write(write, json.dumps(found).encode())
            os._exit(0)
        answers, of_child = json.loads(os.read(read, 1_000))
        thread.join()
        assert answers == [0, 1, 2], answers
        assert of_child != own
        assert worker.call(10, "process_id") == own
        assert worker.call(10, "echo", "still") == "still"
        """
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize("is_busy", [False, True])
def test_process_ends_with_its_owner(is_busy):
    code = f"""
        import threading, time
        from trl_erprm.worker import KillableWorker

        worker = KillableWorker("tests.worker_targets:load")
        pid = worker.call(10, "process_id")
        if {is_busy}:
            threading.Thread(target=worker.call, args=(1, "compute_one_huge_number"), daemon=True).start()
            while not worker._lock.locked():
                pass
        print(pid, flush=True)
        time.sleep(60)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with owner:
        descriptor = os.pidfd_open(json.loads(owner.stdout.readline()))
        try:
            owner.kill()  # nothing of it gets a chance to tidy up
            owner.wait()
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            assert poll.poll(20_000), "the worker outlived its owner"
        finally:
            os.close(descriptor)
