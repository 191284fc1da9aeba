"""Durations in an HdrHistogram: three significant digits, and histograms of several processes add up exactly."""

import math
from typing import Self

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

_MOST = 3_600_000_000  # microseconds; longer durations count as an hour
_DIGITS = 3


class Histogram:
    """Counts of durations from a microsecond to an hour. Reported values are up to 0.1 % too long, never too short."""

    def __init__(self) -> None:
        self._hdr = HdrHistogram(1, _MOST, _DIGITS)

    @classmethod
    def decode(cls, text: str) -> Self:
        """The inverse of `encode`."""
        found = cls()
        found._hdr = HdrHistogram.decode(text.encode())
        return found

    def encode(self) -> str:
        """HdrHistogram's own format, version 2 in base64, in microseconds, which its tools in any language can read."""
        return str(self._hdr.encode().decode())

    @property
    def count(self) -> int:
        """The number of durations."""
        return int(self._hdr.total_count)

    def record(self, seconds: float) -> None:
        """Count a duration."""
        self._hdr.record_value(min(max(0, round(seconds * 1e6)), _MOST))

    def add(self, other: "Histogram") -> None:
        """Add the counts of another histogram."""
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
