"""What a process shows its supervisor without a message: that its loop still turns, and whether it has run anything.

A page of shared memory, because a message could fill a socket that a stopped supervisor does not read. The page also
survives the process.
"""

import asyncio
import mmap
import os
from collections.abc import Callable

_BEATS, _RUNS, _WORDS = 0, 1, 2
_WORD = 8  # bytes
_PER_LIMIT = 8  # beats in the time after which a silent process counts as hung
_LONGEST = 1.0  # seconds between beats: runs are watched at the same pace


class Pulse:
    """The page. One writer: the process, once the supervisor has started it; the supervisor only reads."""

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, _WORDS * _WORD)
        self._words = memoryview(self._page).cast("Q")

    @property
    def beats(self) -> int:
        """Turns of the process's loop; 0 until it has begun."""
        return self._words[_BEATS]

    @property
    def runs(self) -> bool:
        """Whether a batch has begun to run."""
        return self._words[_RUNS] > 0

    def beat(self) -> None:
        """Shows that the loop turns."""
        self._words[_BEATS] += 1

    def run(self) -> None:
        """Shows that a batch begins to run."""
        self._words[_RUNS] = 1


def page() -> int:
    """Returns the descriptor of a new page."""
    descriptor = os.memfd_create("convoy-pulse", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _WORDS * _WORD)
    return descriptor


def seconds_between_beats(limit: float) -> float:
    """Returns the seconds between two beats, and between two looks at them; `limit`: see `beat`."""
    return min(limit / _PER_LIMIT, _LONGEST) if limit else _LONGEST


async def beat(pulse: Pulse, limit: float, each: Callable[[], None] = lambda: None) -> None:
    """Beats as long as the loop turns, and calls `each` with every beat.

    limit  seconds of silence after which the process counts as hung; 0: it never does
    """
    while True:
        pulse.beat()
        each()
        await asyncio.sleep(seconds_between_beats(limit))
