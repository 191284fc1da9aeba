"""How this process was started: by torchrun, by a run of `convoy train --devices`, or by hand with ranks of other
programs left in the environment."""

import os

from convoy.models.errors import BadTraining

# The pid of the process that started this one as part of its run. A stale copy in a shell has another pid.
PARENT = "CONVOY_TRAINING_PARENT"
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_LEFT_OVER = (*_TORCHRUN, "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
# Variables with a launcher's process count, and the launchers that start a command several times.
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


# Lightning reads its rank from these variables when it is imported, and fails on a non-number; so they are removed now.
for _name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
    if _number(_name) is None:
        os.environ.pop(_name, None)


def by_torchrun() -> bool:
    """Returns whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and all(_number(name) is not None for name in _TORCHRUN)


def by_convoy() -> bool:
    """Returns whether a multi-process run of Convoy started this process."""
    return os.environ.get(PARENT) == str(os.getppid()) and _number("LOCAL_RANK") is not None


def local_rank() -> int:
    """Returns the index of this process among those of its run on this host."""
    return _number("LOCAL_RANK") or 0 if by_torchrun() or by_convoy() else 0


def is_first() -> bool:
    """Returns whether this process is the first of its run, on all hosts."""
    return not (by_torchrun() or by_convoy()) or (_number("RANK") or _number("LOCAL_RANK") or 0) == 0


def remove_stale_ranks() -> bool:
    """Returns whether this process was started by hand. If so, removes other programs' ranks from the environment.

    Raises BadTraining if a launcher other than torchrun started several processes: each would train on its own, all
    into the same folder.
    """
    if by_torchrun() or by_convoy():
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


def mark_parent() -> None:
    """Must be called before this process starts the others of its run: they derive their ranks from it."""
    if not (by_torchrun() or by_convoy()):
        os.environ[PARENT] = str(os.getpid())
