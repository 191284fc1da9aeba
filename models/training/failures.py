"""What ends a run from outside, in words: memory that is not there, a process that has gone."""

import logging
import sys

import torch

from convoy.models.recipe import Recipe

# What torch says where the CPU's memory is not enough, and its libraries where another process is not there any more.
NO_MEMORY = ("can't allocate memory", "not enough memory")
GONE = ("gloo", "nccl")
# Lightning's, of what ends this process by a signal that nothing can catch.
LAUNCHER = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")


def in_words(error: RuntimeError, recipe: Recipe) -> str | None:
    """What happened and what to do about it, where it is one of these; None of any other error."""
    said = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or any(words in said for words in NO_MEMORY):
        crop = f", or --crop below {recipe.crop}" if recipe.crop is not None else ""
        return (
            f"memory is not enough for batches of {recipe.batch_size}: want a smaller --batch-size, with --accumulate "
            f"the steps stay as large{crop}"
        )
    if isinstance(error, torch.distributed.DistError) or any(words in said for words in GONE):
        return f"another process of this run has ended, or cannot be reached: {' '.join(str(error).split())[:200]}"
    return None


def tell_of_lost_processes() -> None:
    """Let one line say that a process which this one had started has ended, and all the others with it: Lightning says
    so where nobody hears it, and then kills them."""
    if not LAUNCHER.handlers:
        LAUNCHER.setLevel(logging.INFO)
        LAUNCHER.addHandler(_Told())
        LAUNCHER.propagate = False


class _Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "terminated with code" in record.getMessage():
            print(
                "convoy train: a process of this run has ended before its time, so all of it ends; "
                "go on with:  convoy train --resume RUN",
                file=sys.stderr,
                flush=True,
            )
