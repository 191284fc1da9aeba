"""What the server adds: CPU time of a request, beside onnxruntime alone, a bare echo, or the same server without."""

import statistics
import time
from pathlib import Path

import grpc
import numpy as np

from convoy.service.engine import session as sessions
from tests.performance import load, models
from tests.performance.echo import METHOD
from tests.performance.figure import ANSWER_BYTES, CLASSIFY, INFER, Figure, cpu_per_request, request, serving
from tests.performance.processes import Echo
from tests.performance.raw_load import REQUESTS, ClientName, sending
from tests.performance.rounds import in_rounds, variants
from tests.performance.trials import in_turns, ratio
from tests.service.calls import infer_request
from tests.service.running import Server

SLEEPLESS = "engine.sleep_ms=[0, 0]"
_CONNECTIONS = 8  # of the raw client, over which the kernel distributes 16 callers among front ends


def real_network(root: Path, architecture: str, images: int, pairs: int) -> Figure:
    """P1: CPU time of an image in a loop around onnxruntime, over that of the server and all its processes."""
    file = models.real(root, architecture)
    session = sessions.load(file, "cpu", 0, 0)
    spec = session.document.image if session.document is not None else None
    assert spec is not None
    assert spec.height is not None
    with serving(root) as server:
        size = 8
        batch = np.zeros((size, spec.height, spec.height, 3), np.uint8)
        body = request(spec.height, 3, size)

        def raw() -> float:
            start = time.process_time()
            for _ in range(images // size):
                session.run([batch])
            return (time.process_time() - start) / images

        def served() -> float:
            trial = lambda: load.closed(server.grpc, CLASSIFY, body, 2, images // size)  # noqa: E731
            return cpu_per_request(server.process.pid, trial) / size

        raws, serveds = in_turns(raw, served, pairs)
    found = ratio(raws, serveds)
    what = (
        f"CPU time of an image in onnxruntime alone, divided by that in the server: {architecture}, "
        f"{size} raw images a request"
    )
    note = f"{found}; {1000 * statistics.median(raws):.1f} ms of CPU time an image"
    return Figure("P1", what, ">= 0.97", note, found.median >= 0.97)


def unary(
    root: Path,
    side: int,
    channels: int,
    images: int,
    pairs: int,
    wanted: float | None,
    number: str,
    client: ClientName = "grpcio",
) -> Figure:
    """P3, P4, N2, N3, N6: CPU time of the server for a request, or an image of many in one, over that of a bare
    echo."""
    body, one = request(side, channels, images), request(side, channels)
    many = REQUESTS[client]
    with (
        serving(root, SLEEPLESS) as server,
        Echo(ANSWER_BYTES) as echo,
        sending(client, server.grpc, CLASSIFY, body) as asked,
        sending(client, echo.target, METHOD, one) as echoed,
    ):
        callers, count = (16, many) if images == 1 else (4, max(60, many // images))
        ours, theirs = in_turns(
            lambda: cpu_per_request(server.process.pid, lambda: asked(callers, count)) / images,
            lambda: cpu_per_request(echo.process.pid, lambda: echoed(16, many)),
            pairs,
        )
    kilobytes = side * side * channels / 1000
    together = f", {images} in a request" if images > 1 else ""
    what = (
        f"CPU time of the server for an image of {kilobytes:.0f} kB{together}, divided by a bare echo's for a request"
    )
    return _over_echo(number, what, wanted, ours, theirs, client)


def tensors(root: Path, pairs: int, number: str = "P18", client: ClientName = "grpcio") -> Figure:
    """P18, N1: CPU time of the server for a ModelInfer of 32 bytes, over that of a bare echo."""
    models.features(root, "features")
    body = infer_request("features", np.ones((1, 2, 4), np.float32)).SerializeToString()
    with (
        serving(root, SLEEPLESS) as server,
        Echo(ANSWER_BYTES) as echo,
        sending(client, server.grpc, INFER, body) as asked,
        sending(client, echo.target, METHOD, body) as echoed,
    ):
        ours, theirs = in_turns(
            lambda: cpu_per_request(server.process.pid, lambda: asked(16, REQUESTS[client])),
            lambda: cpu_per_request(echo.process.pid, lambda: echoed(16, REQUESTS[client])),
            pairs,
        )
    what = "CPU time of the server for a ModelInfer of 32 bytes, divided by a bare echo's for a request"
    return _over_echo(number, what, 0.30, ours, theirs, client)


def control(pairs: int) -> Figure:
    """N1: two echoes that are the same. A ratio that is no further from 1 than theirs is noise."""
    body = request(32, 1)
    with (
        Echo(ANSWER_BYTES) as one,
        Echo(ANSWER_BYTES) as other,
        sending("raw", one.target, METHOD, body) as asked_one,
        sending("raw", other.target, METHOD, body) as asked_other,
    ):
        found = ratio(
            *in_turns(
                lambda: cpu_per_request(one.process.pid, lambda: asked_one(16, REQUESTS["raw"])),
                lambda: cpu_per_request(other.process.pid, lambda: asked_other(16, REQUESTS["raw"])),
                pairs,
            )
        )
    what = "control: CPU time of a bare echo for a request, divided by that of another one, raw client"
    return Figure("N1", what, "", str(found), None)


def front_ends(root: Path, pairs: int, number: str = "P13", client: ClientName = "grpcio") -> Figure:
    """P13, N10: CPU time of a request with two front ends, over one. The raw client has connections to both."""
    body = request(32, 1)
    with (
        serving(root, SLEEPLESS, "server.frontends=2") as two,
        serving(root, SLEEPLESS) as one,
        sending(client, two.grpc, CLASSIFY, body, _CONNECTIONS) as asked_two,
        sending(client, one.grpc, CLASSIFY, body, _CONNECTIONS) as asked_one,
    ):
        ours, theirs = in_turns(
            lambda: cpu_per_request(two.process.pid, lambda: asked_two(16, REQUESTS[client])),
            lambda: cpu_per_request(one.process.pid, lambda: asked_one(16, REQUESTS[client])),
            pairs,
        )
    found = ratio(ours, theirs)
    by = f", raw client, {_CONNECTIONS} connections" if client == "raw" else ""
    what = f"CPU time of a request with two front ends, divided by that with one{by}"
    return Figure(number, what, "<= 1.05", str(found), found.median <= 1.05)


def refusals(root: Path, pairs: int) -> Figure:
    """P6: CPU time of the server for a request that it refuses, over that of a bare echo."""
    body = request(32, 1)
    with serving(root, "engine.sleep_ms=[60, 0]", "batching.max_batch_size=1") as server, Echo(ANSWER_BYTES) as echo:

        def refused() -> float:
            trial = lambda: load.closed(server.grpc, CLASSIFY, body, 16, 1200, deadline=0.05)  # noqa: E731
            return cpu_per_request(server.process.pid, lambda: _refused(trial()))

        def echoed() -> float:
            trial = lambda: load.closed(echo.target, METHOD, body, 16, 1200)  # noqa: E731
            return cpu_per_request(echo.process.pid, trial)

        ours, theirs = in_turns(refused, echoed, pairs)
    what = "CPU time of the server for a request that it refuses, divided by a bare echo's"
    return _over_echo("P6", what, 1.10, ours, theirs, "grpcio")


def full_queue(root: Path, pairs: int) -> Figure:
    """N7: the same where the queue is full."""
    body = request(32, 1)
    # One image runs and one waits, in which time thousands are refused.
    settings = ("engine.sleep_ms=[200, 0]", "batching.max_batch_size=1", "batching.max_queue=1")
    with (
        serving(root, *settings) as server,
        Echo(ANSWER_BYTES) as echo,
        sending("raw", server.grpc, CLASSIFY, body) as asked,
        sending("raw", echo.target, METHOD, body) as echoed,
    ):
        ours, theirs = in_turns(
            lambda: cpu_per_request(server.process.pid, lambda: _refused(asked(16, REQUESTS["raw"]))),
            lambda: cpu_per_request(echo.process.pid, lambda: echoed(16, REQUESTS["raw"])),
            pairs,
        )
    what = "CPU time of the server for a request that it refuses because the queue is full, divided by a bare echo's"
    return _over_echo("N7", what, 0.25, ours, theirs, "raw")


def _refused(answers: load.Answers) -> load.Answers:
    requests = len(answers.errors) + len(answers.latencies)
    assert answers.errors.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 0.99 * requests, answers.errors[:3]
    return answers


def _over_echo(
    number: str, what: str, wanted: float | None, ours: list[float], theirs: list[float], client: ClientName
) -> Figure:
    found = ratio(ours, theirs)
    micro = f"{1e6 * statistics.median(ours):.0f} us over {1e6 * statistics.median(theirs):.0f} us"
    return Figure(
        number,
        f"{what}{', raw client' if client == 'raw' else ''}",
        f"<= {wanted:.2f}" if wanted is not None else "",
        f"{found}; {micro}",
        None if wanted is None else found.median <= wanted,
    )


def observing(root: Path, rounds: int) -> Figure:
    """P16: CPU time of a request, over that of a server in whose processes nothing is counted or timed."""
    body = request(32, 1)

    def trial(server: Server) -> float:
        return cpu_per_request(server.process.pid, lambda: load.closed(server.grpc, CLASSIFY, body, 16, 60))

    # One request a batch, so that all batches are alike.
    found = ratio(*in_rounds(variants(root, SLEEPLESS, "batching.max_batch_size=1"), "unobserved", trial, rounds))
    what = "CPU time of a request, divided by that in a server whose metrics and timings do nothing"
    return Figure("P16", what, "<= 1.02", str(found), found.median <= 1.02)
