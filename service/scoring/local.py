"""The local engine: scores a source on this machine, part by part, and continues where a run has ended.

What a kill costs is the parts that were being scored. Parts overlap, so that no core waits at the end of one.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from convoy.service.errors import BadConfig
from convoy.service.scoring import output
from convoy.service.scoring.output import Asked
from convoy.service.scoring.score import Score
from convoy.service.scoring.sources import Entry, listed, read
from convoy.service.scoring.suspects import forget

_PARTS = 2  # scored at a time
_LISTED = 1 << 18  # entries that are listed ahead: 100 MB, and the whole of most sources


class Summary(NamedTuple):
    """A finished run: all of its images, those of them with an error, and those that were scored this time."""

    images: int
    failed: int
    scored: int
    seconds: float


class Watch(Protocol):
    """Who shows the progress of a run. Calls come from any thread."""

    def listed(self, images: int, complete: bool) -> None:
        """The images of the source that are known by now; `complete` if these are all."""

    def kept(self, images: int, failed: int) -> None:
        """Images of earlier runs."""

    def scored(self, failed: bool) -> None:
        """One more image."""


class _Stopped(Exception):
    """Another part has failed, or the user has interrupted the run."""


def run(score: Score, out: Path, asked: Asked, watch: Watch) -> Summary:
    """Scores what is missing in `out`, and returns when nothing is. Raises ConvoyError; KeyboardInterrupt at once."""
    with output.locked(out):
        # The profile is kept with the results: measuring takes seconds, and the model's folder may be read-only.
        if not score.options.profiles:
            score = score.replaced(profiles=str(output.kept(out)))
        score = output.prepared(out, score, asked)
        began = time.monotonic()  # opening the model is not scoring
        existing = output.parts(out)
        stop = threading.Event()
        listing = _Listing(asked, stop, watch)
        images = failed = scored = number = 0
        scoring: deque[Future[int]] = deque()
        pool = ThreadPoolExecutor(_PARTS, "part")
        try:
            for number, entries in enumerate(listing.slices(), 1):
                images += len(entries)
                if (file := existing.pop(number - 1, None)) is not None:
                    kept, errors = output.contents(file)
                    if is_of(file, kept, entries):
                        failed += errors
                        watch.kept(len(kept), errors)
                        continue
                while len(scoring) >= _PARTS:
                    failed += scoring.popleft().result()
                scored += len(entries)
                scoring.append(pool.submit(_part, number - 1, entries, score, out, asked, watch, stop))
            if existing:
                raise BadConfig(
                    f"{str(output.part(out, min(existing)))!r} is of images that the source no longer has: choose "
                    f"another folder"
                )
            while scoring:
                failed += scoring.popleft().result()
        finally:
            stop.set()
            pool.shutdown()
        forget(output.kept(out))
    if not images:
        raise BadConfig(f"{asked.source!r} has no images")
    return Summary(images, failed, scored, time.monotonic() - began)


def _part(
    number: int, entries: Sequence[Entry], score: Score, out: Path, asked: Asked, watch: Watch, stop: threading.Event
) -> int:
    """Scores and writes a part; returns how many of its images have an error."""
    failures = 0

    def done(failed: bool) -> None:
        nonlocal failures
        failures += failed
        _go_on(stop)
        watch.scored(failed)

    def reads() -> Iterator[Callable[[], bytes]]:
        for entry in entries:
            _go_on(stop)
            yield partial(read, entry)

    rows = score.rows([entry.id for entry in entries], reads(), done)
    output.write(out, number, score, rows, asked)
    return failures


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped


def is_of(file: Path, ids: Sequence[str], entries: Sequence[Entry]) -> bool:
    """Whether a part is complete; False if the source has grown at its end. Raises BadConfig if it is another's."""
    differing = next(
        (place for place, (one, entry) in enumerate(zip(ids, entries, strict=False)) if one != entry.id), None
    )
    if differing is not None or len(ids) > len(entries):
        place = len(entries) if differing is None else differing
        has = f"{entries[place].id!r} instead" if differing is not None else "no more images"
        raise BadConfig(
            f"the source has changed: {file.name} has {ids[place]!r} where it has {has}; choose another folder"
        )
    return len(ids) == len(entries)


class _Listing:
    """Lists the source in a thread, ahead of the scoring, so that its size is known early."""

    def __init__(self, asked: Asked, stop: threading.Event, watch: Watch) -> None:
        self._asked = asked
        self._stop = stop
        self._watch = watch
        self._slices: queue.Queue[list[Entry] | BaseException | None] = queue.Queue(max(2, _LISTED // asked.rows))
        threading.Thread(target=self._list, name="list", daemon=True).start()

    def slices(self) -> Iterator[list[Entry]]:
        """The entries of each part. Raises what listing raises."""
        while (found := self._slices.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    def _list(self) -> None:
        asked, entries, images = self._asked, list[Entry](), 0
        try:
            for entry in listed(asked.source, column=asked.column, id_column=asked.id_column):
                entries.append(entry)
                if len(entries) == asked.rows:
                    images += len(entries)
                    self._put(entries)
                    self._watch.listed(images, False)
                    entries = []
            if entries:
                self._put(entries)
            self._watch.listed(images + len(entries), True)
            self._put(None)
        except _Stopped:
            pass
        except BaseException as error:  # for the thread that reads the slices
            self._put(error)

    def _put(self, found: list[Entry] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._slices.put(found, timeout=0.2)
            except queue.Full:
                continue
        raise _Stopped
