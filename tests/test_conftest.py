"""The guards of conftest.py hold."""

import os
import random
import socket
import urllib.request

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("host", ["93.184.216.34", "2606:2800:220:1::1"])
def test_connecting_to_another_machine_raises(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection, pytest.raises(RuntimeError, match="tried to reach"):
        connection.connect((host, 80))


def test_looking_up_another_machine_raises():
    with pytest.raises(RuntimeError, match="huggingface.co.*shared_data"):
        urllib.request.urlopen("https://huggingface.co")


def test_loopback_stays_open():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        for host in ("127.0.0.1", "localhost"):
            with socket.create_connection((host, server.getsockname()[1]), timeout=5):
                pass


def test_hub_is_offline_and_telemetry_off():
    from huggingface_hub import constants
    from transformers.utils.hub import is_offline_mode

    assert constants.HF_HUB_OFFLINE and constants.HF_HUB_DISABLE_TELEMETRY
    assert is_offline_mode()


@pytest.mark.parametrize("attempt", [1, 2])
def test_each_test_starts_from_the_same_random_state(attempt):
    drawn = (random.random(), np.random.rand(), torch.rand(()).item())
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())


@pytest.mark.parametrize("attempt", [1, 2])
def test_threads_are_few(attempt):
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(3)  # the next test shall not see it
