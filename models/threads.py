"""How many threads torch may keep busy here."""

import os
from pathlib import Path

import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")
MOST = 16  # small networks only lose by more


def limit(processes: int = 1) -> None:
    """Give torch one thread for each core that this process may really use, up to 16; `processes` share the cores."""
    torch.set_num_threads(max(1, min(cores() // processes, MOST)))


def cores() -> int:
    """The cores that this process may really use."""
    cores = len(os.sched_getaffinity(0))
    try:
        # A container's share: torch looks at the machine's cores only, and threads that wait for a share spin.
        quota, period = QUOTA.read_text().split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
