"""Space for images that front ends and the engine share: a front end's memory file, and who may touch what in it.

A front end owns one memory file (`Arena`) and allocates the input and output space of its slots in it. The engine maps
the same memory (`SharedMemory`), only reads inputs and only writes outputs. Nothing has a name in the file system.
"""

import math
import mmap
import os
import threading
from bisect import bisect_left, insort
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadTensor, QueueFull

ALIGNMENT = 64  # bytes; a cache line, and what vector loads like
MAX_RANK = 8
_KEPT_SHARE = 8  # of the memory
COPIED_AT_ONCE = 1 << 18  # bytes: copying them takes less than 0.1 ms, as long as the way to a thread and back
SPILLED = (1 << 64) - 1  # offset of an output whose size was not known: it travels in a memory file of its own


class Span(NamedTuple):
    """A tensor in shared memory: where it is, and what it is. `number` counts the network's inputs or outputs."""

    number: int
    offset: int  # bytes from the start of the arena, or SPILLED
    nbytes: int  # of an output in a Submit: the room there is
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


class Layout(NamedTuple):
    """The bytes of a slot, and its inputs and outputs as if it began at 0."""

    nbytes: int
    inputs: tuple[Span, ...]
    outputs: tuple[Span, ...]

    def at(self, begin: int) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """Inputs and outputs of a slot that begins there."""
        return _moved(self.inputs, begin), _moved(self.outputs, begin)


@lru_cache(maxsize=1024)
def layout(
    inputs: tuple[tuple[np.dtype[np.generic], tuple[int, ...]], ...], output_bytes: tuple[tuple[int, int], ...]
) -> Layout:
    """Room for inputs of these (dtype, shape) and outputs of these (number, bytes), each on a line of its own."""
    at = 0
    given, wanted = [], []
    for number, (dtype, shape) in enumerate(inputs):
        nbytes = dtype.itemsize * math.prod(shape)
        given.append(Span(number, at, nbytes, dtype, shape))
        at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    for number, nbytes in output_bytes:
        wanted.append(Span(number, at, nbytes, np.dtype(np.uint8), (nbytes,)))
        at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return Layout(at, tuple(given), tuple(wanted))


def _moved(spans: tuple[Span, ...], begin: int) -> tuple[Span, ...]:
    return tuple([Span(number, begin + at, nbytes, dtype, shape) for number, at, nbytes, dtype, shape in spans])


def memory_file(nbytes: int) -> int:
    """A file descriptor of anonymous memory, `nbytes` long. Pages are taken when they are first written."""
    descriptor = os.memfd_create("convoy", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, nbytes)
    return descriptor


class SharedMemory:
    """Shared memory as this process sees it. Both sides have one; the front end's is inside its Arena."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = mmap.mmap(descriptor, nbytes)
        self._view = memoryview(self._memory)

    def array(self, span: Span) -> NDArray[np.generic]:
        """The tensor at `span`, a view. Raises BadTensor where it would reach beyond the memory."""
        nbytes = span.dtype.itemsize
        for side in span.shape:
            nbytes *= side
        self._check(span.offset, nbytes, min(span.shape, default=0))
        return np.ndarray(span.shape, span.dtype, buffer=self._memory, offset=span.offset)

    def bytes_at(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """`nbytes` bytes at `offset`, a view. Raises BadTensor likewise."""
        self._check(offset, nbytes, nbytes)
        return np.ndarray((nbytes,), np.uint8, buffer=self._memory, offset=offset)

    def view(self, span: Span) -> memoryview:
        """The bytes of the tensor at `span`. Raises BadTensor likewise."""
        self._check(span.offset, span.nbytes, span.nbytes)
        return self._view[span.offset : span.offset + span.nbytes]

    def _check(self, offset: int, nbytes: int, smallest_side: int) -> None:
        # numpy's own check wraps where offset and size are huge.
        if smallest_side < 0 or not 0 <= offset <= self.nbytes - nbytes:
            raise BadTensor(f"{nbytes} bytes at {offset} do not fit into slot memory of {self.nbytes}")


class Arena:
    """A front end's shared memory and the map of what is in use.

    A block that is given back is kept whole for the next one of its size, up to an eighth of the memory: a front end
    asks for the same few sizes again and again. Else it is first fit, lowest address first.

    One writer: the front end that made it. Safe to call from its threads.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.used_bytes = 0
        self.descriptor = memory_file(nbytes)
        self.mapping = SharedMemory(self.descriptor, nbytes)
        self._lock = threading.Lock()
        self._used: dict[int, int] = {}  # bytes of each block in use, by its offset
        self._kept: dict[int, list[int]] = {}  # offsets of blocks for the next of their size
        self._kept_bytes = 0
        self._free: list[tuple[int, int]] = [(0, nbytes)]  # the rest: (offset, bytes), by offset, never touching

    @property
    def blocks(self) -> int:
        """How many are in use."""
        return len(self._used)

    def allocate(self, nbytes: int) -> tuple[int, int]:
        """The (offset, bytes) of a block of at least `nbytes`, aligned. Raises QueueFull where there is none."""
        size = max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
        with self._lock:
            offset = self._take(size)
            if offset is not None:
                self._used[offset] = size
                self.used_bytes += size
                return offset, size
        if size > self.nbytes:
            raise BadTensor(f"request needs {nbytes} bytes of slot memory, want at most {self.nbytes}")
        raise QueueFull(f"slot memory of {self.nbytes} bytes is in use", retry_after=0.05)

    def free(self, block: tuple[int, int]) -> None:
        """Give back what `allocate` gave."""
        offset, size = block
        with self._lock:
            if self._used.pop(offset, 0) != size:
                raise AssertionError("a slot's block was freed twice")
            self.used_bytes -= size
            if self._kept_bytes + size > self.nbytes // _KEPT_SHARE:
                self._give_up_kept()
            self._kept.setdefault(size, []).append(offset)
            self._kept_bytes += size

    def _take(self, size: int) -> int | None:
        if kept := self._kept.get(size):
            self._kept_bytes -= size
            return kept.pop()
        offset = self._first_fit(size)
        if offset is None and self._kept_bytes:
            self._give_up_kept()
            offset = self._first_fit(size)
        return offset

    def _first_fit(self, size: int) -> int | None:
        for place, (offset, room) in enumerate(self._free):
            if room >= size:
                if room == size:
                    del self._free[place]
                else:
                    self._free[place] = (offset + size, room - size)
                return offset
        return None

    def _give_up_kept(self) -> None:
        for size, offsets in self._kept.items():
            for offset in offsets:
                self._merge(offset, size)
        self._kept.clear()
        self._kept_bytes = 0

    def _merge(self, offset: int, size: int) -> None:
        place = bisect_left(self._free, (offset, size))
        after = self._free[place] if place < len(self._free) else None
        if after and offset + size == after[0]:
            size += after[1]
            del self._free[place]
        before = self._free[place - 1] if place else None
        if before and before[0] + before[1] == offset:
            del self._free[place - 1]
            offset, size = before[0], before[1] + size
        insort(self._free, (offset, size))
