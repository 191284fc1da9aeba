"""All metrics of Convoy, for all its processes.

Each process writes its values to its own files in one folder (prometheus_client's multiprocess mode); the supervisor
adds them up on each scrape. So the sums are exact over all processes and survive a killed one.
"""

import asyncio
import inspect
import json
import mmap
import os
import struct
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from operator import add
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # environment variable that prometheus_client reads at import
# How many processes were restarted, by kind and device, after one ended unexpectedly.
Restarts = Mapping[tuple[str, int], int]

_FILE_BYTES = 16 << 10  # of a new file of counts


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

        On a full disk all entries stay. The caller must hold the lock of the values that write here.
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
    # By default it reads the process id at every increment, in case of a fork: our processes never fork.
    _PROCESS_ID = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: _PROCESS_ID)  # type: ignore[no-untyped-call]

# Seconds, 100 us to 10 s, about three per factor of ten.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LEVELS_SECONDS = 0.05
_IMAGES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)

# The methods that run a network; the others return information about one. Each request of a stream counts as one.
INFERENCE = ("Classify", "Segment", "ClassifyStream", "SegmentStream", "ModelInfer", "ModelStreamInfer")
STAGES = ("receive", "decode", "preprocess", "queue", "gather", "run", "scatter", "postprocess")

REQUEST_DURATION = Histogram(
    "convoy_request_duration_seconds",
    "Time from a request's arrival to its reply.",
    ["model", "version", "method", "code"],
    buckets=_SECONDS,
)
STAGE_DURATION = Histogram(
    "convoy_stage_duration_seconds",
    "Time one image spent in a stage.",
    ["model", "version", "stage"],
    buckets=_SECONDS,
)
BATCH_SIZE = Histogram("convoy_batch_size", "Images in a batch that ran.", ["model", "version"], buckets=_IMAGES)
BATCHES = Counter(
    "convoy_batches_total", "Batches that ran, by their exact size.", ["model", "version", "batch_size", "device"]
)
BATCH_STAGE = Counter(
    "convoy_batch_stage_seconds_total",
    "Time of the engine's stages (gather, run, scatter), added up over batches of one size.",
    ["model", "version", "batch_size", "stage"],
)
IMAGES = Counter("convoy_images_total", "Images answered.", ["model", "version"])
REFUSALS = Counter("convoy_refusals_total", "Images and requests that were not served, by reason.", ["model", "reason"])
DEADLINE_MISSES = Counter("convoy_deadline_misses_total", "Requests whose time ran out before their answer.", ["model"])
CANCELLED = Counter(
    "convoy_cancelled_total", "Requests whose caller went before the answer, with time left.", ["model"]
)
INPUT_PIXELS = Counter(
    "convoy_input_pixels_total", "Pixels of images that were run, with all padding.", ["model", "version"]
)
PADDING = Counter("convoy_padding_pixels_total", "Pixels of padding that were run beside images.", ["model", "version"])
RETRIES = Counter("convoy_retries_total", "Images sent again to a restarted engine.", ["model"])
QUEUE_DEPTH = Gauge(
    "convoy_queue_depth", "Images that wait for the device.", ["model", "device"], multiprocess_mode="livesum"
)
IN_FLIGHT = Gauge("convoy_requests_in_flight", "Requests accepted and not yet answered.", multiprocess_mode="livesum")
IN_FLIGHT_BYTES = Gauge(
    "convoy_in_flight_bytes", "Bytes of the requests accepted and not yet answered.", multiprocess_mode="livesum"
)
TRANSPORT = Gauge(
    "convoy_transport_info",
    "1 for the library by which front ends speak gRPC, and its version.",
    ["transport", "version"],
    multiprocess_mode="livemax",
)
SLOT_BYTES = Gauge("convoy_slot_bytes", "Slot memory in use.", multiprocess_mode="livesum")
SLOTS = Gauge("convoy_slots", "Slots claimed and not yet freed.", multiprocess_mode="livesum")
MODEL_BATCHED = Gauge(
    "convoy_model_batched",
    "1 where requests for a version share runs, 0 where each runs alone.",
    ["model", "version"],
    multiprocess_mode="livemostrecent",
)
MODEL_READY = Gauge(
    "convoy_model_ready",
    "1 where a version serves, 0 where it does not.",
    ["model", "version", "provider", "device"],
    multiprocess_mode="livemostrecent",
)
LAST_INFERENCE = Gauge(
    "convoy_last_inference_timestamp_seconds", "When a batch last ended.", ["model", "version"], multiprocess_mode="max"
)


def count_request(model: str, version: str, method: str, code: str, seconds: float) -> None:
    """Count a request that was answered `seconds` after its arrival."""
    _add(_request_counters(model, version, method, code), seconds, 1)


def count_images(model: str, version: str, images: int, seconds: Sequence[float]) -> None:
    """Count `images` answered images, each of which spent `seconds` in the STAGES."""
    counter, histograms = _image_counters(model, version)
    counter.inc(images)
    for histogram, span in zip(histograms, seconds, strict=True):
        _add(histogram, span, images)


class Levels:
    """Gauges that change with every request: kept elsewhere, and written for the scraper after a short delay.

    One write covers many changes; `write` sets the gauges. One writer: the loop.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._due = False

    def changed(self) -> None:
        """Schedule a write, because a value has changed."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(_LEVELS_SECONDS, self._write_now)

    def _write_now(self) -> None:
        self._due = False
        self._write()


# The counters of a histogram: the sum, and one for each bucket; the last is for longer times than all others.
_Parts = tuple[Any, list[Any]]


def _add(histogram: _Parts, seconds: float, times: int) -> None:
    # What Histogram.observe does, for many observations at once.
    total, buckets = histogram
    total.inc(times * seconds)
    buckets[bisect_left(_SECONDS, seconds)].inc(times)


def _parts_of(histogram: Histogram) -> _Parts:
    return histogram._sum, histogram._buckets


# Looking up labels takes longer than counting.
@cache
def _request_counters(model: str, version: str, method: str, code: str) -> _Parts:
    return _parts_of(REQUEST_DURATION.labels(model, version, method, code))


@cache
def _image_counters(model: str, version: str) -> tuple[Counter, list[_Parts]]:
    histograms = [_parts_of(STAGE_DURATION.labels(model, version, stage)) for stage in STAGES]
    return IMAGES.labels(model, version), histograms


def forget_version(model: str, version: int) -> None:
    """Drop the series of a version that no longer serves from this process's counts."""
    wanted = {"model": model, "version": str(version)}

    def belongs(key: str) -> bool:
        labels: dict[str, str] = json.loads(key)[2]
        return wanted.items() <= labels.items()

    # The values' own lock, from the closure of their methods: a session's thread may be counting.
    with inspect.getclosurevars(values.ValueClass.inc).nonlocals.get("lock", _FILES):
        for counts in _COUNTING:
            counts.forget(belongs)


_FILES = threading.Lock()  # held while files are added or removed: a scrape must find each count once
_DEAD = 0  # not a process id: the counts of all ended processes
_SUMMED: Mapping[str, Callable[[float, float], float]] = {"counter": add, "histogram": add, "gauge_max": max}


def forget_process(pid: int, directory: Path) -> None:
    """Remove the gauges of an ended process, and move its counts to one file for all ended processes."""
    with _FILES:
        mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
        for kind, both in _SUMMED.items():
            with suppress(OSError):  # such as a full disk: that file stays as it is
                _bury(directory / f"{kind}_{pid}.db", directory / f"{kind}_{_DEAD}.db", both)


def _bury(file: Path, total: Path, both: Callable[[float, float], float]) -> None:
    found: dict[str, tuple[float, float]] = {}
    for each in (total, file):
        if each.exists():
            for key, value, timestamp, _ in Counts.read_all_values_from_file(str(each)):  # type: ignore[no-untyped-call]
                found[key] = (both(found[key][0], value) if key in found else value, timestamp)
    if file.exists():
        image, _ = _image((key, *entry) for key, entry in found.items())
        _write_whole(total, image, max(len(image), _FILE_BYTES))
        file.unlink()


def collect(directory: Path) -> list[Metric]:
    """The current metrics of all processes."""
    with _FILES:
        return _collect(directory)


def _collect(directory: Path) -> list[Metric]:
    return list(MultiProcessCollector(None, str(directory)).collect())  # type: ignore[no-untyped-call]


class ServerCollector(Collector):
    """All processes' metrics, the restarts that the supervisor counts, and the same values under Triton's names."""

    def __init__(self, directory: Path, restarts: Restarts) -> None:
        self._directory = directory
        self._restarts = restarts

    def collect(self) -> Iterator[Metric]:
        families = collect(self._directory)
        yield from families
        engines = CounterMetricFamily(
            "convoy_engine_restarts", "Engines started again after one ended unasked.", labels=["device"]
        )
        front_ends = 0
        for (kind, device), count in self._restarts.items():
            if kind == "engine":
                engines.add_metric([str(device)], count)
            else:
                front_ends += count
        yield engines
        yield CounterMetricFamily(
            "convoy_frontend_restarts", "Front ends started again after one ended unasked.", front_ends
        )
        yield from _triton_names(statistics(families))


def registry(directory: Path, restarts: Restarts) -> CollectorRegistry:
    """The registry that the supervisor exposes. The supervisor itself updates `restarts`."""
    result = CollectorRegistry()
    result.register(ServerCollector(directory, restarts))
    return result


@dataclass(slots=True)
class Duration:
    """A count and a total time."""

    count: int = 0
    seconds: float = 0.0

    def add(self, count: float, seconds: float) -> None:
        self.count += round(count)
        self.seconds += seconds


@dataclass(slots=True)
class Statistics:
    """One version's counts, as in the Open Inference Protocol's ModelStatistics."""

    success: Duration = field(default_factory=Duration)  # requests
    fail: Duration = field(default_factory=Duration)
    stages: dict[str, Duration] = field(default_factory=lambda: {stage: Duration() for stage in STAGES})  # images
    images: int = 0  # that ran
    batches: int = 0
    last_inference: float = 0.0  # seconds since the epoch
    # by batch size: batches and seconds of gather, run and scatter
    by_batch_size: dict[int, dict[str, Duration]] = field(default_factory=dict)


def statistics(families: Iterable[Metric]) -> dict[tuple[str, str], Statistics]:
    """Statistics by (model, version), read back from the metrics: with one source, the two always agree."""
    found: dict[tuple[str, str], Statistics] = {}
    for family in families:
        for sample in family.samples:
            labels = sample.labels
            if not labels.get("model") or not labels.get("version"):
                continue
            entry = found.setdefault((labels["model"], labels["version"]), Statistics())
            _read_sample(entry, sample.name, labels, sample.value)
    return found


def _read_sample(entry: Statistics, name: str, labels: dict[str, str], value: float) -> None:
    match name:
        case "convoy_request_duration_seconds_count" | "convoy_request_duration_seconds_sum" if (
            labels["method"] not in INFERENCE
        ):
            pass
        case "convoy_request_duration_seconds_count":
            (entry.success if labels["code"] == "OK" else entry.fail).add(value, 0)
        case "convoy_request_duration_seconds_sum":
            (entry.success if labels["code"] == "OK" else entry.fail).add(0, value)
        case "convoy_stage_duration_seconds_count":
            entry.stages[labels["stage"]].add(value, 0)
        case "convoy_stage_duration_seconds_sum":
            entry.stages[labels["stage"]].add(0, value)
        case "convoy_batch_size_sum":
            entry.images = round(value)
        case "convoy_batch_size_count":
            entry.batches = round(value)
        case "convoy_last_inference_timestamp_seconds":
            entry.last_inference = value
        case "convoy_batches_total":
            for duration in _of_batch_size(entry, labels).values():
                duration.add(value, 0)
        case "convoy_batch_stage_seconds_total":
            _of_batch_size(entry, labels)[labels["stage"]].add(0, value)


def _of_batch_size(entry: Statistics, labels: dict[str, str]) -> dict[str, Duration]:
    stages = {stage: Duration() for stage in ("gather", "run", "scatter")}
    return entry.by_batch_size.setdefault(int(labels["batch_size"]), stages)


def _triton_names(found: dict[tuple[str, str], Statistics]) -> Iterator[Metric]:
    """The metrics under the names that Triton's dashboards expect. Its counters lack `_total`, so these are untyped."""
    for name, text, read in _TRITON:
        family = Metric(name, text, "unknown")
        for (model, version), entry in sorted(found.items()):
            family.add_sample(name, {"model": model, "version": version}, read(entry))
        yield family


def _us(*durations: Duration) -> int:
    return round(1e6 * sum(duration.seconds for duration in durations))


_TRITON = (
    ("nv_inference_request_success", "Requests answered.", lambda s: s.success.count),
    ("nv_inference_request_failure", "Requests that failed.", lambda s: s.fail.count),
    ("nv_inference_count", "Images that ran.", lambda s: s.images),
    ("nv_inference_exec_count", "Batches that ran.", lambda s: s.batches),
    ("nv_inference_request_duration_us", "Time of requests answered.", lambda s: _us(s.success)),
    ("nv_inference_queue_duration_us", "Time in the queue.", lambda s: _us(s.stages["queue"])),
    ("nv_inference_compute_input_duration_us", "Time of gathering batches.", lambda s: _us(s.stages["gather"])),
    ("nv_inference_compute_infer_duration_us", "Time of running batches.", lambda s: _us(s.stages["run"])),
    ("nv_inference_compute_output_duration_us", "Time of scattering results.", lambda s: _us(s.stages["scatter"])),
)
