"""What the machine lends this process: cores and memory."""

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


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # there is none, or it says "max"
        return None
