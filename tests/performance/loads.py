"""The whole server under load: throughput, goodput, what it makes of steps, and how far answers spread."""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np

from convoy.service.bench.arrivals import gaps
from convoy.service.bench.simulation import oracle
from convoy.service.engine import session as sessions
from convoy.service.engine.null_session import Sleeping
from convoy.service.engine.session import Session
from tests.performance import load, models
from tests.performance.figure import ANSWER_BYTES, CLASSIFY, EACH, FIXED, Figure, request, seconds_of, serving, sleeping
from tests.performance.processes import Echo
from tests.performance.trials import in_turns, ratio


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


def many_callers(root: Path, pairs: int) -> Figure:
    """Sixteen callers of a real network, over the most that onnxruntime alone reaches with any batch size, in one
    session of two threads or in two of one."""
    file = models.real(root, "mobilenet")
    body = request(224, 3)
    layouts = {
        (count, 2 // count): [sessions.load(file, "cpu", 0, 2 // count) for _ in range(count)] for count in (1, 2)
    }
    tried = {(layout, size): raw_rate(layouts[layout], size, 48) for layout in layouts for size in (1, 2, 4, 8, 16, 32)}
    layout, size = max(tried, key=lambda each: tried[each])
    with serving(root, "engine.threads=2", "engine.instances=auto") as server:

        def served() -> float:
            answers = load.closed(server.grpc, CLASSIFY, body, 16, 240)
            assert not answers.errors, answers.errors[:3]
            return len(answers.latencies) / answers.seconds

        ours, theirs = in_turns(served, lambda: raw_rate(layouts[layout], size, 240), pairs)
    found = ratio(ours, theirs)
    best = f"{layout[0]} session{'s' * (layout[0] > 1)} of {layout[1]} thread{'s' * (layout[1] > 1)}, batches of {size}"
    return Figure(
        "callers",
        "images a second of 16 callers, divided by the best of onnxruntime alone: MobileNet v1, two cores for all",
        ">= 0.97",
        f"{found}; {statistics.median(theirs):.0f} a second with {best}",
        found.median >= 0.97,
    )


def raw_rate(at_once: Sequence[Session], size: int, images: int) -> float:
    """Images a second of sessions side by side, without a server."""
    batch = np.random.default_rng(0).integers(0, 256, (size, 224, 224, 3), np.uint8)
    runs = max(1, images // (size * len(at_once)))

    def loop(session: Session) -> None:
        for _ in range(runs):
            session.run([batch])

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(at_once)) as threads:
        list(threads.map(loop, at_once))
    return runs * size * len(at_once) / (time.perf_counter() - begin)
