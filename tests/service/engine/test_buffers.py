"""Memory that is used again: it grows, stays where it is, and is page-locked where there is something that locks it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.service.engine.buffers import Buffer, page_lock

F4, U1 = np.dtype(np.float32), np.dtype(np.uint8)


class Runtime:
    """libcudart: says yes to at most `most` bytes, and keeps the books."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.most = most
        self.locked: dict[int, int] = {}
        self.devices: list[int] = []
        self.cudaSetDevice = self._function(lambda device: self.devices.append(device) or 0)
        self.cudaHostRegister = self._function(self._register)
        self.cudaHostUnregister = self._function(lambda address: 0 if self.locked.pop(address, 0) else 1)

    def _function(self, call: Any) -> Any:
        class Function:
            def __call__(self, *arguments: int) -> Any:
                return call(*arguments)

        return Function()

    def _register(self, address: int, nbytes: int, flags: int) -> int:
        if nbytes > self.most:
            return 2
        assert address % 4096 == 0
        self.locked[address] = nbytes
        return 0


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    file = tmp_path / "maps"
    file.write_text(
        "7f00-7f01 r-xp 00 08:01 5  /usr/lib/libc.so.6\n7f02-7f03 r-xp 00 08:01 6  /opt/c/libcudart.so.13.0\n"
    )
    return file


def lock(maps: Path, runtime: Runtime, device: int = 0) -> Any:
    opened: list[str] = []
    pin = page_lock(device, maps, lambda path: opened.append(path) or runtime)  # type: ignore[func-returns-value,return-value]
    assert opened == ["/opt/c/libcudart.so.13.0"]
    return pin


def test_memory_is_the_same_for_batches_that_fit() -> None:
    buffer = Buffer()
    first = buffer.array((4, 8), F4)
    assert np.shares_memory(first, buffer.array((2, 3), U1))
    assert buffer.array((5,), U1).ctypes.data == first.ctypes.data
    assert (first.shape, first.dtype, first.flags.c_contiguous) == ((4, 8), F4, True)


def test_memory_grows_and_never_shrinks() -> None:
    buffer = Buffer()
    sizes = []
    for nbytes in (0, 10, 5000, 20, 100_000, 100_001, 1):
        assert buffer.array((nbytes,), U1).nbytes == nbytes
        sizes.append(len(buffer))
    assert sizes == sorted(sizes)
    assert sizes[-1] == 131_072


def test_view_from_before_it_grew_stays_whole() -> None:
    buffer = Buffer()
    old = buffer.array((100,), U1)
    old[:] = 7
    buffer.array((1 << 20,), U1)[:] = 9
    assert (old == 7).all()


def test_cuda_memory_is_locked_while_it_is_used(maps: Path) -> None:
    runtime = Runtime()
    buffer = Buffer(lock(maps, runtime, device=3))
    address = buffer.array((10,), U1).ctypes.data
    assert runtime.locked == {address: 4096}
    assert set(runtime.devices) == {3}
    larger = buffer.array((5000,), U1).ctypes.data
    assert runtime.locked == {larger: 8192}
    del buffer
    assert runtime.locked == {}


def test_memory_that_cannot_be_locked_is_used_as_it_is(maps: Path) -> None:
    runtime = Runtime(most=4096)
    buffer = Buffer(lock(maps, runtime))
    assert buffer.array((5000,), U1).nbytes == 5000
    assert runtime.locked == {}


def test_nothing_is_locked_where_there_is_no_cuda_runtime(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("7f00-7f01 r-xp 00 08:01 5  /usr/lib/libc.so.6\n")
    assert page_lock(0, tmp_path / "maps") is None
