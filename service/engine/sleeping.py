"""An engine without a network: it answers zeros after the time that a batch is said to take, so that what the server
itself costs, and what its scheduler makes of a device, can be measured apart from any device."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.session import Session


class Sleeping(Session):
    """A loaded session that is never run again: a batch of n images takes `fixed` + n `each` seconds."""

    def __init__(self, session: Session, fixed: float, each: float) -> None:
        self.__dict__.update(session.__dict__)
        self.provider = f"sleep {1000 * fixed:g} + {1000 * each:g} n ms"
        self._fixed, self._each = fixed, each
        self._rows: list[tuple[tuple[int, ...], np.dtype[np.generic]]] | None = None

    def run(
        self, arrays: Sequence[NDArray[np.generic]], rooms: Sequence[NDArray[np.generic] | None] = ()
    ) -> list[NDArray[np.generic]]:
        """Zeros of the shapes that the network's outputs have, which it has to be asked for once."""
        start = time.perf_counter()
        if self._rows is None:
            self._rows = [(values.shape[1:], values.dtype) for values in super().run([one[:1] for one in arrays])]
        size = len(arrays[0])
        outputs = [np.zeros((size, *shape), dtype) for shape, dtype in self._rows]
        left = self._fixed + size * self._each - (time.perf_counter() - start)
        if left > 0:
            time.sleep(left)
        return outputs
