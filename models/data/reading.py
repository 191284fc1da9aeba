"""Reads every image of a user's data set once, completely, before use. Training then meets only valid files, in every
epoch, resumed run and process.

The facts are cached: while its files are unchanged, an image is not read again by the next run or by the other
processes of this one.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import PIL
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from convoy.models import paths
from convoy.models.data import picture
from convoy.models.data.dataset import IGNORE
from convoy.models.data.files import Fault
from convoy.models.data.formats import masks
from convoy.models.data.formats.coding import Coding, source
from convoy.models.data.formats.listing import Entry
from convoy.models.errors import BadData
from convoy.service.machine import cores

VERSION = f"3, Pillow {PIL.__version__}"  # of the reading code: notes of another version are ignored
SETTLED_NS = 2_000_000_000  # a file may change twice within one tick of the file system's clock

# Of an image and its mask: size in bytes, mtime and ctime in ns.
Stamps = tuple[tuple[int, int, int], ...]

MEASURED_IMAGES = 2000  # evenly spread over the split, for mean and standard deviation
MIN_DEVIATION = 1 / 255  # for images of a single value
TITLE = "reading pictures"
AHEAD = 256  # images submitted to the threads at a time

Job = TypeVar("Job")
Result = TypeVar("Result")


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
                note = Note(stamps, facts.size, facts.grey, facts.highest, counts, facts.numbers)
                self.pictures[_key(entry)] = note


def load_notes(root: Path, coding: Coding | None) -> Notes:
    """Returns the notes of a data set whose masks have this coding; empty if there are none that can be used."""
    with contextlib.suppress(OSError, RuntimeError, msgspec.MsgspecError):
        notes = msgspec.msgpack.decode(_cache_file(root, coding).read_bytes(), type=Notes)
        if notes.version == VERSION:
            return notes
    return Notes(VERSION, {})


def save_notes(root: Path, coding: Coding | None, notes: Notes) -> None:
    """Writes the notes, without those of files that no longer exist. A failure is ignored: it only costs time."""
    current = {key: note for key, note in notes.pictures.items() if all(map(os.path.exists, key.split(b"\0")))}
    with contextlib.suppress(OSError, RuntimeError):
        file = _cache_file(root, coding)
        file.parent.mkdir(parents=True, exist_ok=True)
        paths.write_atomically(file, msgspec.msgpack.encode(Notes(VERSION, current)))


def stamps_of(entry: Entry) -> Stamps:
    """Returns values that change with the files; empty if one of them does not exist."""
    try:
        return tuple(_stamp(path) for path in _paths(entry))
    except OSError:
        return ()


def read(root: Path, entries: Sequence[Entry], coding: Coding | None = None) -> list[Facts | Fault]:
    """Returns the facts of each image of a data set and its mask, in the order of the entries, or the fault of an
    invalid one."""
    every = max(1, -(-len(entries) // MEASURED_IMAGES))
    jobs = [(entry, coding, place % every == 0) for place, entry in enumerate(entries)]
    notes, stamps = load_notes(root, coding), [stamps_of(entry) for entry in entries]
    results: list[Facts | Fault | None] = [
        notes.facts(entry, stamp, measured) for (entry, _, measured), stamp in zip(jobs, stamps, strict=True)
    ]
    missing = [place for place, facts in enumerate(results) if facts is None]
    for place, read_now in zip(missing, in_threads(_facts, [jobs[place] for place in missing], TITLE), strict=True):
        results[place] = read_now
    new = [(entries[place], stamps[place], facts) for place in missing if isinstance(facts := results[place], Facts)]
    if new:
        notes.add(new)
        save_notes(root, coding, notes)
    return [result for result in results if result is not None]


def in_threads(work: Callable[[Job], Result], jobs: Sequence[Job], title: str) -> Iterable[Result]:
    """Yields results in the order of the jobs, from as many threads as there are cores: decoding releases the
    interpreter lock. Shows a progress bar on stderr if it is a terminal."""
    console = Console(stderr=True)
    results = _results(work, jobs)
    return track(results, title, len(jobs), console=console, transient=True, disable=not sys.stderr.isatty())


def histogram(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns the frequency of each value per channel, (C, 256), of an image (..., C)."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(image, -1, 0)])


def moments(counts: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation per channel, of pixels in 0..1, from a histogram (C, 256)."""
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    deviation = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return mean.tolist(), np.maximum(deviation, MIN_DEVIATION).tolist()


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _paths(entry: Entry) -> list[Path]:
    return [path for path in entry if isinstance(path, Path)]


def _key(entry: Entry) -> bytes:
    return b"\0".join(map(os.fsencode, _paths(entry)))


def _cache_file(root: Path, coding: Coding | None) -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = sha256(os.fsencode(source(root.absolute(), coding))).hexdigest()
    return Path(caches) / "convoy" / "pictures" / f"{name}.msgpack"


def _results(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(jobs), AHEAD):
            yield from pool.map(work, jobs[start : start + AHEAD])


def _facts(job: tuple[Entry, Coding | None, bool]) -> Facts | Fault:
    entry, coding, measure = job
    try:
        grey = picture.header(entry.image).grey
        image = picture.read(entry.image, "L" if grey else "RGB")
        height, width = image.shape[:2]
        size, mask = (height, width), entry.target
        numbers = _numbers(entry.image, size, mask, coding) if isinstance(mask, Path) else b""
    except BadData as error:
        return Fault(entry.image, error.message)
    top = max((number for number in numbers if number != IGNORE), default=0)
    return Facts(size, grey, top, histogram(image) if measure else None, numbers)


def _numbers(image: Path, size: tuple[int, int], file: Path, coding: Coding | None) -> bytes:
    mask = masks.read(file, coding)
    if mask.shape != size:
        (height, width), (high, wide) = size, mask.shape
        raise BadData(f"mask {file} is {high}x{wide} (height x width), want {height}x{width} as {image} is displayed")
    return np.unique(mask).tobytes()
