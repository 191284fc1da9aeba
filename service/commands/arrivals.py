"""When the requests of an open loop are due: plain sequences of send times, no clock."""

from collections.abc import Iterator

import numpy as np


def poisson(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Send times in [0, seconds), ascending: a Poisson process of `rate` a second, as of many independent callers."""
    random = np.random.default_rng(seed)
    now = random.exponential(1 / rate)
    while now < seconds:
        yield now
        now += random.exponential(1 / rate)
