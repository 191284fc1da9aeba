"""Reports files of a user's data set that training cannot use, each with the reason."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from convoy.models import launch
from convoy.models.errors import BadData


class Fault(NamedTuple):
    """A file, and a sentence that names it, the problem and what was expected."""

    file: Path
    reason: str


# Receives the faults of a data set and its number of images.
Report = Callable[[Sequence[Fault], int], None]

_printed: set[str] = set()  # already printed by `tell` and `remark`


def printable(path: Path) -> str:
    """Returns a path as printable text: bytes that are not UTF-8 are escaped as numbers."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def print_faults(faults: Sequence[Fault], pictures: int) -> None:
    """Prints each fault to stderr, once per process however often the data is read, then the number of images left
    out."""
    # If several processes of a host read the same data, only the first prints.
    if launch.local_rank() != 0:
        return
    new = [fault for fault in faults if fault.reason not in _printed]
    for fault in new:
        print(f"left out: {fault.reason}", file=sys.stderr)
    if new:
        print(f"left out {len(faults)} of {pictures} pictures; --strict makes that an error", file=sys.stderr)
    _printed.update(fault.reason for fault in new)


def print_once(line: str) -> None:
    """Prints how the data was interpreted to stderr, once per process however often it is read."""
    if launch.local_rank() == 0 and line not in _printed:
        print(line, file=sys.stderr)
        _printed.add(line)


def raise_first(faults: Sequence[Fault], _: int) -> None:
    """Raises BadData at the first fault, with the number of further faults."""
    if faults:
        more = f"; and {len(faults) - 1} more such files" if len(faults) > 1 else ""
        raise BadData(faults[0].reason + more)
