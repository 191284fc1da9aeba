"""What a picture over HTTP costs the server, beside the same one over gRPC."""

import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.performance.costs import SLEEPLESS
from tests.performance.figure import CLASSIFY, Figure, cpu_per_request, serving
from tests.performance.load import Answers
from tests.performance.raw_load import sending
from tests.performance.trials import in_turns, ratio
from tests.service.frontend.test_reduction import photograph

_WANTED = 1.3
_CALLERS = 16
_REQUESTS = 1600


def classify(root: Path, pairs: int) -> Figure:
    """H1: CPU time of the server for a JPEG over HTTP, over that for the same one over gRPC."""
    file = photograph(224, 224)
    body = pb.ClassifyRequest(images=[pb.Image(encoded=file)]).SerializeToString()
    with serving(root, SLEEPLESS) as server, sending("raw", server.grpc, CLASSIFY, body, _CALLERS) as asked:
        sent = (
            b"POST /v1/models/nothing:classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/jpeg\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(file), file)
        )
        ours, theirs = in_turns(
            lambda: cpu_per_request(server.process.pid, lambda: over_http(server.http, sent)),
            lambda: cpu_per_request(server.process.pid, lambda: asked(_CALLERS, _REQUESTS)),
            pairs,
        )
    found = ratio(ours, theirs)
    what = f"CPU time of the server for a JPEG of {len(file) / 1000:.0f} kB over HTTP, divided by that over gRPC"
    micro = f"{1e6 * statistics.median(ours):.0f} us over {1e6 * statistics.median(theirs):.0f} us"
    return Figure("H1", what, f"<= {_WANTED}", f"{found}; {micro}", found.median <= _WANTED)


def over_http(url: str, sent: bytes) -> Answers:
    """Callers, each of whom sends the next request over its connection after the answer."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    began = time.perf_counter()

    def call(_: int) -> list[float]:
        latencies = []
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            for _ in range(_REQUESTS // _CALLERS):
                start = time.perf_counter()
                connection.sendall(sent)
                _receive(connection)
                latencies.append(time.perf_counter() - start)
        return latencies

    with ThreadPoolExecutor(_CALLERS) as threads:
        latencies = [each for found in threads.map(call, range(_CALLERS)) for each in found]
    return Answers(latencies, [0.0] * len(latencies), [], time.perf_counter() - began, b"")


def _receive(connection: socket.socket) -> None:
    head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head[:200]
    (length,) = (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
