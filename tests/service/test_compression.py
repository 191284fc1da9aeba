"""A server that compresses its answers: fewer bytes on the wire, the same masks."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import pytest

from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service import calls, networks
from tests.service.running import Server

SIDE = 512


class Counting:
    """A relay to a server that counts the bytes of its answers."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._address = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.nbytes = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()

    def _accept(self) -> None:
        caller, _ = self._listening.accept()
        server = socket.create_connection(self._address)
        threading.Thread(target=self._relay, args=(caller, server, False), daemon=True).start()
        self._relay(server, caller, True)

    def _relay(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                self.nbytes += len(data) if answers else 0
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a network without confidence, whose answers are class maps and little else."""
    root = tmp_path_factory.mktemp("repository")
    networks.save(networks.segmenter(confidence=False), root, "colours")
    return root


@pytest.fixture(scope="module", params=["none", "gzip", "deflate"])
def compressing(request: pytest.FixtureRequest, colours: Path, transport: str) -> Iterator[tuple[Server, bool]]:
    """A server, and whether it compresses."""
    with Server(colours, [f"server.compression={request.param}", "server.lame_duck_seconds=0"]) as server:
        yield server, request.param != "none"


def image() -> np.ndarray:
    """Bands of red, green and blue."""
    found = np.zeros((SIDE, SIDE, 3), np.uint8)
    for row in range(SIDE):
        found[row, :, row // 40 % 3] = 200
    return found


def segment_request() -> pb.SegmentRequest:
    raw = pb.RawImage(height_px=SIDE, width_px=SIDE, channels=3, pixels=image().tobytes())
    return pb.SegmentRequest(model="colours", images=[pb.Image(raw=raw)], format=pb.MASK_FORMAT_RAW)


def check_bytes(nbytes: int, answers: int, compressed: bool) -> None:
    plain = answers * SIDE * SIDE
    assert nbytes < plain / 30 if compressed else nbytes > plain


@pytest.mark.both_transports
def test_mask_is_the_same_in_a_thirtieth_of_the_bytes(compressing: tuple[Server, bool]) -> None:
    server, compresses = compressing
    with Counting(server.grpc) as relay:
        with grpc.insecure_channel(relay.target) as channel:
            response = calls.method(channel, "Segment")(segment_request(), timeout=30)
        (result,) = response.results
        mask = np.frombuffer(result.segmentation.mask, np.uint8).reshape(SIDE, SIDE)
        assert (mask == image().argmax(axis=2)).all()
        check_bytes(relay.nbytes, 1, compresses)


@pytest.mark.both_transports
def test_masks_of_a_stream_are_the_same_in_a_thirtieth_of_the_bytes(compressing: tuple[Server, bool]) -> None:
    server, compresses = compressing
    requests = [pb.SegmentStreamRequest(id=number, request=segment_request()) for number in range(4)]
    with Counting(server.grpc) as relay:
        with grpc.insecure_channel(relay.target) as channel:
            answers = list(calls.stream(channel, "SegmentStream")(iter(requests), timeout=30))
        assert sorted(answer.id for answer in answers) == [0, 1, 2, 3]
        check_bytes(relay.nbytes, 4, compresses)
