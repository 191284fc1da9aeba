"""How many threads torch may keep busy here."""

import torch

from service.machine import cores

MOST = 16  # small networks only lose by more


def limit(processes: int = 1) -> None:
    """Give torch one thread for each core that this process may really use, up to 16; `processes` share the cores."""
    torch.set_num_threads(max(1, min(cores() // processes, MOST)))
