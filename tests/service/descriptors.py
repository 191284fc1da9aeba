"""What is open in this process."""

import gc
import os
from contextlib import suppress
from pathlib import Path

Open = frozenset[tuple[int, int, int]]


def open_descriptors() -> Open:
    """The open descriptors, each with the device and the number of its file: one that is there later, and not among
    them, was opened since. Others may go meanwhile: what other tests have left is closed at any time."""
    gc.collect()
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the folder itself
            status = os.fstat(int(entry.name))
            found.add((int(entry.name), status.st_dev, status.st_ino))
    return frozenset(found)
