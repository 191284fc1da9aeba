"""An image of a source: what it is called, and where its bytes lie."""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple


class File(NamedTuple):
    """An image file. `path` is absolute; bytes that are not UTF-8 are in it as the system passes them to Python."""

    path: str


class Member(NamedTuple):
    """Bytes of a tar: from `offset`, in the unpacked tar if it is a compressed one."""

    path: str
    offset: int
    size: int


class Cell(NamedTuple):
    """A value of a Parquet file: the row of a row group, in the column of the images."""

    path: str
    group: int
    row: int
    column: str


class Refused(NamedTuple):
    """Something with the name of an image that has no bytes of its own: `why` is the error of its row."""

    why: str


Place = File | Member | Cell | Refused
_KINDS: Mapping[str, type[Place]] = {each.__name__: each for each in (File, Member, Cell, Refused)}


class Entry(NamedTuple):
    """One image: `id` is unique in its source, and text that Parquet can hold; `place` is what `sources.read` needs: a
    plain tuple, and the same on every machine that has the files under the same absolute paths."""

    id: str
    place: Place


def packed(place: Place) -> str:
    """A place as text, for `unpacked`."""
    return json.dumps([type(place).__name__, *place])


def unpacked(text: str) -> Place:
    """The place that `packed` made into a text."""
    kind, *fields = json.loads(text)
    return _KINDS[kind](*fields)


def text(name: str) -> str:
    """A name as an id: bytes that are not UTF-8 become \\xff and the like, since a Parquet file has only text."""
    return name if name.isascii() else os.fsencode(name).decode(errors="backslashreplace")
