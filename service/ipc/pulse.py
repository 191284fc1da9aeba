"""What a process shows its supervisor without a message: that its loop turns, what it runs and decodes.

A page of shared memory, because a message could fill a socket that a stopped supervisor does not read. The page also
survives the process.
"""

import asyncio
import mmap
import os
from collections.abc import Callable

_BEATS, _RUNS, _RUNNING, _WORDS = 0, 1, 2, 3
_WORD = 8  # bytes
DIGEST = 16  # bytes of a picture's mark
_MARKS = 256  # threads that decode
_BYTES = _WORDS * _WORD + _MARKS * DIGEST
_NONE = bytes(DIGEST)
_PER_LIMIT = 8  # beats in the time after which a silent process counts as hung
_LONGEST = 1.0  # seconds between beats: runs are watched at the same pace


class Pulse:
    """The page. One writer: the process, once the supervisor has started it; the supervisor only reads."""

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, _BYTES)
        self._words = memoryview(self._page)[: _WORDS * _WORD].cast("Q")

    @property
    def beats(self) -> int:
        """Turns of the process's loop; 0 until it has begun."""
        return self._words[_BEATS]

    @property
    def runs(self) -> bool:
        """Whether a batch has begun to run."""
        return self._words[_RUNS] > 0

    @property
    def running(self) -> bool:
        """Whether a batch is in a session, or was as the process ended."""
        return self._words[_RUNNING] > 0

    @property
    def decoding(self) -> list[bytes]:
        """The digests of the pictures that its threads decode."""
        marks = self._page[_WORDS * _WORD :]
        found = [marks[at : at + DIGEST] for at in range(0, len(marks), DIGEST)]
        return [digest for digest in found if digest != _NONE]

    def mark(self, thread: int, digest: bytes) -> None:
        """Shows that a thread decodes the picture with this digest; b"": none."""
        at = _WORDS * _WORD + thread * DIGEST
        self._page[at : at + DIGEST] = digest or _NONE

    def beat(self) -> None:
        """Shows that the loop turns."""
        self._words[_BEATS] += 1

    def run(self, batches: int) -> None:
        """Shows how many batches are in sessions."""
        self._words[_RUNS] = 1
        self._words[_RUNNING] = batches


def page() -> int:
    """Returns the descriptor of a new page."""
    descriptor = os.memfd_create("convoy-pulse", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _BYTES)
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
