"""How many threads torch may keep busy here."""

import os
from pathlib import Path

import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")
MOST = 16  # small networks only lose by more


def limit() -> None:
    """Give torch one thread for each core that this process may really use, up to 16."""
    torch.set_num_threads(min(_cores(), MOST))


def _cores() -> int:
    cores = len(os.sched_getaffinity(0))
    try:
        # A container's share: torch looks at the machine's cores only, and threads that wait for a share spin.
        quota, period = QUOTA.read_text().split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
