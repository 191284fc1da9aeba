"""The cores, memory and GPUs available to this process."""

import ctypes
import importlib.util
import math
import os
import resource
from pathlib import Path

HTTP2_LIBRARY = "libnghttp2.so.14"  # the number is that of its ABI
# The limits of a container's cgroup: version 2, then version 1.
_GROUPS = Path("/sys/fs/cgroup")
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def cores(groups: Path | None = None) -> int:
    """How many cores this process may keep busy: its CPU affinity, or its container's CPU quota if that is lower.

    A quota stops all threads for the rest of a period once they have used it up together, so more threads than cores in
    the quota only wait for each other. A fraction of a core is rounded.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *(round(share) for share in _quotas(groups or _GROUPS))]))


def _quotas(groups: Path) -> list[float]:
    """The CPU quotas, in cores, of cgroup versions 2 and 1; empty if unlimited."""
    quotas: list[float] = []
    try:
        quota, period = (groups / "cpu.max").read_text().split()
        quotas.append(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or it contains "max"
        pass
    for controller in ("cpu", "cpu,cpuacct"):
        quota_us, period_us = (_read(groups / controller / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota_us and period_us and quota_us > 0:  # -1: none
            quotas.append(quota_us / period_us)
    return quotas


def memory_bytes(limits: tuple[Path, ...] = _MEMORY_LIMITS) -> int:
    """The memory of the machine, or of the container if that has less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for path in limits if (limit := _read(path)) is not None)])


def available_bytes(groups: Path = _GROUPS, meminfo: Path = Path("/proc/meminfo")) -> int:
    """The memory that can be used without other processes losing theirs: of the machine, or of the container if that
    has less. Files that are only cached count as available."""
    available = memory_bytes()
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    limit, used = _read(groups / "memory.max"), _read(groups / "memory.current")
    if limit is not None and used is not None:
        files = sum(
            int(line.split()[1]) for line in _lines(groups / "memory.stat") if line.startswith("inactive_file ")
        )
        available = min(available, max(0, limit - used + files))
    return available


def own_bytes(pid: int | str = "self", proc: Path = Path("/proc")) -> int:
    """The resident memory of a process that is its own: without files, and without what it shares with others.

    Raises OSError if there is no such process.
    """
    _, resident, shared, *_ = (proc / str(pid) / "statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def usage(pid: int, proc: Path = Path("/proc")) -> tuple[float, int]:
    """The CPU seconds of a process so far, and its resident bytes. Raises OSError if there is no such process."""
    # The name of the program, in parentheses, may contain anything.
    words = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    user, system, resident = int(words[11]), int(words[12]), int(words[21])
    return (user + system) / os.sysconf("SC_CLK_TCK"), resident * os.sysconf("SC_PAGE_SIZE")


def address_space() -> float:
    """The bytes that a process may map (ulimit -v); inf if there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def cuda_devices(library: str = "libcuda.so.1") -> int:
    """The number of CUDA devices that the driver reports; 0 without a driver."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(library)
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):  # none installed, or the library is not a driver
        return 0
    return count.value


def has_library(name: str) -> bool:
    """Whether a shared library is installed."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def has_module(name: str) -> bool:
    """Whether a module is installed. It is not imported, but the packages around it are."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or it contains "max"
        return None
