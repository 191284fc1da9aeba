"""The scheduler on a virtual clock: the production code, with simulated arrivals and a simulated device.

Plain code. Times are in seconds; nothing waits, and the same seed gives the same outcome.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from typing import Literal

import numpy as np

from convoy.service.bench.arrivals import gaps
from convoy.service.engine.scheduler.batcher import Batch, Batcher
from convoy.service.engine.scheduler.request_queue import Key, Limits
from convoy.service.errors import ConvoyError
from convoy.service.ipc.channel import Request

Load = Literal["poisson", "gamma", "constant", "trace"]

_CHUNK = 65_536  # arrivals drawn at once


@dataclass(frozen=True)
class Stream:
    """Requests of one model. `measured` is seconds by batch size; `deadline` counts from arrival, inf for none.

    `profile` is what the scheduler believes at the start; by default `measured`.
    """

    name: str
    measured: Mapping[int, float]
    limits: Limits
    deadline: float
    rate: float  # requests a second
    load: Load = "poisson"
    variation: float = 1.0  # of the gaps: standard deviation over mean, for `gamma`
    trace: tuple[float, ...] = ()  # the arrival times, ascending, for `trace`
    profile: Mapping[int, float] | None = None

    def arrivals(self, seed: int) -> Iterator[float]:
        """Ascending times, endless except for a trace."""
        if self.load == "trace":
            yield from self.trace
            return
        random = np.random.default_rng(seed)
        at = 0.0
        while True:
            times = at + np.cumsum(gaps(random, self.load, self.rate, self.variation, _CHUNK))
            at = float(times[-1])
            yield from times.tolist()

    def seconds(self, size: int) -> float:
        """The seconds of a batch, interpolated between the measured sizes; above them, at the largest's throughput."""
        sizes = sorted(self.measured)
        if size > sizes[-1]:
            return self.measured[sizes[-1]] * size / sizes[-1]
        return float(np.interp(size, sizes, [self.measured[each] for each in sizes]))


@dataclass
class Outcome:
    """The results of one stream.

    All requests arrived within `seconds`; the last one in time was answered at `answered`.
    """

    offered: int = 0
    in_time: int = 0
    late: int = 0  # answered after their deadline
    refused: int = 0  # on arrival
    dropped: int = 0  # removed from the queue, never run
    latencies: list[float] = field(default_factory=list)  # of answered requests
    batches: dict[int, int] = field(default_factory=dict)  # by size
    seconds: float = 0.0
    answered: float = 0.0

    @property
    def goodput(self) -> float:
        """Requests a second answered in time, over the whole duration: otherwise few requests could beat any oracle."""
        seconds = max(self.seconds, self.answered)
        return self.in_time / seconds if seconds else 0.0

    @property
    def mean_batch(self) -> float:
        """Images in a batch."""
        batches = sum(self.batches.values())
        return sum(size * count for size, count in self.batches.items()) / batches if batches else 0.0


def oracle(measured: Callable[[int], float], most: int, deadline: float, devices: int = 1) -> float:
    """The highest rate at which full batches can answer every request in time.

    It is the maximum over b of n b / l(b) where l(b) (1 + 1/n) is within the deadline.
    """
    sizes = [size for size in range(1, most + 1) if measured(size) * (1 + 1 / devices) <= deadline]
    return max((devices * size / measured(size) for size in sizes), default=0.0)


def simulate(
    streams: Sequence[Stream],
    requests: int,
    seed: int = 0,
    *,
    jitter: float = 0.0,
    speed: Callable[[float], float] = lambda now: 1.0,
) -> list[Outcome]:
    """Run `requests` requests of all streams together through one device.

    jitter  standard deviation of the logarithm of a batch's time, 0 for none
    speed   the device's slowdown factor at a time
    """
    device = _Device(streams, np.random.default_rng((seed, len(streams))), jitter, speed)
    last = 0.0
    for at, number in islice(_arrivals(streams, seed), requests):
        device.run_until(at)
        device.arrive(at, number)
        last = at
    device.run_until(math.inf)
    for outcome in device.outcomes:
        outcome.seconds = last
    return device.outcomes


class _Device:
    """The batcher, its running batches, and the outcomes."""

    def __init__(
        self,
        streams: Sequence[Stream],
        random: np.random.Generator,
        jitter: float,
        speed: Callable[[float], float],
    ) -> None:
        self.streams, self.random, self.jitter, self.speed = streams, random, jitter, speed
        self.outcomes = [Outcome() for _ in streams]
        self.keys = [Key(stream.name, 1, ()) for stream in streams]
        self.numbers = {key: number for number, key in enumerate(self.keys)}
        self.times = [
            [0.0, *(stream.seconds(size) for size in range(1, stream.limits.max_batch_size + 1))] for stream in streams
        ]
        self.batcher = Batcher()
        for key, stream in zip(self.keys, streams, strict=True):
            believed = stream.measured if stream.profile is None else stream.profile
            self.batcher.measured(key, stream.limits, believed)
        self.count = 0
        self.running: list[tuple[float, Batch, float]] = []  # (end, batch, seconds), the next to end first
        self.again = math.inf  # when the batcher must be called again

    def run_until(self, at: float) -> None:
        """Everything that happens up to a time."""
        while (now := min(self.running[0][0] if self.running else math.inf, self.again)) <= at and now < math.inf:
            if self.running and self.running[0][0] <= now:
                self.finish(*self.running.pop(0))
            self.start(now)

    def arrive(self, now: float, number: int) -> None:
        stream, outcome, key = self.streams[number], self.outcomes[number], self.keys[number]
        outcome.offered += 1
        self.count += 1
        self.batcher.expect(stream.name, number, 0, 2, now)
        request = Request(self.count, number, 1, now, now + stream.deadline)
        try:
            self.batcher.add(key, request, stream.limits, now)
        except ConvoyError:
            outcome.refused += 1
        self.start(now)

    def start(self, now: float) -> None:
        """Start the batches that the batcher closes now."""
        while True:
            decision = self.batcher.next(now)
            for request in decision.late:
                self.outcomes[int(str(request.source))].dropped += 1
            batch = decision.batch
            if batch is None:
                self.again = decision.again
                return
            seconds = self.times[self.numbers[batch.key]][batch.rows] * self.speed(now)
            if self.jitter:
                seconds *= math.exp(self.jitter * self.random.standard_normal())
            self.running.append((now + seconds, batch, seconds))
            self.running.sort(key=lambda entry: entry[0])

    def finish(self, now: float, batch: Batch, seconds: float) -> None:
        outcome = self.outcomes[self.numbers[batch.key]]
        rows = len(batch.requests)
        outcome.batches[rows] = outcome.batches.get(rows, 0) + 1
        for request in batch.requests:
            outcome.latencies.append(now - request.arrived)
            if now <= request.deadline + 1e-9:
                outcome.in_time += 1
                outcome.answered = now
            else:
                outcome.late += 1
        self.batcher.ended(batch, [(rows, seconds)])


def _arrivals(streams: Sequence[Stream], seed: int) -> Iterator[tuple[float, int]]:
    def numbered(number: int, stream: Stream) -> Iterator[tuple[float, int]]:
        return ((at, number) for at in stream.arrivals(seed * len(streams) + number))

    each = [numbered(number, stream) for number, stream in enumerate(streams)]
    return each[0] if len(each) == 1 else merge(*each)
