"""Images whose paths are in a CSV file or on standard input."""

import csv
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from shutil import copyfileobj
from typing import IO

from convoy.service.errors import BadConfig, listed
from convoy.service.scoring.entries import Entry, File, text
from convoy.service.scoring.folders import beside

SUFFIXES = {".csv": ",", ".tsv": "\t"}
PATHS = ("path", "file", "filename", "file_name", "image")  # columns of paths, as they are usually called
_FIRST = 1 << 16  # bytes in which the end of the first path is looked for


def rows(name: str, path: str, column: str, id_column: str) -> Iterator[Entry]:
    """The images that the CSV file at `path`, which is absolute, names relative to its folder.

    They are in `column`, or in the one with a usual name; in a file without such a header in its first column.
    Raises BadConfig.
    """
    line = 0
    try:
        # utf-8-sig: spreadsheets write a mark at the start.
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=SUFFIXES[Path(path).suffix.lower()])
            places: tuple[int, int | None] | None = None
            for row in filter(None, reader):
                line = reader.line_num
                if places is None:
                    places = _columns(name, row, column, id_column)
                    if places is not None:
                        continue
                    places = 0, None
                where, id_ = places
                if len(row) <= max(where, id_ or 0):
                    raise BadConfig(f"line {line} of {name!r} ends before column {max(where, id_ or 0) + 1}")
                yield Entry(text(row[where if id_ is None else id_]), File(beside(path, row[where])))
    except csv.Error as error:
        raise BadConfig(f"{name!r} cannot be read after line {line} ({error}), want a CSV file") from None


def standard_input() -> Iterator[Entry]:
    """The images whose paths are on standard input: one a line, or with a zero byte after each (`find -print0`).

    It is copied to a file first: it may be needed more than once.
    """
    with Path(f"/proc/self/fd/{_copied().fileno()}").open("rb") as file:  # opened anew: with a position of its own
        zero = b"\0" in file.read(_FIRST)
        file.seek(0)
        root = os.getcwd()
        for line in _ending_in_zero(file) if zero else file:
            path = os.fsdecode(line if zero else line.rstrip(b"\r\n"))
            if path:
                yield Entry(text(path), File(os.path.join(root, path)))


def _columns(name: str, row: list[str], column: str, id_column: str) -> tuple[int, int | None] | None:
    """Where the paths and ids are; None if the first row is not a header."""
    for wanted in filter(None, (column, id_column)):
        if wanted not in row:
            raise BadConfig(f"{name!r} has no column {wanted!r}, but {listed(map(text, row))}")
    where = column or next((each for each in PATHS if each in row), None)
    if where is None and not id_column:
        return None
    if where is None:
        raise BadConfig(f"{name!r} has no column {PATHS[0]!r}, but {listed(map(text, row))}: name that of the paths")
    ids = id_column or ("id" if "id" in row else None)
    return row.index(where), row.index(ids) if ids is not None else None


@lru_cache(maxsize=1)
def _copied() -> IO[bytes]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
    copyfileobj(sys.stdin.buffer, copy)
    copy.flush()
    return copy


def _ending_in_zero(file: IO[bytes]) -> Iterator[bytes]:
    left = b""
    while data := file.read(_FIRST):
        *paths, left = (left + data).split(b"\0")
        yield from paths
    yield left
