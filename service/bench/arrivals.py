"""Arrival times: drawn from a seed, at a rate that may change over time. Plain functions, no clock."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convoy.service.bench.plan import Piece, Spacing

Times = NDArray[np.float64]


def gaps(random: np.random.Generator, spacing: Spacing, rate: float, variation: float, count: int) -> Times:
    """Seconds between `count` requests at `rate` a second.

    poisson: exponential gaps, as of many independent callers. gamma: gaps whose standard deviation is `variation` times
    their mean; above 1, requests are bursty. constant: equal gaps.
    """
    if spacing == "constant":
        return np.full(count, 1 / rate)
    if spacing == "poisson":
        return random.exponential(1 / rate, count)
    return random.gamma(1 / variation**2, variation**2 / rate, count)


def arrivals(pieces: Sequence[Piece], spacing: Spacing, variation: float, seed: int) -> Times:
    """All times in the pieces, one after the other from 0, ascending.

    Requests are drawn at one a second, and time is then rescaled to the rate of the pieces. With exponential gaps, the
    result is exactly the Poisson process with that rate.
    """
    ends = np.cumsum([piece.requests for piece in pieces])
    drawn = _at_one_a_second(np.random.default_rng(seed), spacing, variation, float(ends[-1]))
    starts, began = [0.0, *ends[:-1]], np.cumsum([0.0, *(piece.seconds for piece in pieces)])
    times = [
        at + _within(piece, drawn[(drawn >= first) & (drawn < last)] - first)
        for piece, first, last, at in zip(pieces, starts, ends, began, strict=False)
    ]
    # Rounding may swap two nearly equal times.
    return np.sort(np.concatenate(times))


def _at_one_a_second(random: np.random.Generator, spacing: Spacing, variation: float, until: float) -> Times:
    at, chunks = 0.0, [np.empty(0)]
    while at < until:
        # A little more than expected, so that one draw is nearly always enough.
        count = math.ceil(until - at + 4 * math.sqrt(until)) + 16
        chunks.append(at + np.cumsum(gaps(random, spacing, 1.0, variation, count)))
        at = float(chunks[-1][-1])
    return np.concatenate(chunks)


def _within(piece: Piece, requests: Times) -> Times:
    """Seconds from the piece's start at which this many requests are expected to have arrived.

    This is t of begin t + (end - begin) t^2 / (2 seconds) = requests, in the form that allows a constant rate.
    """
    root = np.sqrt(piece.begin**2 + 2 * requests * (piece.end - piece.begin) / piece.seconds)
    divisor = piece.begin + root
    return np.divide(2 * requests, divisor, out=np.zeros_like(requests), where=divisor > 0)
