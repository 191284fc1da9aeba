"""What several processes that train one network together exchange; where there is one, nothing."""

import os
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch import distributed as dist

from convoy.models import surroundings


def launched() -> tuple[int, int] | None:
    """How many processes torchrun started on this host, and on how many hosts; None where it did not start this."""
    if not surroundings.by_torchrun():
        return None
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return here, everywhere // here


def settle() -> None:
    """Train alone where this was started by hand, whatever the environment says. Raises BadTraining where a launcher
    that is not torchrun started it several times."""
    if surroundings.forget_ranks():
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # Lightning took it from there as it was imported


def environment() -> list[ClusterEnvironment]:
    """Where Lightning takes ranks from: torchrun, or else only ourselves, not the scheduler of a cluster."""
    return [] if surroundings.by_torchrun() else [LightningEnvironment()]


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank == 0


def several() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def add_up(sums: Tensor) -> Tensor:
    """The sum over all processes, in each of them.

    Gradients flow back through it into this process's own part. Training goes along the mean of all processes'
    gradients, so each comes out as many times larger as there are processes: the mean is then the gradient of what is
    made of the whole sum, as every process makes the same of it.
    """
    if not several():
        return sums
    total: Tensor = _Sum.apply(sums)  # type: ignore[no-untyped-call]
    return total


def put_together(part: Tensor) -> tuple[Tensor, slice]:
    """The parts (n, ...) of all processes in the order of their ranks, and where this one's is among them.

    They may differ in n, not in the other sides.
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
