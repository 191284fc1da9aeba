"""The whole server under load: throughput, goodput, what it makes of steps, and how far answers spread."""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from convoy.service.bench.arrivals import gaps
from convoy.service.bench.simulation import oracle
from convoy.service.engine import session as sessions
from convoy.service.engine.null_session import Sleeping
from convoy.service.engine.session import Session
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.performance import load, models
from tests.performance.echo import METHOD
from tests.performance.figure import (
    ANSWER_BYTES,
    CLASSIFY,
    EACH,
    FIXED,
    INFER,
    Figure,
    request,
    seconds_of,
    serving,
    sleeping,
)
from tests.performance.processes import Echo, cpu_seconds
from tests.performance.raw_load import sending
from tests.performance.trials import in_turns, ratio
from tests.service.calls import infer_request


def closed_loop(root: Path, pairs: int) -> Figure:
    """P2: throughput of the sleep engine behind the server, over that of its largest batches back to back, once the
    callers have fallen into step with the batches and as long as none of them is done."""
    body, callers, requests, size = request(32, 1), 64, 3840, 32
    session = sessions.load(root / "nothing" / "1" / "model.onnx", "cpu", 0, 1)
    alone, batch = Sleeping(session, FIXED, EACH), np.zeros((size, 32, 32, 1), np.uint8)
    with serving(root, sleeping(), f"batching.max_batch_size={size}") as server:

        def served() -> float:
            answers = load.closed(server.grpc, CLASSIFY, body, callers, requests)
            ends = np.sort(np.add(answers.due, answers.latencies))
            first, last = 10 * callers, requests - 2 * callers
            return float((last - first) / (ends[last] - ends[first]))

        def raw() -> float:
            start, batches = time.perf_counter(), requests // size // 2
            for _ in range(batches):
                alone.run([batch])
            return size * batches / (time.perf_counter() - start)

        found = ratio(*in_turns(served, raw, pairs))
    what = "images a second, divided by those of the sleep engine without a server: 64 callers, batches of at most 32"
    return Figure("P2", what, ">= 0.99", str(found), found.median >= 0.99)


def overload(root: Path, scale: float = 8.0) -> list[Figure]:
    """P6: goodput at several times what the device can do. The engine is slow, so that the load generator keeps up."""
    deadline, body = 0.1 * scale, request(32, 1)
    best = oracle(lambda size: scale * seconds_of(size), 64, deadline)
    settings = (
        sleeping(scale),
        "batching.max_batch_size=64",
        "limits.max_requests=100000",
        "batching.max_queue=100000",
    )
    goodput: dict[float, float] = {}
    kept: dict[float, float] = {}
    with serving(root, *settings) as server:
        for factor in (1.0, 2.0, 5.0, 10.0):
            times = np.cumsum(gaps(np.random.default_rng(4), "poisson", factor * best, 1.0, int(12 * factor * best)))
            answers = load.at_times(server.grpc, CLASSIFY, body, times.tolist(), deadline)
            in_time = sum(latency <= deadline for latency in answers.latencies)
            late = sum(error.name == "DEADLINE_EXCEEDED" for error in answers.errors) + len(answers.latencies) - in_time
            goodput[factor] = in_time / float(times[-1])
            kept[factor] = in_time / max(1, in_time + late)
    peak = max(goodput.values())
    return [
        Figure(
            "P6",
            f"goodput at {factor:g} times the oracle's load, divided by the highest at any load",
            f">= {wanted:.2f}",
            f"{goodput[factor] / peak:.3f}; {goodput[factor] / best:.3f} of the oracle's; "
            f"{kept[factor]:.2%} of the accepted in time",
            goodput[factor] >= wanted * peak and kept[factor] >= 0.999,
        )
        for factor, wanted in ((2.0, 0.98), (5.0, 0.95), (10.0, 0.90))
    ]


def in_time(root: Path, requests: int = 5_000, scale: float = 4.0) -> list[Figure]:
    """P8 over gRPC: how many of those that are asked for at 80 % of the best load are answered within the
    objective."""
    body, deadline = request(32, 1), 0.1 * scale
    rate = 0.8 * oracle(lambda size: scale * seconds_of(size), 64, deadline)
    found = []
    with serving(root, sleeping(scale), "batching.max_batch_size=64") as server:
        for kind, variation, wanted in (("poisson", 1.0, 0.9999), ("gamma", 2.0, None)):
            times = np.cumsum(gaps(np.random.default_rng(8), kind, rate, variation, requests))
            answers = load.at_times(server.grpc, CLASSIFY, body, times.tolist(), deadline)
            refused = answers.errors.count(grpc.StatusCode.RESOURCE_EXHAUSTED)
            good = sum(latency <= deadline for latency in answers.latencies)
            share = good / requests
            arrivals = f"{requests:,} requests over gRPC, {kind} arrivals of CV {variation:g}"
            what = f"share answered within {1000 * deadline:g} ms at 80 % of the oracle's load: {arrivals}"
            note = f"{share:.3%}; {refused} refused, {requests - refused - good} late"
            asked = f">= {wanted:.2%}" if wanted is not None else ""
            found.append(Figure("P8", what, asked, note, None if wanted is None else share >= wanted))
    return found


def spread(root: Path, scale: float = 4.0) -> Figure:
    """P10: how far the slowest answers are from the middle one, at 80 % load."""
    body, deadline = request(32, 1), 0.1 * scale
    best = oracle(lambda size: scale * seconds_of(size), 64, deadline)
    settings = (sleeping(scale), "batching.max_batch_size=64")
    with serving(root, *settings) as server:
        times = np.cumsum(gaps(np.random.default_rng(5), "constant", 0.8 * best, 1.0, int(15 * 0.8 * best)))
        answers = load.at_times(server.grpc, CLASSIFY, body, times.tolist(), 60.0)
    p50, p99 = (float(np.quantile(answers.latencies, q)) for q in (0.5, 0.99))
    return Figure(
        "P10",
        "p99 of the latency divided by its median, 80 % of the oracle's load: sleep engine, requests evenly spaced",
        "<= 1.25",
        f"{p99 / p50:.3f}; p50 {1000 * p50:.1f} ms",
        p99 <= 1.25 * p50,
    )


def lone(root: Path, pairs: int) -> Figure:
    """P11: what a lone caller waits beyond the network, over a bare echo's round trip; and how much longer that of an
    echo becomes which waits as long as the network runs, for then its processes, too, have to be woken."""
    body = request(32, 1)
    with serving(root, sleeping()) as server, Echo(ANSWER_BYTES) as echo, Echo(ANSWER_BYTES, seconds_of(1)) as waiting:

        def middle(target: str, method: str, count: int) -> float:
            return statistics.median(load.closed(target, method, body, 1, count).latencies)

        woken: list[float] = []

        def ours() -> float:
            woken.append(middle(waiting.target, "/echo.Echo/Echo", 60) - seconds_of(1))
            return middle(server.grpc, CLASSIFY, 60) - seconds_of(1)

        found_ours, found_theirs = in_turns(ours, lambda: middle(echo.target, "/echo.Echo/Echo", 200), pairs)
    beyond, echoed, slept = (1000 * statistics.median(each) for each in (found_ours, found_theirs, woken))
    return Figure(
        "P11", "latency of a lone request beyond its run, beside a bare echo's round trip", "<= 0.2 ms longer",
        f"{beyond:.2f} ms beside {echoed:.2f} ms; {slept:.2f} ms of an echo that waits as long as the run",
        beyond <= echoed + 0.2,
    )  # fmt: skip


def steps(root: Path, scale: float = 4.0) -> list[Figure]:
    """P7: from half of what the device can do to twice, and back. The engine is slow, so that the load generator keeps
    up, and the objective is as much longer."""
    objective, body = 0.1 * scale, request(32, 1)
    best = oracle(lambda size: scale * seconds_of(size), 64, objective)
    length = 12 * objective
    times = np.concatenate(
        [number * length + np.arange(0, length, 1 / (factor * best)) for number, factor in enumerate((0.5, 2.0, 0.5))]
    )
    with serving(root, sleeping(scale), "batching.max_batch_size=64", "batching.max_queue=100000") as server:
        answers = load.at_times(server.grpc, CLASSIFY, body, times.tolist(), objective)
    due, latency = np.array(answers.due), np.array(answers.latencies)
    in_time = np.sort(due[latency <= objective])
    up = settled(in_time, length, 2 * length, objective)
    down = settled(in_time, 2 * length, 3 * length, objective)
    # What had been accepted before the step is what the overload has left in the queue.
    left = float(np.max((due + latency)[due < 2 * length])) - 2 * length
    wanted = f"<= {1000 * objective:.0f} ms, the objective"
    return [
        Figure("P7", f"time until goodput is steady after the load steps from {name}", wanted,
               f"{1000 * seconds:.0f} ms", seconds <= objective)
        for name, seconds in (("0.5 to 2 times the oracle's load", up), ("2 to 0.5 times that load", down))
    ] + [
        Figure("P7", "time until all requests from before the step down are answered", wanted,
               f"{1000 * left:.0f} ms", left <= objective)
    ]  # fmt: skip


def settled(in_time: np.ndarray, begin: float, end: float, window: float) -> float:
    """Seconds from `begin` until the first window in which as many requests were due that were answered in time as in
    95 % of those of the second half, up to `end`; inf where there is none. `in_time` ascends."""

    def rates(starts: np.ndarray) -> np.ndarray:
        return (np.searchsorted(in_time, starts + window) - np.searchsorted(in_time, starts)) / window

    starts = np.arange(begin, end - window, window / 20)
    found = rates(starts)
    level = np.median(found[len(found) // 2 :])
    reached = np.flatnonzero(found >= 0.95 * level)
    return float(starts[reached[0]] - begin) if len(reached) else float("inf")


def lone_over_echo(root: Path, pairs: int) -> Figure:
    """N4: what a lone caller waits beyond the network, over a bare echo's round trip. The null engine's own run is the
    one that the answer reports."""
    body, count = request(32, 1), 400
    with (
        serving(root, "engine.sleep_ms=[0, 0]") as server,
        Echo(ANSWER_BYTES) as echo,
        sending("raw", server.grpc, CLASSIFY, body) as asked,
        sending("raw", echo.target, METHOD, body) as echoed,
    ):

        def beyond() -> float:
            answers = asked(1, count)
            (result,) = pb.ClassifyResponse.FromString(answers.last).results
            return statistics.median(answers.latencies) - result.timings.run_seconds

        ours, theirs = in_turns(beyond, lambda: statistics.median(echoed(1, count).latencies), pairs)
    found = ratio(ours, theirs)
    micro = f"{1e6 * statistics.median(ours):.0f} us over {1e6 * statistics.median(theirs):.0f} us"
    what = (
        "latency of a lone image of 1 kB without its run, divided by a bare echo's round trip: engine without a network"
    )
    return Figure("N4", f"{what}, raw client", "<= 1.00", f"{found}; {micro}", found.median <= 1)


class Raw(NamedTuple):
    """The sessions in which onnxruntime alone is fastest, and the batches that it then runs."""

    sessions: list[Session]
    batch: NDArray[np.generic]

    def __str__(self) -> str:
        count, threads = len(self.sessions), 2 // len(self.sessions)
        several = f"{count} session{'s' * (count > 1)} of {threads} thread{'s' * (threads > 1)}"
        return f"{several}, batches of {len(self.batch)}"

    def rate(self, images: int) -> float:
        """Images a second of the sessions side by side, without a server."""
        runs = max(1, images // (len(self.batch) * len(self.sessions)))

        def loop(session: Session) -> None:
            for _ in range(runs):
                session.run([self.batch])

        begin = time.perf_counter()
        with ThreadPoolExecutor(len(self.sessions)) as threads:
            list(threads.map(loop, self.sessions))
        return runs * len(self.batch) * len(self.sessions) / (time.perf_counter() - begin)


def fastest(file: Path, image: NDArray[np.generic], sizes: Sequence[int], images: int) -> Raw:
    """The best of onnxruntime alone on two cores: with any of these batch sizes, in one session of two threads or in
    two of one. Each is tried with `images` images."""
    tried = [
        Raw([sessions.load(file, "cpu", 0, 2 // count) for _ in range(count)], np.repeat(image[None], size, 0))
        for count in (1, 2)
        for size in sizes
    ]
    return max(tried, key=lambda raw: raw.rate(images))


def many_callers(root: Path, pairs: int) -> Figure:
    """Sixteen callers of a real network, over the most that onnxruntime alone reaches."""
    file = models.real(root, "mobilenet")
    best = fastest(file, pixels((224, 224, 3)), (1, 2, 4, 8, 16, 32), 48)
    with (
        serving(root, *_TWO_THREADS) as server,
        sending("grpcio", server.grpc, CLASSIFY, request(224, 3)) as asked,
    ):
        ours, theirs = in_turns(lambda: _rate(asked(16, 240)), lambda: best.rate(240), pairs)
    found = ratio(ours, theirs)
    return Figure(
        "callers",
        "images a second of 16 callers, divided by the best of onnxruntime alone: MobileNet v1, two cores for all",
        ">= 0.97",
        f"{found}; {statistics.median(theirs):.0f} a second with {best}",
        found.median >= 0.97,
    )


def mobilenet(root: Path, pairs: int) -> list[Figure]:
    """N8, N8b: raw images of 224x224 in Classify."""
    file = models.real(root, "mobilenet")
    best = fastest(file, pixels((224, 224, 3)), (1, 2, 4, 8, 16, 32), 48)
    return _beside(root, "MobileNet v1", best, CLASSIFY, request(224, 3), 240, pairs)


def unet(root: Path, pairs: int) -> list[Figure]:
    """N8, N8b: 256x256, five planes, as float32 tensors in ModelInfer."""
    file = models.planes(root, "unet", 5, 256)
    image = np.random.default_rng(0).random((5, 256, 256), np.float32)
    best = fastest(file, image, (1, 2, 4), 8)
    body = infer_request("unet", image[None]).SerializeToString()
    return _beside(root, "U-Net of 256x256 and 5 planes in float32", best, INFER, body, 64, pairs)


def lenet(root: Path, pairs: int) -> Figure:
    """N5: requests a second of a small network, over the best of onnxruntime alone."""
    file = models.lenet(root)
    image = np.random.default_rng(0).random((1, 28, 28), np.float32)
    best = fastest(file, image, (1, 4, 8, 16, 32, 64), 2_000)
    body = infer_request("lenet", image[None]).SerializeToString()
    with serving(root, *_TWO_THREADS) as server, sending("raw", server.grpc, INFER, body) as asked:
        ours, theirs = in_turns(lambda: _rate(asked(16, 8_000)), lambda: best.rate(20_000), pairs)
    found = ratio(ours, theirs)
    return Figure(
        "N5",
        "requests a second of 16 callers, divided by the best of onnxruntime alone: LeNet-5 on 28x28 in float32, two "
        "cores for all, raw client",
        ">= 0.25",
        f"{found}; {statistics.median(ours):,.0f} over {statistics.median(theirs):,.0f} a second with {best}",
        found.median >= 0.25,
    )


def pixels(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A random image."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


_TWO_THREADS = ("engine.threads=2", "engine.instances=auto")


def _beside(root: Path, name: str, best: Raw, method: str, body: bytes, images: int, pairs: int) -> list[Figure]:
    """Images a second of 16 callers, and CPU time of an image, beside onnxruntime alone."""
    served_cpu: list[float] = []
    raw_cpu: list[float] = []
    with serving(root, *_TWO_THREADS) as server, sending("raw", server.grpc, method, body) as asked:

        def served() -> float:
            before = cpu_seconds(server.process.pid)
            rate = _rate(asked(16, images))
            served_cpu.append((cpu_seconds(server.process.pid) - before) / images)
            return rate

        def raw() -> float:
            before, begin = time.process_time(), time.perf_counter()
            rate = best.rate(images)
            raw_cpu.append((time.process_time() - before) / (rate * (time.perf_counter() - begin)))
            return rate

        ours, theirs = in_turns(served, raw, pairs)
    found, cost = ratio(ours, theirs), ratio(raw_cpu[1:], served_cpu[1:])
    what = "images a second of 16 callers, divided by the best of onnxruntime alone"
    return [
        Figure("N8", f"{what}: {name}, two cores for all, raw client", ">= 0.97",
               f"{found}; {statistics.median(theirs):.0f} a second with {best}", found.median >= 0.97),
        Figure("N8b", f"CPU time of an image in onnxruntime alone, divided by that in the server: {name}, raw client",
               ">= 0.98", f"{cost}; {1000 * statistics.median(raw_cpu[1:]):.1f} ms of CPU time an image",
               cost.median >= 0.98),
    ]  # fmt: skip


def _rate(answers: load.Answers) -> float:
    assert not answers.errors, answers.errors[:3]
    return len(answers.latencies) / answers.seconds
