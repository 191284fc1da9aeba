"""Each figure of the report: what it measures, beside what, and how near it should come."""

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.arrivals import gaps
from service.config import PolicyName
from service.engine import profile as profiles
from service.engine import session as sessions
from service.engine.batching import Batcher, Key, Limits, Request
from service.engine.policies import POLICIES
from service.engine.run_times import RunTimes
from service.engine.sleeping import Sleeping
from service.pb.convoy.v1 import vision_pb2 as pb
from service.simulation import Load, Outcome, Stream, oracle, simulate
from tests.performance import load, models
from tests.performance.processes import Echo, cpu_seconds
from tests.performance.trials import in_turns, ratio
from tests.service.running import Server

CLASSIFY = "/convoy.v1.Vision/Classify"
FIXED, EACH = 0.005204, 0.001082  # seconds of a batch of n: FIXED + n EACH, as of a GPU in the literature
ANSWER_BYTES = 250  # of a classification with five labels and its timings
QUIET = ("server.lame_duck_seconds=0",)


@dataclass(frozen=True)
class Figure:
    """One line of the report. `reached` is None where nothing was asked for."""

    number: str
    what: str
    wanted: str
    measured: str
    reached: bool | None


def seconds_of(size: int) -> float:
    """Of a batch in the sleep engine."""
    return FIXED + EACH * size


def sleeping(scale: float = 1.0) -> str:
    """The setting for an engine that takes `scale` times as long."""
    return f"engine.sleep_ms=[{1000 * scale * FIXED}, {1000 * scale * EACH}]"


def request(side: int, channels: int, images: int = 1, model: str = "") -> bytes:
    """A Classify request of raw images."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, channels), np.uint8).tobytes()
    raw = pb.RawImage(pixels=pixels, height_px=side, width_px=side, channels=channels)
    return pb.ClassifyRequest(model=model, images=[pb.Image(raw=raw)] * images, top_k=5).SerializeToString()


@contextmanager
def serving(root: Path, *settings: str) -> Iterator[Server]:
    """A server with these settings on a repository."""
    with Server(root, [*QUIET, *settings]) as server:
        yield server


def cpu_per_request(pid: int, trial: Callable[[], load.Answers]) -> float:
    """Seconds of CPU time of a process tree for each request that a trial sends."""
    before = cpu_seconds(pid)
    answers = trial()
    return (cpu_seconds(pid) - before) / (len(answers.latencies) + len(answers.errors))


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
    what = f"CPU time of an image, onnxruntime alone over the server; {architecture}, raw images, {size} a request"
    note = f"{found}; {1000 * statistics.median(raws):.1f} ms of CPU time an image"
    return Figure("P1", what, ">= 0.97", note, found.median >= 0.97)


def closed_loop(root: Path, trials: int) -> Figure:
    """P2: throughput of the sleep engine behind the server, over that of its largest batches back to back."""
    body = request(32, 1)
    with serving(root, sleeping(), "batching.max_batch_size=32") as server:
        rates = []
        for _ in range(trials + 1):
            answers = load.closed(server.grpc, CLASSIFY, body, 64, 2400)
            rates.append(len(answers.latencies) / answers.seconds / (32 / seconds_of(32)))
    found = ratio(rates[1:], [1.0] * trials)
    what = "throughput over b / l(b), sleep engine, 64 callers, batches of at most 32"
    return Figure("P2", what, ">= 0.99", str(found), found.median >= 0.99)


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
    what = f"CPU time of the server for an image of {kilobytes:.0f} kB, {images} a request, over a bare echo's request"
    micro = f"{1e6 * statistics.median(ours):.0f} us over {1e6 * statistics.median(theirs):.0f} us"
    return Figure(
        number,
        what,
        f"<= {wanted:.2f}" if wanted is not None else "",
        f"{found}; {micro}",
        None if wanted is None else found.median <= wanted,
    )


def decision_cost(waiting: int) -> tuple[float, float]:
    """Seconds for a request to be queued and, by its share, for its batch to be chosen: median and 99th percentile."""
    batcher, key = Batcher(), Key("model", 1, ())
    limits = Limits(32, 0.005, 10**7, 0.1)
    batcher.measured(key, limits, {size: seconds_of(size) for size in (1, 2, 4, 8, 16, 32)})
    for number in range(waiting):
        batcher.add(key, Request(number, "front end", 1, 0.0, 1000.0 + 1e-6 * number), limits, 0.0)
    now, number = 1.0, waiting
    costs: list[float] = []
    while len(costs) < 20_000:
        start = time.perf_counter()
        decision = batcher.next(now)
        took = time.perf_counter() - start
        assert decision.batch is not None
        batch = decision.batch
        for _ in batch.requests:
            number, now = number + 1, now + 1e-5
            one = Request(number, "front end", 1, now, now + 1000.0)
            start = time.perf_counter()
            batcher.add(key, one, limits, now)
            costs.append(time.perf_counter() - start + took / batch.rows)
        batcher.ended(batch, [(batch.rows, seconds_of(batch.rows))])
    return float(np.quantile(costs, 0.5)), float(np.quantile(costs, 0.99))


def decisions() -> list[Figure]:
    """P5."""
    hundreds, thousands = [], []
    for _ in range(5):
        hundreds.append(decision_cost(1_000))
        thousands.append(decision_cost(10_000))
    p50, p99 = (1e6 * statistics.median(each[index] for each in hundreds) for index in (0, 1))
    found = ratio([each[0] for each in thousands], [each[0] for each in hundreds])
    return [
        Figure(
            "P5",
            "cost of a decision, 1,000 waiting",
            "p50 <= 5 us, p99 <= 25 us",
            f"p50 {p50:.1f} us, p99 {p99:.1f} us",
            p50 <= 5 and p99 <= 25,
        ),
        Figure("P5", "the same with ten times as many waiting, over that", "<= 1.5", str(found), found.median <= 1.5),
    ]


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
            f"goodput at {factor:g} times the oracle's load, of peak goodput",
            f">= {wanted:.2f}",
            f"{goodput[factor] / peak:.3f}; {goodput[factor] / best:.3f} of the oracle; "
            f"{kept[factor]:.2%} of the accepted in time",
            goodput[factor] >= wanted * peak and kept[factor] >= 0.999,
        )
        for factor, wanted in ((2.0, 0.98), (5.0, 0.95), (10.0, 0.90))
    ]


def simulated(requests: int) -> list[Figure]:
    """P8 and P9, with the scheduler's own code on a virtual clock."""
    measured = {size: seconds_of(size) for size in (1, 2, 4, 8, 16, 32, 64)}
    best = oracle(seconds_of, 64, 0.1)

    def outcome(policy: PolicyName, rate: float, objective: float, kind: Load, variation: float, count: int) -> Outcome:
        limits = Limits(64, 0.005, 10**7, objective, policy)
        (found,) = simulate([Stream("model", measured, limits, objective, rate, kind, variation)], count, seed=6)
        return found

    lines = []
    for kind, variation in (("poisson", 1.0), ("gamma", 2.0), ("gamma", 4.0)):
        found = outcome("deferred", 0.8 * best, 0.1, kind, variation, requests)
        missed = found.late + found.dropped
        what = f"admitted requests that missed, of {requests:,} at 80 % load, {kind} CV {variation:g}, simulated"
        lines.append(Figure("P8", what, "0", f"{missed}; {found.refused / found.offered:.2%} refused", missed == 0))
    worst: dict[str, tuple[float, str]] = {}
    for objective in (0.03, 0.05, 0.1, 0.25):
        top = oracle(seconds_of, 64, objective)
        for kind, variation, offered in WORKLOADS:
            rates = {
                policy: outcome(policy, offered * top, objective, kind, variation, requests // 20).goodput
                for policy in POLICIES
            }
            other = max((rate, policy) for policy, rate in rates.items() if policy != "deferred")
            where = f"{kind} CV {variation:g}, {offered:g} times the oracle's load, objective {1000 * objective:g} ms"
            if offered >= 2:
                _least(worst, f"of the oracle, {kind} CV {variation:g}", rates["deferred"] / top, where)
            _least(worst, "of the best other policy", rates["deferred"] / other[0], f"{where} ({other[1]})")
    wanted = {"of the oracle, poisson CV 1": 0.97, "of the oracle, gamma CV 4": 0.90, "of the best other policy": 0.99}
    for name, (value, where) in worst.items():
        least = wanted.get(name)
        lines.append(
            Figure(
                "P9",
                f"least goodput {name}, simulated",
                f">= {least}" if least else "",
                f"{value:.3f}: {where}",
                None if least is None else value >= least,
            )
        )
    return lines


WORKLOADS: tuple[tuple[Load, float, float], ...] = (
    ("poisson", 1.0, 0.5), ("poisson", 1.0, 0.9), ("poisson", 1.0, 2.0), ("poisson", 1.0, 5.0),
    ("gamma", 2.0, 0.9), ("gamma", 4.0, 0.5), ("gamma", 4.0, 1.0), ("gamma", 4.0, 3.0),
)  # fmt: skip


def _least(worst: dict[str, tuple[float, str]], name: str, value: float, where: str) -> None:
    if name not in worst or value < worst[name][0]:
        worst[name] = value, where


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
        "p99 over p50 at 80 % load, sleep engine, constant rate",
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
        "P11", "a lone request beyond l(1), over a bare echo's round trip", "<= 1.0 and 0.2 ms",
        f"{beyond:.2f} ms over {echoed:.2f} ms; {slept:.2f} ms of an echo that waits for l(1)", beyond <= echoed + 0.2,
    )  # fmt: skip


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
    return Figure("P13", "CPU time of a request, two front ends over one", "<= 1.05", str(found), found.median <= 1.05)


BARE_START = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
spec = session.get_inputs()[0]
for size in map(int, sys.argv[2].split(",")):
    session.run(None, {spec.name: numpy.zeros((size, *spec.shape[1:]), numpy.uint8)})
"""


def start(root: Path, architecture: str, pairs: int) -> Figure:
    """P15: from nothing to ready, over a script that imports, builds the session and runs each size once."""
    file = models.real(root, architecture)
    with serving(root):
        pass  # so that the profile is there, as at every start but the first
    (known,) = profiles.read(file.parent)
    sizes = ",".join(map(str, range(1, known.batch_size + 1)))

    def ours() -> float:
        begin = time.perf_counter()
        with serving(root):
            return time.perf_counter() - begin

    def bare() -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", BARE_START, str(file), sizes], check=True)
        return time.perf_counter() - begin

    found = ratio(*in_turns(ours, bare, pairs))
    what = f"start to ready over a bare script that runs the same batches, {architecture}, profile there"
    return Figure("P15", what, "<= 1.3", str(found), found.median <= 1.3)


def predictions(root: Path) -> Figure:
    """P17: predicted against measured time of batches of random sizes, in the sleep engine; then at half the speed."""
    file = next(root.rglob("model.onnx"))
    session = Sleeping(sessions.load(file, "cpu", 0, 1), FIXED, EACH)
    spec = session.document.image if session.document is not None else None
    assert spec is not None
    assert spec.height is not None
    images = np.zeros((32, spec.height, spec.height, spec.channels), np.uint8)
    times = RunTimes(32, {size: seconds_of(size) for size in (1, 2, 4, 8, 16, 32)})
    generator = random.Random(8)

    def errors(batches: int) -> list[float]:
        found = []
        for _ in range(batches):
            size = generator.randint(1, 32)
            begin = time.perf_counter()
            session.run([images[:size]])
            took = time.perf_counter() - begin
            found.append(abs(times.predict(size) / took - 1))
            times.learn(size, took)
        return found

    steady = errors(300)[50:]
    session._fixed, session._each = 2 * FIXED, 2 * EACH
    errors(20)
    after = errors(60)
    p50, p99, slow = float(np.quantile(steady, 0.5)), float(np.quantile(steady, 0.99)), float(np.quantile(after, 0.5))
    return Figure(
        "P17", "error of the predicted batch time, sleep engine; p50 from the 20th batch at half the speed on",
        "p50 <= 3 %, p99 <= 15 %; p50 <= 3 %", f"p50 {p50:.1%}, p99 {p99:.1%}; p50 {slow:.1%}",
        p50 <= 0.03 and p99 <= 0.15 and slow <= 0.03,
    )  # fmt: skip
