"""A server whose models have several sessions: batches run side by side, and a change of their number fails nobody."""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from convoy.service.client.client import Client
from tests.service import networks
from tests.service.running import Server
from tests.service.test_overload import PATIENT

ONE_EACH = ["batching.max_batch_size=1", "server.lame_duck_seconds=0", "engine.threads=2", PATIENT]
SECONDS = 0.1  # of a batch


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("repository")
    for name, instances in (("one", 1), ("two", 2)):
        networks.save(networks.classifier(), root, name, 1)
        (root / name / "model.toml").write_text(f"instances = {instances}\n")
    with Server(root, [*ONE_EACH, f"engine.sleep_ms=[{1000 * SECONDS}, 0]"]) as running:
        yield running


def busy(client: Client, model: str, count: int) -> float:
    """Seconds that so many requests take which come together."""
    image = np.full((8, 8), 200, np.uint8)
    with ThreadPoolExecutor(count) as callers:
        start = time.perf_counter()
        list(callers.map(lambda _: client.classify(image, model), range(count)))
        return time.perf_counter() - start


@pytest.mark.alone
def test_batches_run_side_by_side_on_the_sessions_of_a_model(server: Server) -> None:
    with Client(server.grpc) as client:
        assert busy(client, "one", 8) >= 8 * SECONDS
        # A busy machine adds to it: one after the other, they would never take less than 8.
        taken = (busy(client, "two", 8) for _ in range(20))
        fewest = next((seconds for seconds in taken if seconds < 7 * SECONDS), math.inf)
        assert 4 * SECONDS <= fewest < 7 * SECONDS


def test_models_share_the_device_by_their_instances(server: Server) -> None:
    """A batch of the one with a single session takes all of it, so nothing runs beside it."""
    with Client(server.grpc) as client, ThreadPoolExecutor(2) as both:
        start = time.perf_counter()
        list(both.map(lambda model: busy(client, model, 4), ("one", "two")))
        assert time.perf_counter() - start >= 6 * SECONDS


def test_change_of_their_number_fails_nobody(server: Server) -> None:
    settings = server.repository / "two" / "model.toml"
    incoming = settings.with_name(".incoming")
    over = threading.Event()
    image = np.full((8, 8), 200, np.uint8)

    def call(client: Client) -> int:
        answered = 0
        while not over.is_set():
            client.classify(image, "two")
            answered += 1
        return answered

    with Client(server.grpc) as client, ThreadPoolExecutor(6) as callers:
        calling = [callers.submit(call, client) for _ in range(6)]
        try:
            for instances in (1, 3, 2):  # as many as at first: the server is shared
                before = len(server.log)
                incoming.write_text(f"instances = {instances}\n")
                incoming.replace(settings)  # whoever reads it meanwhile never finds it empty
                found = server.wait_for_log("model two version 1 serves", after=before)
                assert found["instances"] == instances
        finally:
            over.set()
        assert all(each.result() > 0 for each in calling)
