"""Communication between processes that train one network together; a no-op in a single process."""

import os
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch import distributed as dist

from convoy.models import launch


def launched() -> tuple[int, int] | None:
    """Returns the processes per host and the number of hosts under torchrun; None if torchrun did not start this."""
    if not launch.by_torchrun():
        return None
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return here, everywhere // here


def settle() -> None:
    """Trains alone if this process was started by hand, whatever the environment contains. Raises BadTraining if a
    launcher other than torchrun started several processes."""
    if launch.remove_stale_ranks():
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # Lightning read it at import


def environment() -> list[ClusterEnvironment]:
    """Returns Lightning's source of ranks: torchrun, or else only Convoy itself, not a cluster's scheduler."""
    return [] if launch.by_torchrun() else [LightningEnvironment()]


def is_first() -> bool:
    """Returns whether this process writes files and prints."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank == 0


def several() -> bool:
    """Returns whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def add_up(sums: Tensor) -> Tensor:
    """Returns the sum over all processes, in each of them.

    Gradients flow back into this process's own part. Training averages the gradients of all processes, so each is
    multiplied by the number of processes: the mean is then the gradient of the loss of the whole sum, which is the same
    in every process.
    """
    if not several():
        return sums
    total: Tensor = _Sum.apply(sums)  # type: ignore[no-untyped-call]
    return total


def put_together(part: Tensor) -> tuple[Tensor, slice]:
    """Returns the parts (n, ...) of all processes in rank order, and the position of this process's part.

    The parts may differ in n, not in the other sides.
    """
    if not several():
        return part, slice(0, len(part))
    counts = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(part)], device=part.device))
    lengths = [int(count) for count in counts]
    padded = part.new_zeros((max(lengths), *part.shape[1:]))
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    start = sum(lengths[: dist.get_rank()])
    whole = torch.cat([other[:length] for other, length in zip(parts, lengths, strict=True)])
    return whole, slice(start, start + len(part))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, sums: Tensor) -> Tensor:
        total = sums.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()
