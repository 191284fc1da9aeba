"""The findings of client processes in a form that adds up exactly: counts, sums and histograms."""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self, TypeVar

import msgspec
import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from convoy.service.bench.calls import Outcome
from convoy.service.client.results import STAGES

Number = TypeVar("Number", int, float)
_MOST = 3_600_000_000  # microseconds; longer durations count as an hour
_DIGITS = 3


class Sample(NamedTuple):
    """One request. Times are in seconds from the start of the warm-up."""

    due: float  # when it should have been sent; latency counts from here, so that stalls are included
    sent: float
    finished: float
    outcome: Outcome


class Histogram:
    """Counts of durations from a microsecond to an hour. Reported values are up to 0.1 % too long, never too short."""

    def __init__(self) -> None:
        self._hdr = HdrHistogram(1, _MOST, _DIGITS)

    @classmethod
    def decode(cls, text: str) -> Self:
        """The inverse of `encode`."""
        histogram = cls()
        histogram._hdr = HdrHistogram.decode(text.encode())
        return histogram

    def encode(self) -> str:
        """HdrHistogram's own format, version 2 in base64, in microseconds, which its tools in any language can read."""
        return str(self._hdr.encode().decode())

    @property
    def count(self) -> int:
        return int(self._hdr.total_count)

    def record(self, seconds: float) -> None:
        self._hdr.record_value(min(max(0, round(seconds * 1e6)), _MOST))

    def add(self, other: "Histogram") -> None:
        self._hdr.add(other._hdr)

    def percentile(self, percent: float) -> float:
        """The shortest duration, in seconds, that `percent` of all do not exceed (nearest rank); 0 if empty."""
        if not self.count:
            return 0.0
        # The library's own percentile rounds the rank: for 60 durations, its 99th would be the 59th.
        rank = max(1, math.ceil(round(percent / 100 * self.count, 6)))
        return self._seconds(int(np.searchsorted(np.cumsum(self._counts()), rank)))

    def cumulative(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Durations in seconds, ascending, and the share (0..1) of all durations that do not exceed each."""
        counts = self._counts()
        places = np.flatnonzero(counts)
        seconds = np.array([self._seconds(int(place)) for place in places], np.float64)
        return seconds, np.cumsum(counts[places]) / max(1, self.count)

    def _counts(self) -> NDArray[np.int64]:
        return np.frombuffer(self._hdr.counts, np.int64)

    def _seconds(self, place: int) -> float:
        value = self._hdr.get_value_from_index(place)
        return float(self._hdr.get_highest_equivalent_value(value)) / 1e6


class Tally(msgspec.Struct, kw_only=True):
    """The requests of one model due in one interval; only `arrived` counts images answered in the interval."""

    requests: int = 0
    images: int = 0  # answered
    arrived: int = 0  # images
    latency: Histogram = msgspec.field(default_factory=Histogram)  # from due, of requests with an answered image
    refused: dict[str, int] = msgspec.field(default_factory=dict)  # images, by code and reason
    messages: dict[str, str] = msgspec.field(default_factory=dict)  # the first message of each
    timed: int = 0  # images with timings from the server
    batches: float = 0.0
    stages: dict[str, float] = msgspec.field(default_factory=dict)  # seconds of all timed images
    outside: float = 0.0

    def record(self, sample: Sample) -> None:
        """Count a request that was due in this interval."""
        outcome = sample.outcome
        self.requests += 1
        self.images += outcome.answered
        if outcome.answered:
            self.latency.record(sample.finished - sample.due)
        for refusal in outcome.refused:
            self.refused[refusal.name] = self.refused.get(refusal.name, 0) + 1
            self.messages.setdefault(*refusal)
        for timings in outcome.timings:
            self.timed += 1
            # A batch of b images appears b times, so each counts as 1/b batch.
            self.batches += 1 / timings.batch_size if timings.batch_size else 0.0
            self.outside += sample.finished - sample.sent - timings.total
            self.stages = _plus(self.stages, {stage: getattr(timings, stage) for stage in STAGES})

    def add(self, other: "Tally") -> None:
        self.requests += other.requests
        self.images += other.images
        self.arrived += other.arrived
        self.latency.add(other.latency)
        self.refused = _plus(self.refused, other.refused)
        self.messages = other.messages | self.messages
        self.timed += other.timed
        self.batches += other.batches
        self.stages = _plus(self.stages, other.stages)
        self.outside += other.outside


class Findings(msgspec.Struct, kw_only=True):
    """Findings of one client process, or the sum of several. `cells` has a row per model, a tally per interval."""

    cells: list[list[Tally]]
    since_sent: Histogram = msgspec.field(default_factory=Histogram)  # latency from the actual sending time
    late: Histogram = msgspec.field(default_factory=Histogram)  # delay of the load generator itself
    cores: list[float] = msgspec.field(default_factory=list)  # CPU time over wall-clock time, of each process

    def add(self, other: "Findings") -> None:
        """Add the findings of another process under the same plan."""
        for row, others in zip(self.cells, other.cells, strict=True):
            for tally, others_tally in zip(row, others, strict=True):
                tally.add(others_tally)
        self.since_sent.add(other.since_sent)
        self.late.add(other.late)
        self.cores += other.cores


class Recorder:
    """Sorts samples into findings. Times in samples count from the start of the warm-up, which is excluded.

    models  number of models
    edges   of the intervals, in seconds from the end of the warm-up
    """

    def __init__(self, models: int, edges: Sequence[float], warm_up: float) -> None:
        self.findings = Findings(cells=[[Tally() for _ in edges[1:]] for _ in range(models)])
        self._edges = [warm_up + edge for edge in edges]

    def record(self, sample: Sample) -> None:
        """Count a request in the interval in which it was due, and its answers in the one in which they arrived."""
        row = self.findings.cells[sample.outcome.model]
        if (place := self._place(sample.finished)) is not None:
            row[place].arrived += sample.outcome.answered
        if (place := self._place(sample.due)) is None:
            return
        row[place].record(sample)
        if sample.outcome.answered:
            self.findings.since_sent.record(sample.finished - sample.sent)

    def late(self, due: float, seconds: float) -> None:
        """Record the load generator's delay for something due at `due`."""
        if self._place(due) is not None:
            self.findings.late.record(seconds)

    def _place(self, at: float) -> int | None:
        return bisect.bisect_right(self._edges, at) - 1 if self._edges[0] <= at < self._edges[-1] else None


def total(tallies: Sequence[Tally]) -> Tally:
    result = Tally()
    for tally in tallies:
        result.add(tally)
    return result


def encode(findings: Findings) -> bytes:
    """Serialise findings for another process."""
    return msgspec.json.encode(findings, enc_hook=_encode)


def decode(data: bytes) -> Findings:
    """The inverse of `encode`."""
    return msgspec.json.decode(data, type=Findings, dec_hook=lambda _, text: Histogram.decode(text))


def _plus(one: dict[str, Number], other: Mapping[str, Number]) -> dict[str, Number]:
    return {**one, **{name: one.get(name, 0) + count for name, count in other.items()}}


def _encode(value: object) -> str:
    assert isinstance(value, Histogram), value
    return value.encode()
