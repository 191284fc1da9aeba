"""Files in data folders, and reports of those that training cannot use.

Files of operating systems are skipped; accents compare equal in every Unicode form.
"""

import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from convoy.models import launch
from convoy.models.errors import BadData
from convoy.service.images.names import is_data


def subfolders(root: Path) -> list[Path]:
    """Returns the direct subfolders of a folder, by name."""
    return sorted(path for path in root.iterdir() if is_data(Path(path.name)) and path.is_dir())


def nfc(name: str) -> str:
    """Returns the NFC form of a name; zip on a Mac writes decomposed accents."""
    return unicodedata.normalize("NFC", name)


def existing(path: Path) -> Path:
    """Returns the path, or, if it does not exist, an existing one whose accents are in another Unicode form."""
    if str(path).isascii() or path.exists():
        return path
    folder = existing(path.parent)
    try:
        alike = sorted(each for each in folder.iterdir() if nfc(each.name) == nfc(path.name))
    except OSError:
        return path
    return alike[0] if alike else path


class Fault(NamedTuple):
    """A file, and a sentence that names it, the problem and what was expected."""

    file: Path
    reason: str


# Receives the faults of a data set and its number of images.
Report = Callable[[Sequence[Fault], int], None]

MOST_PRINTED = 8  # faults of one data set that a command names
_printed: set[str] = set()  # already printed by `print_faults` and `print_once`


def printable(path: Path) -> str:
    """Returns a path as printable text: bytes that are not UTF-8 are escaped as numbers."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def print_faults(faults: Sequence[Fault], pictures: int, most: int = MOST_PRINTED) -> None:
    """Prints the first `most` faults to stderr, once per process however often the data is read, then the number of
    images left out."""
    # If several processes of a host read the same data, only the first prints.
    if launch.local_rank() != 0:
        return
    new = [fault for fault in faults if fault.reason not in _printed]
    for fault in new[:most]:
        print(f"left out: {fault.reason}", file=sys.stderr)
    if len(new) > most:
        print(f"left out: {len(new) - most} more, which `convoy data check` names", file=sys.stderr)
    if new:
        print(f"left out {len(faults)} of {pictures} pictures; --strict makes this an error", file=sys.stderr)
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
