import asyncio

import pytest

from trl_erprm.rollout import load_engine
from trl_erprm.rollout.endpoint_engine import EndpointEngine

pytest.register_assert_rewrite("tests.rollout.contract")  # no test module, but it holds tests


@pytest.fixture
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
