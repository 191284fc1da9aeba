"""Who started this process: torchrun, a run of `convoy train --devices` above it, or somebody's hand, whatever ranks
other programs have left in the environment."""

import os

from convoy.models.errors import BadTraining

# The number of the process that started this one as a part of its run: a copy left over in some shell is another's.
PARENT = "CONVOY_TRAINING_PARENT"
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_LEFT_OVER = (*_TORCHRUN, "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
# How many processes a launcher started, by those that start a command several times.
_COUNTS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "WORLD_SIZE": "a launcher",
}


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else None


# Lightning takes its rank from these as it is imported, and fails on what is no number: so here, as this is imported.
for _name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
    if _number(_name) is None:
        os.environ.pop(_name, None)


def by_torchrun() -> bool:
    """Whether torchrun started this."""
    return "TORCHELASTIC_RUN_ID" in os.environ and all(_number(name) is not None for name in _TORCHRUN)


def by_us() -> bool:
    """Whether a run of several processes started this as one of them."""
    return os.environ.get(PARENT) == str(os.getppid()) and _number("LOCAL_RANK") is not None


def local_rank() -> int:
    """The number of this process among those of one run on this host."""
    return _number("LOCAL_RANK") or 0 if by_torchrun() or by_us() else 0


def forget_ranks() -> bool:
    """Whether this process was started by hand; the ranks that are then in the environment, which are not its own, are
    taken out of it.

    Raises BadTraining where a launcher that is not torchrun started it several times: each would train by itself, into
    the folder of the others.
    """
    if by_torchrun() or by_us():
        return False
    for name, launcher in _COUNTS.items():
        count = _number(name)
        if count is not None and count > 1 and os.environ.get(PARENT) != str(os.getpid()):
            raise BadTraining(
                f"{name} is {count}, as if {launcher} had started {count} processes: want torchrun for that, or one "
                f"process with --devices {count}; where {name} is left over from something else, unset it"
            )
    for name in _LEFT_OVER:
        os.environ.pop(name, None)
    return True


def start_others() -> None:
    """To be called before this process starts the others of its run: they take their ranks from it."""
    if not (by_torchrun() or by_us()):
        os.environ[PARENT] = str(os.getpid())
