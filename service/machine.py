"""What the machine lends this process: cores, memory and GPUs."""

import ctypes
import os
from pathlib import Path

# The limits of a control group, as containers have one: version 2, and version 1.
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def cores() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0))


def memory_bytes(limits: tuple[Path, ...] = _MEMORY_LIMITS) -> int:
    """Of the machine, or of the container where that has less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for path in limits if (limit := _read(path)) is not None)])


def cuda_devices(library: str = "libcuda.so.1") -> int:
    """How many CUDA devices there are, as the driver says; 0 where there is no driver."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(library)
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):  # none is installed, or what is there is none
        return 0
    return count.value


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # there is none, or it says "max"
        return None
