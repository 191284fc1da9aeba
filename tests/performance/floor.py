"""The tiny request: what one costs in each way in which grpcio or libnghttp2 can serve it, and in ours."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.performance import load
from tests.performance.echo import METHOD, STREAM
from tests.performance.figure import ANSWER_BYTES, CLASSIFY, Figure, cpu_per_request, request, serving
from tests.performance.processes import Echo
from tests.performance.trials import ratio

ECHOES: dict[str, tuple[str, dict[str, str]]] = {
    "grpc.aio on uvloop": ("uvloop", {}),
    "libnghttp2 on uvloop": ("nghttp2", {}),
    "grpc.aio on asyncio's loop": ("asyncio", {}),
    "the server of threads": ("threads", {}),
    "grpc.aio on uvloop, GRPC_POLL_STRATEGY=poll": ("uvloop", {"GRPC_POLL_STRATEGY": "poll"}),
    "grpc.aio on uvloop, GRPC_EXPERIMENTS=event_engine_client,event_engine_listener": (
        "uvloop",
        {"GRPC_EXPERIMENTS": "event_engine_client,event_engine_listener"},
    ),
}
_REQUESTS = 1200
_MANY = 32


def tiny(root: Path, rounds: int) -> list[Figure]:
    """CPU time of the server for an image of 1 kB, each way beside the first one: a bare echo, call by call."""
    body = request(32, 1)
    many = request(32, 1, _MANY)
    streamed, many_streamed = (
        pb.ClassifyStreamRequest(id=1, request=pb.ClassifyRequest.FromString(each)).SerializeToString()
        for each in (body, many)
    )
    with ExitStack() as stack:
        ways: dict[str, Callable[[], float]] = {}
        for name, (kind, environment) in ECHOES.items():
            echo = stack.enter_context(Echo(ANSWER_BYTES, kind=kind, environment=environment))
            ways[f"a bare echo by {name}"] = _way(echo.process.pid, load.closed, echo.target, METHOD, body, 1)
            if not environment:
                ways[f"the same over a stream, {name}"] = _way(
                    echo.process.pid, load.streamed, echo.target, STREAM, body, 1
                )
        server = stack.enter_context(serving(root, "engine.sleep_ms=[0, 0]"))
        pid, target, stream = server.process.pid, server.grpc, f"{CLASSIFY}Stream"
        ways["Convoy, one image a call"] = _way(pid, load.closed, target, CLASSIFY, body, 1)
        ways["Convoy, one image a message of a stream"] = _way(pid, load.streamed, target, stream, streamed, 1)
        ways[f"Convoy, {_MANY} images a call"] = _way(pid, load.closed, target, CLASSIFY, many, _MANY)
        ways[f"Convoy, {_MANY} images a message of a stream"] = _way(
            pid, load.streamed, target, stream, many_streamed, _MANY
        )
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                seconds = ways[name]()
                if turn:
                    found[name].append(seconds)
    base = next(iter(found.values()))
    return [_line(name, seconds, base) for name, seconds in found.items()]


def _way(
    pid: int, send: Callable[..., load.Answers], target: str, method: str, body: bytes, images: int
) -> Callable[[], float]:
    at_once, count = (16, _REQUESTS) if images == 1 else (4, max(60, _REQUESTS // images))
    return lambda: cpu_per_request(pid, lambda: send(target, method, body, at_once, count)) / images


def _line(name: str, seconds: list[float], base: list[float]) -> Figure:
    measured = f"{ratio(seconds, base)}; {1e6 * statistics.median(seconds):.0f} us"
    return Figure(
        "tiny",
        f"CPU time of the server for an image of 1 kB, divided by that of a bare echo's request: {name}",
        "",
        measured,
        None,
    )
