"""Image memory that front ends and the engine share: a front end's memory file, and which process may access what.

A front end owns one memory file (`Arena`) and allocates the input and output space of its slots in it. The engine maps
the same memory (`SharedMemory`); it only reads inputs and only writes outputs and marks. Nothing has a name in the
file system.
"""

import math
import mmap
import os
import threading
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convoy.service.dtypes import DTYPES
from convoy.service.errors import BadTensor, QueueFull

ALIGNMENT = 64  # bytes; a cache line, and efficient for vector loads
MAX_RANK = 8
_KEPT_SHARE = 8  # at most 1/8 of the memory is kept for reuse
COPIED_AT_ONCE = 1 << 18  # bytes; copying them takes less than 0.1 ms, as long as a hop to a thread and back
_WORD = 4  # bytes of a mark
SPILLED = (1 << 64) - 1  # offset of an output of unknown size, which travels in its own memory file
# At the end of an output that is not written yet. Drawn anew in each process; no answer contains it.
_SECRET = os.urandom(8)
_NOWHERE: Mapping[int, int] = MappingProxyType({})

Contents = bytes | memoryview | NDArray[np.generic]


class Span(NamedTuple):
    """The location and type of a tensor in shared memory. `number` is its index in the network's inputs or outputs."""

    number: int
    offset: int  # bytes from the start of the arena, or SPILLED
    nbytes: int  # for an output in a Request: the space reserved
    dtype: str  # numpy's name
    shape: tuple[int, ...]

    def moved(self, by: int) -> "Span":
        """Returns the same span `by` bytes further on."""
        number, offset, nbytes, dtype, shape = self
        return Span(number, offset + by, nbytes, dtype, shape)


@lru_cache(maxsize=1024)
def layout(
    inputs: tuple[tuple[str, tuple[int, ...]], ...],
    output_bytes: tuple[tuple[int, int], ...],
    elsewhere: frozenset[int] = frozenset(),
) -> tuple[int, tuple[Span, ...], tuple[Span, ...]]:
    """Returns the bytes of a slot, and its inputs and outputs, aligned, at offsets from the start of the slot.

    inputs        (dtype, shape) of each
    output_bytes  (number, bytes) of each
    elsewhere     numbers of inputs that need no space in the slot; their offsets mean nothing
    """
    at = 0
    into, out_of = [], []
    for number, (dtype, shape) in enumerate(inputs):
        nbytes = DTYPES[dtype].itemsize * math.prod(shape)
        into.append(Span(number, at, nbytes, dtype, shape))
        if number not in elsewhere:
            at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    for number, nbytes in output_bytes:
        out_of.append(Span(number, at, nbytes, "uint8", (nbytes,)))
        at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return at, tuple(into), tuple(out_of)


def memory_file(nbytes: int) -> int:
    """Returns a file descriptor of `nbytes` of anonymous memory. Pages are allocated on first write."""
    descriptor = os.memfd_create("convoy", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, nbytes)
    return descriptor


def mark_of(block: tuple[int, int]) -> int:
    """Returns the index of a block's mark in `SharedMemory.marks`: 0 while it does not run, else 1 + the row that runs
    alone, or 1 if all rows run."""
    return block[0] // _WORD


class SharedMemory:
    """Shared memory mapped into this process. Both sides have one; the front end's is part of its Arena."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = mmap.mmap(descriptor, nbytes)
        self._view = memoryview(self._memory)
        self._address, _ = _location(self._memory)
        self.marks = self._view[: nbytes // _WORD * _WORD].cast("I")  # see Arena.claim

    def array(self, span: Span) -> NDArray[np.generic]:
        """Returns a view of the tensor at `span`. Raises BadTensor if it exceeds the memory."""
        dtype = DTYPES[span.dtype]
        nbytes = dtype.itemsize
        for side in span.shape:
            nbytes *= side
        self._check(span.offset, nbytes, min(span.shape, default=0))
        return np.ndarray(span.shape, dtype, buffer=self._memory, offset=span.offset)

    def output(self, span: Span, descriptors: list[int]) -> NDArray[np.generic]:
        """Returns a view of an output. A spilled one is in the file of the first descriptor, which is removed."""
        if span.offset != SPILLED:
            return self.array(span)
        descriptor = descriptors.pop(0)
        memory = mmap.mmap(descriptor, max(1, span.nbytes), prot=mmap.PROT_READ)
        os.close(descriptor)
        return np.ndarray(span.shape, DTYPES[span.dtype], buffer=memory)

    def bytes_at(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Returns a view of `nbytes` bytes at `offset`. Raises BadTensor if they exceed the memory."""
        self._check(offset, nbytes, nbytes)
        return np.ndarray((nbytes,), np.uint8, buffer=self._memory, offset=offset)

    def view(self, span: Span) -> memoryview:
        """Returns a view of the tensor's bytes at `span`. Raises BadTensor if they exceed the memory."""
        self._check(span.offset, span.nbytes, span.nbytes)
        return self._view[span.offset : span.offset + span.nbytes]

    def poison(self, span: Span) -> None:
        """Overwrites the end of an output's space, which has the answer to an earlier request, unless it is tiny."""
        if span.nbytes >= len(_SECRET):
            end = span.offset + span.nbytes
            self._view[end - len(_SECRET) : end] = _SECRET

    def is_poisoned(self, span: Span) -> bool:
        """Returns whether nobody has written an output, at least not to its end, since `poison`."""
        end = span.offset + span.nbytes
        return span.nbytes >= len(_SECRET) and self._view[end - len(_SECRET) : end] == _SECRET

    def offset_of(self, parts: Sequence[Contents]) -> int | None:
        """Returns where these contiguous contents lie in this memory, one behind the other; None if they do not."""
        begin, _ = _location(parts[0])
        end = begin
        for part in parts:
            address, nbytes = _location(part)
            if address != end:
                return None
            end += nbytes
        inside = self._address <= begin and end <= self._address + self.nbytes
        return begin - self._address if inside else None

    def _check(self, offset: int, nbytes: int, smallest_side: int) -> None:
        # numpy's own check overflows for huge offsets and sizes.
        if smallest_side < 0 or not 0 <= offset <= self.nbytes - nbytes:
            raise BadTensor(f"{nbytes} bytes at {offset} do not fit into slot memory of {self.nbytes}")


def _location(data: Contents | mmap.mmap) -> tuple[int, int]:
    """Returns the address of contiguous bytes, and their number."""
    values = np.frombuffer(data, np.uint8)
    return values.__array_interface__["data"][0], values.nbytes


class Arena:
    """A front end's shared memory and its allocator.

    Freed blocks are kept whole for reuse at the same size, up to an eighth of the memory, because a front end requests
    the same few sizes repeatedly. Otherwise allocation is first fit, lowest address first.

    One writer: the front end that created it. Safe to call from its threads.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.used_bytes = 0
        self.descriptor = memory_file(nbytes)
        self.mapping = SharedMemory(self.descriptor, nbytes)
        self._lock = threading.Lock()
        self._used: dict[int, int] = {}  # bytes of each block in use, by offset
        self._kept: dict[int, list[int]] = {}  # offsets of blocks kept for reuse, by size
        self._kept_bytes = 0
        self._free: list[tuple[int, int]] = [(0, nbytes)]  # the rest: (offset, bytes), by offset, never adjacent

    @property
    def blocks(self) -> int:
        """Number of blocks in use."""
        return len(self._used)

    def claim(
        self,
        inputs: tuple[tuple[str, tuple[int, ...]], ...],
        output_bytes: tuple[tuple[int, int], ...],
        landed: Mapping[int, int] = _NOWHERE,
    ) -> tuple[tuple[int, int], tuple[Span, ...], tuple[Span, ...]]:
        """Returns a block, and the inputs of these (dtype, shape) and outputs of these (number, bytes) in it. Raises
        QueueFull if none is free.

        The block begins with a mark (see `mark_of`). The engine writes it before and after a run, so it survives an
        engine that dies in the run.

        landed  offsets of inputs that are elsewhere in the memory, by number
        """
        nbytes, into, out_of = layout(inputs, output_bytes, frozenset(landed))
        block = self.allocate(ALIGNMENT + nbytes)
        begin = block[0] + ALIGNMENT
        given = tuple([span.moved(landed.get(span.number, begin + span.offset) - span.offset) for span in into])
        return block, given, tuple([span.moved(begin) for span in out_of])

    def allocate(self, nbytes: int) -> tuple[int, int]:
        """Returns the (offset, bytes) of an aligned block of at least `nbytes`. Raises QueueFull if none is free."""
        size = max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
        with self._lock:
            offset = self._find(size)
            if offset is not None:
                self._used[offset] = size
                self.used_bytes += size
                return offset, size
        if size > self.nbytes:
            raise BadTensor(f"request needs {nbytes} bytes of slot memory, want at most {self.nbytes}")
        raise QueueFull(f"slot memory of {self.nbytes} bytes is in use", retry_after=0.05)

    def free(self, block: tuple[int, int]) -> None:
        """Frees a block that `allocate` returned."""
        offset, size = block
        with self._lock:
            if self._used.pop(offset, 0) != size:
                raise AssertionError("a slot's block was freed twice")
            self.used_bytes -= size
            if self._kept_bytes + size > self.nbytes // _KEPT_SHARE:
                self._release_kept()
            self._kept.setdefault(size, []).append(offset)
            self._kept_bytes += size

    def _find(self, size: int) -> int | None:
        if kept := self._kept.get(size):
            self._kept_bytes -= size
            return kept.pop()
        offset = self._first_fit(size)
        if offset is None and self._kept_bytes:
            self._release_kept()
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

    def _release_kept(self) -> None:
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
