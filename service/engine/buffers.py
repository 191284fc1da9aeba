"""Reusable memory for batches: one buffer per input and output of a session, as large as the largest batch so far.

On CUDA it is page-locked, so that the device copies to and from it without an extra copy in the driver.
"""

import mmap
import re
import weakref
from collections.abc import Callable
from ctypes import CDLL, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pin = Callable[[int, int, bool], bool]  # (address, bytes, lock or unlock) -> whether it succeeded

_MAPS = Path("/proc/self/maps")  # lists the libraries that this process has loaded
_RUNTIME = re.compile(r"\S*/libcudart\S*\.so\S*$", re.MULTILINE)
_FOR_EVERY_CONTEXT = 1  # cudaHostRegisterPortable


class Buffer:
    """One tensor's memory. It grows and never shrinks; all views of it show the latest batch."""

    def __init__(self, pin: Pin | None = None) -> None:
        self._pin = pin
        self._unlock: weakref.finalize[..., Buffer] | None = None
        self._bytes: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._bytes)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """A tensor at the start of the buffer, not initialised. The contents of earlier views may change."""
        nbytes = dtype.itemsize
        for side in shape:
            nbytes *= side
        if nbytes > len(self._bytes):
            self._grow(nbytes)
        return np.ndarray(shape, dtype, buffer=self._bytes)

    def _grow(self, nbytes: int) -> None:
        if self._unlock is not None:
            self._unlock()
        size = 1 << (max(nbytes, mmap.PAGESIZE) - 1).bit_length()
        # An anonymous mapping: locking affects whole pages, which must not contain anything else.
        self._bytes = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        address = self._bytes.ctypes.data
        if self._pin is not None and self._pin(address, size, True):
            self._unlock = weakref.finalize(self, self._pin, address, size, False)  # before the memory is freed


def page_lock(device: int, maps: Path = _MAPS, open_library: Callable[[str], CDLL] = CDLL) -> Pin | None:
    """Page locking for a CUDA device, by the runtime that onnxruntime has loaded. None without that."""
    match = _RUNTIME.search(maps.read_text())
    if match is None:
        return None
    runtime = open_library(match[0])
    runtime.cudaSetDevice.argtypes = [c_int]
    runtime.cudaHostRegister.argtypes = [c_void_p, c_size_t, c_uint]
    runtime.cudaHostUnregister.argtypes = [c_void_p]

    def pin(address: int, nbytes: int, locked: bool) -> bool:
        # Memory that cannot be locked (there is a limit) is used unlocked, which is only slower.
        if runtime.cudaSetDevice(device) != 0:
            return False
        if locked:
            return bool(runtime.cudaHostRegister(address, nbytes, _FOR_EVERY_CONTEXT) == 0)
        return bool(runtime.cudaHostUnregister(address) == 0)

    return pin
