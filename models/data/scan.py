"""Cache of the facts read from images: while its files are unchanged, an image is not read again by the next run or by
the other processes of this one."""

import contextlib
import os
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import PIL
from numpy.typing import NDArray

from convoy.models import whole_file
from convoy.models.data.formats.coding import Coding, source
from convoy.models.data.formats.listing import Entry

VERSION = f"3, Pillow {PIL.__version__}"  # of the reading code: notes of another version are ignored
SETTLED_NS = 2_000_000_000  # a file may change twice within one tick of the file system's clock

# Of an image and its mask: size in bytes, mtime and ctime in ns.
Stamps = tuple[tuple[int, int, int], ...]


class Facts(NamedTuple):
    """Facts of one valid image: `size` (height, width) as displayed; the `highest` class of its mask, 0 without a mask;
    the `histogram` (channels, 256) of its values, if it is one of those that are measured; the `numbers` that occur in
    its mask, including IGNORE."""

    size: tuple[int, int]
    grey: bool
    highest: int = 0
    histogram: NDArray[np.int64] | None = None
    numbers: bytes = b""


class Note(msgspec.Struct, array_like=True):
    """`Facts` in serialised form, and the stamps of the files at the time of reading."""

    stamps: Stamps
    size: tuple[int, int]
    grey: bool
    highest: int
    histogram: bytes  # empty if it was not measured
    numbers: bytes


class Notes(msgspec.Struct):
    """Notes of the images of one data set, by the paths of image and mask."""

    version: str
    pictures: dict[bytes, Note]

    def facts(self, entry: Entry, stamps: Stamps, measured: bool) -> Facts | None:
        """Returns the facts recorded for an image; None if there are none or its files have changed."""
        note = self.pictures.get(_key(entry))
        if note is None or not stamps or note.stamps != stamps or (measured and not note.histogram):
            return None
        histogram = np.frombuffer(note.histogram, np.int64).reshape(-1, 256) if measured else None
        return Facts(note.size, note.grey, note.highest, histogram, note.numbers)

    def add(self, read: Iterable[tuple[Entry, Stamps, Facts]]) -> None:
        """Records what was read from files that had these stamps before reading."""
        now = time.time_ns()
        for entry, stamps, facts in read:
            if stamps and all(now - max(times) > SETTLED_NS for _, *times in stamps):
                counts = b"" if facts.histogram is None else facts.histogram.tobytes()
                noted = Note(stamps, facts.size, facts.grey, facts.highest, counts, facts.numbers)
                self.pictures[_key(entry)] = noted


def load(root: Path, coding: Coding | None) -> Notes:
    """Returns the notes of a data set whose masks have this coding; empty if there are none that can be used."""
    with contextlib.suppress(OSError, RuntimeError, msgspec.MsgspecError):
        notes = msgspec.msgpack.decode(_file(root, coding).read_bytes(), type=Notes)
        if notes.version == VERSION:
            return notes
    return Notes(VERSION, {})


def save(root: Path, coding: Coding | None, notes: Notes) -> None:
    """Writes the notes, without those of files that no longer exist. A failure is ignored: it only costs time."""
    there = {key: note for key, note in notes.pictures.items() if all(map(os.path.exists, key.split(b"\0")))}
    with contextlib.suppress(OSError, RuntimeError):
        file = _file(root, coding)
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_file.write(file, msgspec.msgpack.encode(Notes(VERSION, there)))


def stamps(entry: Entry) -> Stamps:
    """Returns values that change with the files; empty if one of them does not exist."""
    try:
        return tuple(_stamp(path) for path in _paths(entry))
    except OSError:
        return ()


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _paths(entry: Entry) -> list[Path]:
    return [path for path in entry if isinstance(path, Path)]


def _key(entry: Entry) -> bytes:
    return b"\0".join(map(os.fsencode, _paths(entry)))


def _file(root: Path, coding: Coding | None) -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = sha256(os.fsencode(source(root.absolute(), coding))).hexdigest()
    return Path(caches) / "convoy" / "pictures" / f"{name}.msgpack"
