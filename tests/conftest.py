"""What every test runs under: no network, no telemetry, few threads, a fixed seed."""

import os

# Set before torch and the Hugging Face libraries are imported: they read these once, at import.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",  # also turns off TRL's own telemetry, which is sent through huggingface_hub
    DO_NOT_TRACK="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "2")

import random  # noqa: E402
import socket  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

REPO_ROOT = Path(__file__).resolve().parents[1]
LOOPBACK_HOSTS = {"localhost", "::1", "", None}


def is_loopback(host: str | bytes | None) -> bool:
    """Whether `host` names this machine. An empty host or `None` stands for a local address in the socket calls."""
    host = host.decode() if isinstance(host, bytes) else host
    return host in LOOPBACK_HOSTS or host.startswith("127.") or host == socket.gethostname()


class NetworkAccessError(RuntimeError):
    """A test tried to reach another machine."""


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Raise `NetworkAccessError` where a test in this process connects to, or looks up, another machine."""

    def check(host: str | bytes | None) -> None:
        if not is_loopback(host):
            raise NetworkAccessError(
                f"A test tried to reach {host!r}. Tests run without a network: build tiny models from a config and "
                "rows in code, or read files through the fixture `shared_data`."
            )

    def guard_connect(connect):
        def guarded(self: socket.socket, address):
            if self.family in (socket.AF_INET, socket.AF_INET6):  # a Unix socket cannot leave this machine
                check(address[0])
            return connect(self, address)

        return guarded

    def guarded_getaddrinfo(host, *args, **kwargs):
        check(host)
        return getaddrinfo(host, *args, **kwargs)

    getaddrinfo = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard_connect(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guard_connect(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start each test from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Start each test with the number of threads that the environment asks for, whatever a test before it set."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def one_environment() -> Iterator[None]:
    """
    Keep `os.environ` the object that libraries took hold of when they were imported: behind a `Dataset.map` over
    several processes, `datasets` leaves a copy in its place, and rich would no longer see what a test sets.
    """
    environment = os.environ
    yield
    os.environ = environment  # noqa: B003


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """
    Folder with samples of public datasets, which are not part of this repository: `gsm8k/train.jsonl`,
    `prm800k/...`. `TRL_ERPRM_DATA` names another place. A test that asks for it is skipped where it is absent.
    """
    path = Path(os.environ.get("TRL_ERPRM_DATA", REPO_ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no data folder at {path}; set TRL_ERPRM_DATA to the folder that holds gsm8k/, prm800k/, ...")
    return path


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory):
    """A small arithmetic task and the directory of a policy trained on it for a few seconds: `(task, path)`."""
    from trl_erprm.arithmetic import ArithmeticTask, train_policy

    task = ArithmeticTask(num_operations=2, num_train=150, num_validation=10, num_test=40)
    path = tmp_path_factory.mktemp("tiny") / "policy"
    return task, str(train_policy(task, path, num_steps=120, batch_size=32, solutions_per_problem=2))
