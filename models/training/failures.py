"""Messages for failures outside of a run: lack of memory, or a process that died."""

import logging
import sys

import torch

from convoy.models.settings import Recipe

# torch's messages when CPU memory is insufficient, and its libraries' names when another process has died.
NO_MEMORY = ("can't allocate memory", "not enough memory")
GONE = ("gloo", "nccl")
# Lightning's logger for the death of a process, before it kills this one with a signal that cannot be caught.
LAUNCHER = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")


def in_words(error: RuntimeError, recipe: Recipe) -> str | None:
    """Returns a message with the cause and a remedy for these errors; None for any other error."""
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
    """Prints one line when a process that this one started has died: Lightning only logs this, unseen, and then kills
    all processes."""
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
