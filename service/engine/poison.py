"""Detects outputs that a run did not write, in memory that is used again: they would be answers of an earlier batch.

Both ends of each row are overwritten with a secret before the run. If the secret is there afterwards, nothing was
written. Nobody can guess it: it is drawn anew in each process, and no answer contains it.
"""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BYTES = 8  # at the beginning and the end of each row; fewer could equal the secret by chance

Room = NDArray[np.generic] | None


class Poison:
    """A secret, and where it is looked for. A row of less than eight bytes is judged with the others of its output."""

    def __init__(self) -> None:
        self._secret = np.frombuffer(os.urandom(_BYTES), np.uint8)

    def put(self, rooms: Sequence[Room]) -> None:
        """Poisons memory, contiguous, before a run writes its outputs there."""
        for room in rooms:
            if room is not None and room.nbytes >= _BYTES:
                for part in _ends(room):
                    part[...] = self._secret[: part.shape[1]]

    def remains(self, rooms: Sequence[Room]) -> int | None:
        """Returns the number of an output of which a row was not written, or not to its end; None if there is none."""
        for number, room in enumerate(rooms):
            if room is not None and room.nbytes >= _BYTES and any(map(self._is_in, _ends(room))):
                return number
        return None

    def _is_in(self, part: NDArray[np.uint8]) -> bool:
        width = part.shape[1]
        same = (part == self._secret[:width]).all(axis=1)
        return bool(same.any() if width >= _BYTES else same.all())


def _ends(room: NDArray[np.generic]) -> tuple[NDArray[np.uint8], ...]:
    """Returns the bytes at the beginning and at the end of each row, (rows, bytes)."""
    rows = room.shape[0] if room.ndim else 1
    data = room.reshape(-1).view(np.uint8).reshape(rows, -1)
    width = min(_BYTES, data.shape[1])
    return (data[:, :width], data[:, -width:]) if data.shape[1] > width else (data,)
