"""How many threads torch may keep busy here."""

import os

import torch

from convoy.service.machine import cores

MOST = 16  # small networks only lose by more


def limit(processes: int = 1) -> None:
    """Give torch one thread for each core that this process may really use, up to 16; `processes` share the cores.

    OMP_NUM_THREADS, as clusters set it for each task of a job, is obeyed where it is less.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    most = int(asked) if asked.isascii() and asked.isdecimal() and int(asked) else MOST
    torch.set_num_threads(max(1, min(cores() // processes, MOST, most)))
