"""A session that runs no network: it returns zeros after the configured time of a batch.

It measures the overhead of the server and the behaviour of its scheduler independently of any device.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convoy.service.engine.session import Session


class Sleeping(Session):
    """A loaded session whose network is not run: a batch of n images takes `fixed` + n * `each` seconds."""

    def __init__(self, session: Session, fixed: float, each: float) -> None:
        self.__dict__.update(session.__dict__)
        self.golden = None  # the answers are zeros
        self.provider = f"sleep {1000 * fixed:g} + {1000 * each:g} n ms"
        self._fixed, self._each = fixed, each
        self._rows: dict[tuple[tuple[int, ...], ...], list[tuple[tuple[int, ...], np.dtype[np.generic]]]] = {}

    def run(
        self, arrays: Sequence[NDArray[np.generic]], rooms: Sequence[NDArray[np.generic] | None] = ()
    ) -> list[NDArray[np.generic]]:
        """Zeros in the shapes of the network's outputs. The network runs once per input shape to determine them."""
        start = time.perf_counter()
        shapes = tuple(one.shape[1:] for one in arrays)
        if shapes not in self._rows:
            firsts = [one[:1] for one in arrays]
            self._rows[shapes] = [(values.shape[1:], values.dtype) for values in super().run(firsts)]
        size = len(arrays[0])
        outputs = [np.zeros((size, *shape), dtype) for shape, dtype in self._rows[shapes]]
        left = self._fixed + size * self._each - (time.perf_counter() - start)
        if left > 0:
            time.sleep(left)
        return outputs
