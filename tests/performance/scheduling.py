"""The scheduler alone: what a decision takes, what it makes of a load on a virtual clock, how well it predicts."""

import random
import statistics
import time
from pathlib import Path

import numpy as np

from convoy.service.bench.simulation import Load, Outcome, Stream, oracle, simulate
from convoy.service.config import PolicyName
from convoy.service.engine import session as sessions
from convoy.service.engine.null_session import Sleeping
from convoy.service.engine.scheduler.batcher import Batcher
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.engine.scheduler.policies import POLICIES
from convoy.service.engine.scheduler.request_queue import Key, Limits
from convoy.service.ipc.channel import Request
from tests.performance.figure import EACH, FIXED, Figure, seconds_of
from tests.performance.trials import ratio


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
            "time to choose a batch, 1,000 requests waiting",
            "p50 <= 5 us, p99 <= 25 us",
            f"p50 {p50:.1f} us, p99 {p99:.1f} us",
            p50 <= 5 and p99 <= 25,
        ),
        Figure(
            "P5",
            "time to choose a batch, 10,000 requests waiting, divided by that with 1,000",
            "<= 1.5",
            str(found),
            found.median <= 1.5,
        ),
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
        arrivals = f"{kind} arrivals of CV {variation:g}, simulated"
        what = f"admitted requests answered late, of {requests:,} at 80 % of the oracle's load: {arrivals}"
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
                _least(worst, f"the oracle: {kind} arrivals of CV {variation:g}", rates["deferred"] / top, where)
            _least(worst, "the best other policy", rates["deferred"] / other[0], f"{where} ({other[1]})")
    wanted = {
        "the oracle: poisson arrivals of CV 1": 0.97,
        "the oracle: gamma arrivals of CV 4": 0.90,
        "the best other policy": 0.99,
    }
    for name, (value, where) in worst.items():
        least = wanted.get(name)
        lines.append(
            Figure(
                "P9",
                f"lowest goodput, divided by that of {name}, simulated",
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


def predictions(root: Path) -> Figure:
    """P17: predicted against measured time of batches of random sizes, in the sleep engine; then at half the speed."""
    file = next(root.rglob("model.onnx"))
    loaded = sessions.load(file, "cpu", 0, 1)
    spec = loaded.document.image if loaded.document is not None else None
    assert spec is not None
    assert spec.height is not None
    images = np.zeros((32, spec.height, spec.height, spec.channels), np.uint8)
    times = RunTimes(32, {size: seconds_of(size) for size in (1, 2, 4, 8, 16, 32)})
    generator = random.Random(8)

    def errors(session: Sleeping, batches: int) -> list[float]:
        found = []
        for _ in range(batches):
            size = generator.randint(1, 32)
            begin = time.perf_counter()
            session.run([images[:size]])
            took = time.perf_counter() - begin
            found.append(abs(times.predict(size) / took - 1))
            times.learn(size, took)
        return found

    steady = errors(Sleeping(loaded, FIXED, EACH), 300)[50:]
    slower = Sleeping(loaded, 2 * FIXED, 2 * EACH)
    errors(slower, 20)
    after = errors(slower, 60)
    p50, p99, slow = float(np.quantile(steady, 0.5)), float(np.quantile(steady, 0.99)), float(np.quantile(after, 0.5))
    return Figure(
        "P17", "error of the predicted time of a batch, sleep engine; then from 20 batches after its speed halves",
        "p50 <= 3 %, p99 <= 15 %; p50 <= 3 %", f"p50 {p50:.1%}, p99 {p99:.1%}; p50 {slow:.1%}",
        p50 <= 0.03 and p99 <= 0.15 and slow <= 0.03,
    )  # fmt: skip
