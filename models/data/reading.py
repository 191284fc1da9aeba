"""Reads every image of a user's data set once, completely, before use. Training then meets only valid files, in every
epoch, resumed run and process. Unchanged files are not read again."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from convoy.models.data import picture, scan
from convoy.models.data.bad_files import Fault
from convoy.models.data.dataset import IGNORE
from convoy.models.data.formats import masks
from convoy.models.data.formats.coding import Coding
from convoy.models.data.formats.listing import Entry
from convoy.models.data.scan import Facts
from convoy.models.errors import BadData
from convoy.service.machine import cores

MEASURED_IMAGES = 2000  # evenly spread over the split, for mean and standard deviation
LEAST_DEVIATION = 1 / 255  # for images of a single value
TITLE = "reading pictures"
AHEAD = 256  # images submitted to the threads at a time

Job = TypeVar("Job")
Result = TypeVar("Result")


def read(root: Path, entries: Sequence[Entry], coding: Coding | None = None) -> list[Facts | Fault]:
    """Returns the facts of each image of a data set and its mask, in the order of the entries, or the fault of an
    invalid one."""
    every = max(1, -(-len(entries) // MEASURED_IMAGES))
    jobs = [(entry, coding, place % every == 0) for place, entry in enumerate(entries)]
    notes, stamps = scan.load(root, coding), [scan.stamps(entry) for entry in entries]
    found: list[Facts | Fault | None] = [
        notes.facts(entry, stamp, measured) for (entry, _, measured), stamp in zip(jobs, stamps, strict=True)
    ]
    missing = [place for place, facts in enumerate(found) if facts is None]
    for place, read_now in zip(missing, in_threads(_facts, [jobs[place] for place in missing], TITLE), strict=True):
        found[place] = read_now
    new = [(entries[place], stamps[place], facts) for place in missing if isinstance(facts := found[place], Facts)]
    if new:
        notes.add(new)
        scan.save(root, coding, notes)
    return [result for result in found if result is not None]


def in_threads(work: Callable[[Job], Result], jobs: Sequence[Job], title: str) -> Iterable[Result]:
    """Yields results in the order of the jobs, from as many threads as there are cores: decoding releases the
    interpreter lock. Shows a progress bar on stderr if it is a terminal."""
    console = Console(stderr=True)
    made = _made(work, jobs)
    return track(made, title, len(jobs), console=console, transient=True, disable=not sys.stderr.isatty())


def histogram(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns the frequency of each value per channel, (C, 256), of an image (..., C)."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(image, -1, 0)])


def moments(counts: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation per channel, of pixels in 0..1, from a histogram (C, 256)."""
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    deviation = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return mean.tolist(), np.maximum(deviation, LEAST_DEVIATION).tolist()


def _made(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
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
        raise BadData(f"mask {file} is {high}x{wide} (height x width), want {height}x{width} as {image} is seen")
    return np.unique(mask).tobytes()
