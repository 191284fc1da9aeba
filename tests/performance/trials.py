"""Trials of two things in turns, and what their ratio is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_SEED = 9


@dataclass(frozen=True)
class Ratio:
    """The median of trials' ratios, and its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def in_turns(first: Callable[[], float], second: Callable[[], float], pairs: int) -> tuple[list[float], list[float]]:
    """ABBA: what drifts with time falls on both alike. The first trial of each is not counted."""
    first()
    second()
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(pairs):
        for trial, found in ((first, ours), (second, theirs))[:: 1 if turn % 2 == 0 else -1]:
            found.append(trial())
    return ours, theirs


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of each pair, ours over theirs; the interval is the percentile bootstrap's."""
    ratios = np.array(ours) / np.array(theirs)
    low, high = _interval(ratios)
    return Ratio(float(np.median(ratios)), low, high)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    random = np.random.default_rng(_SEED)
    medians = np.median(random.choice(values, (_RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)
