"""The number of threads torch may use."""

import os

import torch

from convoy.service.machine import cores

MOST = 16  # small networks get slower with more


def limit(processes: int = 1) -> None:
    """Sets torch's threads to the number of cores available to this process, at most 16; `processes` share the cores.

    A lower OMP_NUM_THREADS, which clusters set for each task of a job, is respected.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    most = int(asked) if asked.isascii() and asked.isdecimal() and int(asked) else MOST
    torch.set_num_threads(max(1, min(cores() // processes, MOST, most)))
