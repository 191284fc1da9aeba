"""What is scored: the images that a source names, in a fixed order, and the bytes of each.

Files count by their names, as in training: in a folder, a pattern or a tar, what is not called as an image is skipped.
In a list each path counts. What is in a file shows when it is read: no image is a row with its error.
"""

import os
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadConfig, BadImage
from convoy.service.scoring import folders, lists, parquets, tars
from convoy.service.scoring.entries import Cell, Entry, File, Member, Refused, text

__all__ = ["Cell", "Entry", "File", "Member", "Refused", "listed", "read"]

STANDARD_INPUT = "-"
_MAGIC = "*?["
_TOGETHER = 8192  # ids looked up at once

_Listing = Callable[[], Iterator[Entry]]


def listed(source: str, *, column: str = "", id_column: str = "") -> Iterator[Entry]:
    """The images of a source, in an order that depends on names alone. Reads no image.

    source     a folder, a glob, a tar, a Parquet or CSV file, an image, or - for paths on standard input
    column     the column of images or paths in Parquet and CSV; "": looked for
    id_column  the column of ids in them; "": `id` if there is one, else the path, else the row
    Raises BadConfig, in one line: also in the middle, for what is seen only there. Goes through the source once, except
    to name both places of an id that is there twice. Keeps 8 bytes for each id, and the names of one folder.
    """
    listing = _listing(os.path.expanduser(source), column, id_column)  # the shell leaves quoted ones
    empty = True
    try:
        for entry in _unique(listing):
            empty = False
            yield entry
    except OSError as error:
        raise _unreadable(source, error) from None
    if empty:
        raise BadConfig(f"{source!r} has no images in it")


def read(entry: Entry) -> bytes:
    """The bytes of an image, as they are stored. Raises OSError, and BadImage for what is no file, too large or
    missing. Any thread may call it; it is fastest in about the order of the list."""
    match entry.place:
        case File(path):
            return folders.read(path)
        case Member():
            return tars.read(entry.place)
        case Cell():
            return parquets.read(entry.place)
        case Refused(why):
            raise BadImage(why)


def _listing(source: str, column: str, id_column: str) -> _Listing:
    if source == STANDARD_INPUT:
        return lists.standard_input
    if os.path.isdir(source):
        kinds = _kinds_of_folder(source)
        return lambda: _of_files(folders.walk(source), kinds, column, id_column)
    if os.path.splitext(source)[1].lower() in lists.SUFFIXES and os.path.exists(source):
        return lambda: lists.rows(source, os.path.join(os.getcwd(), source), column, id_column)
    if os.path.lexists(source):
        return lambda: _of_files(iter([source]), _KINDS, column, id_column)
    if any(sign in source for sign in _MAGIC):
        return lambda: _of_files(folders.matching(source), _KINDS, column, id_column)
    raise BadConfig(f"there is no file or folder {source!r}, want a folder, a pattern, a tar, a Parquet or a CSV file")


_Kind = Callable[[str], bool]
_KINDS: tuple[_Kind, ...] = (tars.is_called_tar, parquets.is_called_parquet, folders.is_picture)


def _kinds_of_folder(folder: str) -> tuple[_Kind, ...]:
    """A folder of images is one of images alone: tables beside them describe them, and are no second copy."""
    return _KINDS[2:] if any(map(folders.is_picture, folders.walk(folder))) else _KINDS[:2]


def _of_files(paths: Iterator[str], kinds: tuple[_Kind, ...], column: str, id_column: str) -> Iterator[Entry]:
    root = os.getcwd()
    for path in paths:
        where = os.path.join(root, path)
        kind = next((each for each in kinds if each(path)), None)
        try:
            if kind is tars.is_called_tar:
                yield from tars.members(path, where)
            elif kind is parquets.is_called_parquet:
                yield from parquets.rows(path, where, column, id_column)
            elif kind is folders.is_picture:
                yield Entry(text(path), File(where))
        except OSError as error:
            raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> BadConfig:
    return BadConfig(f"{path!r} cannot be read: {error.strerror or ' '.join(str(error).split())[:200]}")


def _unique(listing: _Listing) -> Iterator[Entry]:
    """Raises BadConfig for an id that is there twice, and names both places."""
    seen = _Hashes()
    entries = listing()
    done = 0
    while part := list(islice(entries, _TOGETHER)):
        for at in seen.add(np.fromiter((hash(entry.id) for entry in part), np.int64, len(part))):
            first = next(index for index, entry in enumerate(listing()) if entry.id == part[at].id)
            if first < done + at:  # else two ids have the same hash
                before = next(islice(listing(), first, None))
                raise BadConfig(
                    f"id {part[at].id!r} is there twice, want unique ones: {_where(before, first)} and "
                    f"{_where(part[at], done + at)}"
                )
        yield from part
        done += len(part)


def _where(entry: Entry, index: int) -> str:
    """Where an image lies, for a message."""
    match entry.place:
        case File(path):
            return repr(path)
        case Member(path, offset):
            return f"byte {offset} of {path!r}"
        case Cell(path, group, row):
            return f"row {row} of row group {group} of {path!r}"
        case Refused():
            return f"number {index + 1}"


class _Hashes:
    """Hashes that have been seen: sorted runs that double in length, 8 bytes for each."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []

    def add(self, hashes: NDArray[np.int64]) -> list[int]:
        """Adds them, and returns the indices of those that have been there before, in order."""
        order = np.argsort(hashes, kind="stable")
        run = hashes[order]
        found = set(order[1:][run[1:] == run[:-1]].tolist())
        for earlier in self._runs:
            at = np.minimum(np.searchsorted(earlier, hashes), len(earlier) - 1)
            found |= set(np.flatnonzero(earlier[at] == hashes).tolist())
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # merges
        self._runs.append(run)
        return sorted(found)
