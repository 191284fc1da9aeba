"""What pictures said when they were last read: where its files are as they were, a picture need not be read again,
by the next run or by the other processes of this one."""

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

VERSION = f"3, Pillow {PIL.__version__}"  # of how pictures are read: what another one has noted counts for nothing
SETTLED_NS = 2_000_000_000  # a file may be changed twice within one tick of the clock that stamps it

# Of a picture and its mask: bytes, and the two times of the last change in ns.
Stamps = tuple[tuple[int, int, int], ...]


class Facts(NamedTuple):
    """What one sound picture says: `size` (height, width) as it is seen; the `highest` class of its mask, 0 without;
    how often each value is there, `histogram` (channels, 256), of those that are measured; the `numbers` that are in
    its mask, that of no class among them."""

    size: tuple[int, int]
    grey: bool
    highest: int = 0
    histogram: NDArray[np.int64] | None = None
    numbers: bytes = b""


class Note(msgspec.Struct, array_like=True):
    """`Facts` as they are kept, and the stamps that the files had when they were read."""

    stamps: Stamps
    size: tuple[int, int]
    grey: bool
    highest: int
    histogram: bytes  # empty where it was not measured
    numbers: bytes


class Notes(msgspec.Struct):
    """Of the pictures of one data set, by the paths of picture and mask."""

    version: str
    pictures: dict[bytes, Note]

    def facts(self, entry: Entry, stamps: Stamps, measured: bool) -> Facts | None:
        """What is noted of a picture; None where nothing is, or its files have changed."""
        note = self.pictures.get(_key(entry))
        if note is None or not stamps or note.stamps != stamps or (measured and not note.histogram):
            return None
        histogram = np.frombuffer(note.histogram, np.int64).reshape(-1, 256) if measured else None
        return Facts(note.size, note.grey, note.highest, histogram, note.numbers)

    def add(self, read: Iterable[tuple[Entry, Stamps, Facts]]) -> None:
        """Note what was read, if the files had those stamps before."""
        now = time.time_ns()
        for entry, stamps, facts in read:
            if stamps and all(now - max(times) > SETTLED_NS for _, *times in stamps):
                counts = b"" if facts.histogram is None else facts.histogram.tobytes()
                noted = Note(stamps, facts.size, facts.grey, facts.highest, counts, facts.numbers)
                self.pictures[_key(entry)] = noted


def load(root: Path, coding: Coding | None) -> Notes:
    """The notes of a data set whose masks are read so; empty where there are none that can be used."""
    with contextlib.suppress(OSError, RuntimeError, msgspec.MsgspecError):
        notes = msgspec.msgpack.decode(_file(root, coding).read_bytes(), type=Notes)
        if notes.version == VERSION:
            return notes
    return Notes(VERSION, {})


def save(root: Path, coding: Coding | None, notes: Notes) -> None:
    """Keep the notes, but for files that are not there any more. Where that cannot be, nothing is lost but time."""
    there = {key: note for key, note in notes.pictures.items() if all(map(os.path.exists, key.split(b"\0")))}
    with contextlib.suppress(OSError, RuntimeError):
        file = _file(root, coding)
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_file.write(file, msgspec.msgpack.encode(Notes(VERSION, there)))


def stamps(entry: Entry) -> Stamps:
    """What would change with the files; empty where one of them is not there."""
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
