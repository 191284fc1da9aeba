"""How many threads torch may keep busy here."""

import os
from pathlib import Path

import torch

MOST = 16  # small networks only lose by more


def limit(threads: int = 0) -> None:
    """Give torch that many threads; 0 means one for each core this process may really use, up to 16."""
    torch.set_num_threads(threads or min(_cores(), MOST))


def _cores() -> int:
    cores = len(os.sched_getaffinity(0))
    try:
        # A container's share: torch looks at the machine's cores only, and threads that wait for a share spin.
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
