"""What the server adds: CPU time of a request, beside onnxruntime alone, a bare echo, or the same server without."""

import statistics
import time
from pathlib import Path

import grpc
import numpy as np

from convoy.service.engine import session as sessions
from tests.performance import load, models
from tests.performance.figure import ANSWER_BYTES, CLASSIFY, INFER, Figure, cpu_per_request, request, serving
from tests.performance.processes import Echo
from tests.performance.rounds import in_rounds, variants
from tests.performance.trials import in_turns, ratio
from tests.service.calls import infer_request
from tests.service.running import Server


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


def unary(root: Path, side: int, channels: int, images: int, pairs: int, wanted: float | None, number: str) -> Figure:
    """P3, P4: CPU time of the server for a request, or an image of many in one, over that of a bare echo."""
    body, one = request(side, channels, images), request(side, channels)
    with serving(root, "engine.sleep_ms=[0, 0]") as server, Echo(ANSWER_BYTES) as echo:
        count = max(60, 1200 // images)
        ours, theirs = in_turns(
            lambda: (
                cpu_per_request(
                    server.process.pid,
                    lambda: load.closed(server.grpc, CLASSIFY, body, 16 if images == 1 else 4, count),
                )
                / images
            ),
            lambda: cpu_per_request(
                echo.process.pid, lambda: load.closed(echo.target, "/echo.Echo/Echo", one, 16, 1200)
            ),
            pairs,
        )
    found = ratio(ours, theirs)
    kilobytes = side * side * channels / 1000
    together = f", {images} in a request" if images > 1 else ""
    what = (
        f"CPU time of the server for an image of {kilobytes:.0f} kB{together}, divided by a bare echo's for a request"
    )
    micro = f"{1e6 * statistics.median(ours):.0f} us over {1e6 * statistics.median(theirs):.0f} us"
    return Figure(
        number,
        what,
        f"<= {wanted:.2f}" if wanted is not None else "",
        f"{found}; {micro}",
        None if wanted is None else found.median <= wanted,
    )


def tensors(root: Path, pairs: int) -> Figure:
    """P18: CPU time of the server for a ModelInfer of 32 bytes, over that of a bare echo."""
    models.features(root, "features")
    body = infer_request("features", np.ones((1, 2, 4), np.float32)).SerializeToString()
    with serving(root, "engine.sleep_ms=[0, 0]") as server, Echo(ANSWER_BYTES) as echo:
        ours, theirs = in_turns(
            lambda: cpu_per_request(server.process.pid, lambda: load.closed(server.grpc, INFER, body, 16, 1200)),
            lambda: cpu_per_request(
                echo.process.pid, lambda: load.closed(echo.target, "/echo.Echo/Echo", body, 16, 1200)
            ),
            pairs,
        )
    found = ratio(ours, theirs)
    what = "CPU time of the server for a ModelInfer of 32 bytes, divided by a bare echo's for a request"
    micro = f"{1e6 * statistics.median(ours):.0f} us over {1e6 * statistics.median(theirs):.0f} us"
    return Figure("P18", what, "<= 0.30", f"{found}; {micro}", found.median <= 0.30)


def front_ends(root: Path, pairs: int) -> Figure:
    """P13: CPU time of a request with two front ends, over one."""
    body = request(32, 1)
    with (
        serving(root, "engine.sleep_ms=[0, 0]", "server.frontends=2") as two,
        serving(root, "engine.sleep_ms=[0, 0]") as one,
    ):
        ours, theirs = in_turns(
            *(
                lambda server=server: cpu_per_request(  # type: ignore[misc]
                    server.process.pid, lambda: load.closed(server.grpc, CLASSIFY, body, 16, 1200)
                )
                for server in (two, one)
            ),
            pairs,
        )
    found = ratio(ours, theirs)
    return Figure(
        "P13",
        "CPU time of a request with two front ends, divided by that with one",
        "<= 1.05",
        str(found),
        found.median <= 1.05,
    )


def refusals(root: Path, pairs: int) -> Figure:
    """P6: CPU time of the server for a request that it refuses, over that of a bare echo."""
    body = request(32, 1)
    with serving(root, "engine.sleep_ms=[60, 0]", "batching.max_batch_size=1") as server, Echo(ANSWER_BYTES) as echo:

        def refused() -> float:
            def trial() -> load.Answers:
                answers = load.closed(server.grpc, CLASSIFY, body, 16, 1200, deadline=0.05)
                assert answers.errors.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 0.99 * 1200, answers.errors[:3]
                return answers

            return cpu_per_request(server.process.pid, trial)

        def echoed() -> float:
            trial = lambda: load.closed(echo.target, "/echo.Echo/Echo", body, 16, 1200)  # noqa: E731
            return cpu_per_request(echo.process.pid, trial)

        ours, theirs = in_turns(refused, echoed, pairs)
    found = ratio(ours, theirs)
    micro = f"{1e6 * statistics.median(ours):.0f} us over {1e6 * statistics.median(theirs):.0f} us"
    what = "CPU time of the server for a request that it refuses, divided by a bare echo's"
    return Figure("P6", what, "<= 1.10", f"{found}; {micro}", found.median <= 1.1)


def observing(root: Path, rounds: int) -> Figure:
    """P16: CPU time of a request, over that of a server in whose processes nothing is counted or timed."""
    body = request(32, 1)

    def trial(server: Server) -> float:
        return cpu_per_request(server.process.pid, lambda: load.closed(server.grpc, CLASSIFY, body, 16, 60))

    # One request a batch, so that all batches are alike.
    found = ratio(*in_rounds(variants(root, SLEEPLESS, "batching.max_batch_size=1"), "unobserved", trial, rounds))
    what = "CPU time of a request, divided by that in a server whose metrics and timings do nothing"
    return Figure("P16", what, "<= 1.02", str(found), found.median <= 1.02)


SLEEPLESS = "engine.sleep_ms=[0, 0]"
