"""Processes that train one network together: communication, a no-op in a single process, and messages for failures
outside of a run."""

import logging
import os
import sys
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch import distributed as dist

from convoy.models import launch
from convoy.models.settings import Recipe

# torch's messages when CPU memory is insufficient, and its libraries' names when another process has died.
NO_MEMORY = ("can't allocate memory", "not enough memory")
LOST = ("gloo", "nccl")
# Lightning's logger for the death of a process, before it kills this one with a signal that cannot be caught.
LAUNCHER = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")


def launched() -> tuple[int, int] | None:
    """Returns the processes per host and the number of hosts under torchrun; None if torchrun did not start this."""
    if not launch.by_torchrun():
        return None
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return here, everywhere // here


def remove_stale_ranks() -> None:
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


def is_parallel() -> bool:
    """Returns whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(sums: Tensor) -> Tensor:
    """Returns the sum over all processes, in each of them.

    Gradients flow back into this process's own part. Training averages the gradients of all processes, so each is
    multiplied by the number of processes: the mean is then the gradient of the loss of the whole sum, which is the same
    in every process.
    """
    if not is_parallel():
        return sums
    total: Tensor = _Sum.apply(sums)  # type: ignore[no-untyped-call]
    return total


def gather(part: Tensor) -> tuple[Tensor, slice]:
    """Returns the parts (n, ...) of all processes in rank order, and the position of this process's part.

    The parts may differ in n, not in the other sides.
    """
    if not is_parallel():
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


def explained(error: RuntimeError, recipe: Recipe) -> str | None:
    """Returns a message with the cause and a remedy for these errors; None for any other error."""
    message = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or any(words in message for words in NO_MEMORY):
        crop = f", or --crop below {recipe.crop}" if recipe.crop is not None else ""
        return (
            f"not enough memory for batches of {recipe.batch_size}: want a smaller --batch-size, with --accumulate "
            f"the steps keep their size{crop}"
        )
    if isinstance(error, torch.distributed.DistError) or any(words in message for words in LOST):
        return f"another process of this run has ended, or cannot be reached: {' '.join(str(error).split())[:200]}"
    return None


def report_lost_processes() -> None:
    """Prints one line when a process that this one started has died: Lightning only logs this, unseen, and then kills
    all processes."""
    if not LAUNCHER.handlers:
        LAUNCHER.setLevel(logging.INFO)
        LAUNCHER.addHandler(_LostProcess())
        LAUNCHER.propagate = False


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, sums: Tensor) -> Tensor:
        total = sums.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()


class _LostProcess(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "terminated with code" in record.getMessage():
            print(
                "convoy train: a process of this run died, so the run ends; resume with:  convoy train --resume RUN",
                file=sys.stderr,
                flush=True,
            )
