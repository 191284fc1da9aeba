"""The files in which all processes count their metrics: prometheus_client's multiprocess mode, in one folder.

Imported before any metric is created: it replaces prometheus_client's file by one that survives a full disk.
"""

import inspect
import json
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from operator import add
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # environment variable that prometheus_client reads at import
_FILE_BYTES = 16 << 10  # of a new file of counts
_ENDED = 0  # not a process id: the counts of all ended processes
_RESTARTS = "restarts.json"  # which the supervisor writes, for the front ends to read
_SUMMED: Mapping[str, Callable[[float, float], float]] = {"counter": add, "histogram": add, "gauge_max": max}
_FILES = threading.Lock()  # locked while files are added or removed: a scrape must find each count once


class Counts(MmapedDict):
    """A file of counts whose blocks are reserved before they are mapped.

    Writing to a mapped page for which the disk has no room would kill the process with a bus error. If the disk is
    full, the process keeps counting in private memory: scrapes miss those counts, requests are unaffected.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            if not read_mode:
                _reserve(filename)
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        except OSError:
            if read_mode:
                raise
            self._f: Any = None
            self._fname = filename
            self._capacity = _FILE_BYTES
            self._m = mmap.mmap(-1, self._capacity)
            self._positions: dict[str, int] = {}
            self._used = 8
            self._m[:4] = self._used.to_bytes(4, "little")
        if not read_mode:
            _COUNTING.append(self)

    def forget(self, unwanted: Callable[[str], bool]) -> None:
        """Drop the entries whose keys are unwanted. A concurrent reader sees the file before or after, never between.

        On a full disk all entries stay. The caller must own the lock of the values that write here.
        """
        kept = [entry for entry in self.read_all_values() if not unwanted(entry[0])]  # type: ignore[no-untyped-call]
        if len(kept) == len(self._positions):
            return
        image, positions = _image(kept)
        capacity = max(self._capacity, len(image))
        try:
            if self._f is None:
                fresh, file = mmap.mmap(-1, capacity), None
                fresh[: len(image)] = image
            else:
                _write_whole(Path(self._fname), image, capacity)
                file = open(self._fname, "r+b")  # noqa: PTH123, SIM115  kept open, as in the base class
                fresh = mmap.mmap(file.fileno(), capacity)
        except OSError:
            return
        if self._f is not None:
            self._f.close()
        self._f, self._m, self._capacity = file, fresh, capacity
        self._positions, self._used = positions, len(image)

    def _init_value(self, key: str) -> None:
        # An entry is its key, padded, and at most 28 more bytes.
        needed = self._used + len(key.encode()) + 28
        if needed > self._capacity:
            self._grow(needed)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self, needed: int) -> None:
        capacity = self._capacity
        while capacity < needed:
            capacity *= 2
        try:
            if self._f is None:
                raise OSError
            os.posix_fallocate(self._f.fileno(), 0, capacity)
            grown = mmap.mmap(self._f.fileno(), capacity)
        except OSError:
            grown = mmap.mmap(-1, capacity)
            grown[: self._used] = self._m[: self._used]
            if self._f is not None:
                self._f.close()  # the file keeps the counts up to now
                self._f = None
        self._m, self._capacity = grown, capacity


_COUNTING: list[Counts] = []  # the files of this process


def _image(entries: Iterable[tuple[str, float, float]]) -> tuple[bytes, dict[str, int]]:
    """The bytes of a file of counts with these (key, value, time) entries, and the offset of each value.

    prometheus_client's layout: the number of bytes used, then for each entry its length, its padded key and two
    doubles.
    """
    data = bytearray(8)
    positions = {}
    for key, value, timestamp in entries:
        encoded = key.encode()
        data += struct.pack("i", len(encoded)) + encoded + b" " * (8 - (len(encoded) + 4) % 8)
        positions[key] = len(data)
        data += struct.pack("dd", value, timestamp)
    data[:4] = struct.pack("i", len(data))
    return bytes(data), positions


def _write_whole(path: Path, image: bytes, capacity: int) -> None:
    """Atomically replace a file by these bytes, with room up to `capacity`. Raises OSError and leaves it unchanged."""
    fresh = path.with_name(f"{path.name}.new")  # not *.db: no scrape reads it
    try:
        with fresh.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, capacity)
            file.write(image)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _reserve(filename: str) -> None:
    path = Path(filename)
    if not path.exists():
        _write_whole(path, b"", _FILE_BYTES)  # atomically: a scrape cannot read an empty file


if DIRECTORY in os.environ:
    values.MmapedDict = Counts  # type: ignore[attr-defined]
    # By default it asks the kernel for the process id at every increment, in case of a fork.
    _process = [os.getpid()]
    os.register_at_fork(after_in_child=lambda: _process.__setitem__(0, os.getpid()))
    values.ValueClass = values.MultiProcessValue(lambda: _process[0])  # type: ignore[no-untyped-call]


def forget(identity: Mapping[str, str], metric: str = "") -> None:
    """Drop the series with these labels from this process's counts; of one metric, if that is named."""

    def belongs(key: str) -> bool:
        name, _, labels, *_ = json.loads(key)
        return metric in ("", name) and identity.items() <= labels.items()

    # The values' own lock, from the closure of their methods: a session's thread may be counting. The list of all
    # values, which prometheus_client keeps for a fork, would grow with each version.
    inside = inspect.getclosurevars(values.ValueClass.__init__).nonlocals
    with inside.get("lock", _FILES):
        for counts in _COUNTING:
            counts.forget(belongs)
        known: list[Any] = inside.get("values", [])
        known[:] = [value for value in known if not belongs(value._key)]


def forget_process(pid: int, directory: Path) -> None:
    """Remove the gauges of an ended process, and move its counts to one file for all ended processes."""
    with _FILES:
        mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
        for kind, both in _SUMMED.items():
            with suppress(OSError):  # such as a full disk: that file stays as it is
                _merge(directory / f"{kind}_{pid}.db", directory / f"{kind}_{_ENDED}.db", both)


def _merge(file: Path, total: Path, both: Callable[[float, float], float]) -> None:
    counts: dict[str, tuple[float, float]] = {}
    for each in (total, file):
        if each.exists():
            for key, value, timestamp, _ in Counts.read_all_values_from_file(str(each)):  # type: ignore[no-untyped-call]
                counts[key] = (both(counts[key][0], value) if key in counts else value, timestamp)
    if file.exists():
        image, _ = _image((key, *entry) for key, entry in counts.items())
        _write_whole(total, image, max(len(image), _FILE_BYTES))
        file.unlink()


def collect(directory: Path) -> list[Metric]:
    with _FILES:
        return list(MultiProcessCollector(None, str(directory)).collect())  # type: ignore[no-untyped-call]


def note_restarts(directory: Path, restarts: Mapping[str, int]) -> None:
    """Write how many processes of each kind were started again, for others. On a full disk it stays as it is."""
    data = json.dumps(restarts).encode()
    with suppress(OSError):
        _write_whole(directory / _RESTARTS, data, len(data))


def restarts(directory: Path) -> dict[str, int]:
    """What `note_restarts` has written; nothing if no process was started again."""
    try:
        return dict(json.loads((directory / _RESTARTS).read_bytes()))
    except FileNotFoundError:
        return {}
