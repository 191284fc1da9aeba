"""A server whose profile was measured badly finds the batch size while it serves, and keeps it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from convoy.service.client.client import Client
from convoy.service.engine import profiles
from convoy.service.engine.profiles import BatchTime
from tests.service import networks
from tests.service.running import Server

CALLERS = 16
SECONDS = 200.0


def test_profile_that_was_measured_on_a_busy_machine_is_corrected_and_stored(tmp_path: Path) -> None:
    """Each image in a larger batch seemed to take twice as long."""
    file = networks.save(networks.classifier(), tmp_path, "letters")
    with Server(tmp_path, ["engine.provider=cpu"]):
        pass
    (made,) = profiles.read(file.parent)
    one = made.batches[1].seconds
    slow = {size: BatchTime(2 * size * one, 2 * size * one) for size in made.batches if size > 1}
    profiles.write(file.parent, [msgspec.structs.replace(made, batches={1: made.batches[1], **slow})])
    over = threading.Event()
    image = np.zeros((networks.SIDE, networks.SIDE), np.uint8)
    with Server(tmp_path, ["engine.provider=cpu"]) as server, Client(server.grpc) as client:

        def call() -> None:
            while not over.is_set():
                client.classify(image, model="letters", deadline=SECONDS)

        with ThreadPoolExecutor(CALLERS) as callers:
            calls = [callers.submit(call) for _ in range(CALLERS)]
            try:
                server.wait_for_log("model letters version 1: its profile was wrong", SECONDS)
            finally:
                over.set()
            for each in calls:
                each.result()
    (found,) = profiles.read(file.parent)
    assert found.revised
    assert found.batch_size > 1
