"""The engine without a network takes the time that it is told to, and answers what a network would, in shape."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from convoy.service.client.client import Client
from convoy.service.engine import profiles
from convoy.service.engine.null_session import Sleeping
from convoy.service.engine.profiles import BatchTime, Profile
from convoy.service.engine.session import load
from tests.service import networks
from tests.service.running import Server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return networks.save(networks.classifier(), tmp_path, "letters", 1)


@pytest.mark.parametrize("size", [1, 8])
def test_batch_takes_what_it_is_said_to_take(file: Path, size: int) -> None:
    session = Sleeping(load(file, "cpu", 0, 1), 0.020, 0.005)
    taken = []
    for _ in range(5):  # a busy machine adds to some of them
        start = time.perf_counter()
        (probabilities,) = session.run([np.full((size, 8, 8, 1), 7, np.uint8)])
        taken.append(time.perf_counter() - start)
    assert 0.020 + 0.005 * size <= min(taken) < 0.5
    assert (probabilities.shape, probabilities.dtype) == ((size, 10), np.float32)
    assert not probabilities.any()


def test_answers_have_the_shapes_of_their_images(tmp_path: Path) -> None:
    file = networks.save(networks.segmenter(), tmp_path, "colours", 1)
    session = Sleeping(load(file, "cpu", 0, 1), 0.001, 0.001)
    for height, width in ((8, 16), (16, 8), (8, 16)):
        mask, confidence = session.run([np.full((2, height, width, 3), 7, np.uint8)])
        assert mask.shape == confidence.shape == (2, height, width)


def measured(file: Path, fixed: float, each: float) -> None:
    """Puts the times of its batches beside a file, as an engine measures them where nothing delays it."""
    machine = profiles.machine(file, Sleeping(load(file, "cpu", 0, 1), fixed, each).provider, 0, 0)
    batches = {size: BatchTime(fixed + size * each, 0.001) for size in (1, 2, 4, 8, 16, 32)}
    profiles.write(file.parent, [Profile(machine=machine, shape=(8, 8, 1), dtype="uint8", most=32, batches=batches)])


def test_concurrent_callers_ride_in_batches(file: Path) -> None:
    """While one batch runs, the next one comes together."""
    measured(file, 0.1, 0.001)  # a pause while it is measured would make larger batches seem to bring nothing
    # So long that also a slow machine sends many requests meanwhile.
    settings = ["engine.sleep_ms=[100, 1]", "server.lame_duck_seconds=0"]
    with Server(file.parents[2], settings) as server, Client(server.grpc) as client, ThreadPoolExecutor(16) as callers:
        image = np.full((8, 8), 200, np.uint8)
        list(callers.map(lambda _: client.classify(image, "letters"), range(160)))
        assert server.total("convoy_batch_size_sum") == 160
        assert server.total("convoy_batch_size_count") < 160 / 4


def test_server_tells_that_no_network_runs(file: Path) -> None:
    settings = ["engine.sleep_ms=[5, 1.5]", "server.lame_duck_seconds=0"]
    with Server(file.parents[2], settings) as server, Client(server.grpc) as client:
        answer = client.classify(np.full((8, 8), 200, np.uint8), "letters")
        assert answer.timings.run >= 0.0065
        assert {label.probability for label in answer.labels} == {0.0}
        (model,) = client.models()
        assert "sleep 5 + 1.5 n ms" in str(model)
