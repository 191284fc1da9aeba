"""A caller with the heaviest pictures: the others are answered as if it were not there."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service import networks
from tests.service.calls import method
from tests.service.images import bombs
from tests.service.running import Server
from tests.service.test_overload import _wait_until, assert_all_slots_are_freed
from tests.service.test_vision import encoded

ALONE = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own


def classify(data: bytes) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=data)])


@contextmanager
def flooding(server: Server, data: bytes, callers: int) -> Iterator[list[int]]:
    """Sends a picture all the time, `callers` at a time; yields a list that grows with each answer."""
    over = threading.Event()
    answers: list[int] = []
    with grpc.insecure_channel(server.grpc, ALONE) as channel, ThreadPoolExecutor(callers) as pool:
        call = method(channel, "Classify")

        def flood() -> None:
            while not over.is_set():
                try:
                    call(classify(data), timeout=60)
                    answers.append(1)
                except (grpc.RpcError, ValueError):  # ValueError: the channel has been closed, at the end
                    over.wait(0.05)

        flooders = [pool.submit(flood) for _ in range(callers)]
        try:
            yield answers
        finally:
            over.set()
            channel.close()
            for each in flooders:
                each.result()


def served(server: Server, calls: int, seconds: float) -> float:
    """The share of a good caller's calls that are answered in time."""
    picture = encoded(np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8), "JPEG")
    answered = 0
    with grpc.insecure_channel(server.grpc, ALONE) as channel:
        call = method(channel, "Classify")
        for _ in range(calls):
            try:
                call(classify(picture), timeout=seconds)
                answered += 1
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017
    return answered / calls


@pytest.mark.both_transports
@pytest.mark.alone
def test_flood_of_the_heaviest_pictures_takes_nothing_from_a_good_caller(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    with Server(tmp_path, ["server.lame_duck_seconds=0"]) as server:
        with flooding(server, bombs.heaviest(), 8):
            _wait_until(lambda: server.total("convoy_requests_in_flight") >= 8, 30)
            assert served(server, 40, 2.0) >= 0.95
        assert_all_slots_are_freed(server)


@pytest.mark.alone
def test_heavy_picture_whose_caller_has_gone_is_not_decoded(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    settings = ["server.lame_duck_seconds=0", "limits.decode_threads=2"]
    with Server(tmp_path, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        call = method(channel, "Classify")
        request = classify(bombs.heaviest())

        def seconds() -> float:
            began = time.monotonic()
            call(request, timeout=120)
            return time.monotonic() - began

        # The shorter of two: a pause would count as decoding time.
        alone = min(seconds(), seconds())
        late = [call.future(request, timeout=alone / 4) for _ in range(20)]
        for each in late:
            assert each.exception(120).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # One of them may have begun; twenty would take twenty times as long.
        assert seconds() < 10 * alone
        assert_all_slots_are_freed(server)
