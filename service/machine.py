"""What the machine lends this process: cores, memory and GPUs."""

import ctypes
import os
from pathlib import Path

# The limits of a control group, as containers have one: version 2, and version 1.
_GROUPS = Path("/sys/fs/cgroup")
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def cores(groups: Path | None = None) -> int:
    """How many this process may keep busy: those that it may run on, or what the quota of its container allows.

    A quota stops all threads for the rest of a period once they have used it up together, so more threads than it has
    cores only make each wait for the others. A part of a core counts from a half on.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *(round(share) for share in _quotas(groups or _GROUPS))]))


def _quotas(groups: Path) -> list[float]:
    """In cores, of version 2 and version 1 of control groups; none where nothing is limited."""
    found: list[float] = []
    try:
        quota, period = (groups / "cpu.max").read_text().split()
        found.append(int(quota) / int(period))
    except (OSError, ValueError):  # there is none, or it says "max"
        pass
    for controller in ("cpu", "cpu,cpuacct"):
        quota_us, period_us = (_read(groups / controller / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota_us and period_us and quota_us > 0:  # -1: none
            found.append(quota_us / period_us)
    return found


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
