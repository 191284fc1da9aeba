"""Files of one's own data that cannot be trained with: named with the reason, and what comes of it."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from convoy.models import surroundings
from convoy.models.errors import BadData


class Fault(NamedTuple):
    """A file, and a sentence that names it, what is wrong and what was wanted."""

    file: Path
    reason: str


# Takes what is wrong with the pictures of a data set, of which there are so many.
Report = Callable[[Sequence[Fault], int], None]

_told: set[str] = set()  # by `tell` and `remark`


def in_words(path: Path) -> str:
    """A path as text that can be written anywhere: bytes of a name that are not UTF-8 as their numbers."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def tell(faults: Sequence[Fault], pictures: int) -> None:
    """Each fault on stderr, once however often the data are read, then how many pictures were left out."""
    # Where several processes of a host read the same data, the first of them speaks.
    if surroundings.local_rank() != 0:
        return
    new = [fault for fault in faults if fault.reason not in _told]
    for fault in new:
        print(f"left out: {fault.reason}", file=sys.stderr)
    if new:
        print(f"left out {len(faults)} of {pictures} pictures; --strict makes that an error", file=sys.stderr)
    _told.update(fault.reason for fault in new)


def remark(line: str) -> None:
    """How the data were understood, on stderr; once, however often they are read."""
    if surroundings.local_rank() == 0 and line not in _told:
        print(line, file=sys.stderr)
        _told.add(line)


def refuse(faults: Sequence[Fault], _: int) -> None:
    """Raises BadData at the first fault, with the number of the others."""
    if faults:
        more = f"; and {len(faults) - 1} more such files" if len(faults) > 1 else ""
        raise BadData(faults[0].reason + more)
