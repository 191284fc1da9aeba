"""All metrics of Convoy, for all its processes.

Each process writes its values to its own files in one folder (`metric_files`); the supervisor adds them up on each
scrape. So the sums are exact over all processes and survive a killed one.
"""

import asyncio
import collections
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from convoy.service import machine, metric_files

# How many processes were restarted, by kind and device, after one ended unexpectedly.
Restarts = Mapping[tuple[str, int], int]

_NONE: Restarts = MappingProxyType({})
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")  # packages, of which one is installed

# Seconds, 100 us to 10 s, about three per factor of ten.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LEVELS_SECONDS = 0.05
_IMAGES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)

# The methods that run a network; the others return information about one. Each request of a stream counts as one.
INFERENCE = ("Classify", "Segment", "ClassifyStream", "SegmentStream", "ModelInfer", "ModelStreamInfer")
STAGES = ("receive", "decode", "preprocess", "queue", "gather", "run", "scatter", "postprocess")

REQUEST_DURATION = Histogram(
    "convoy_request_duration_seconds",
    "Time from a request's arrival to its reply.",
    ["model", "version", "method", "code"],
    buckets=SECONDS,
)
STAGE_DURATION = Histogram(
    "convoy_stage_duration_seconds",
    "Time one image spent in a stage.",
    ["model", "version", "stage"],
    buckets=SECONDS,
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
BATCH_PREDICTION = Counter(
    "convoy_batch_prediction_seconds_total",
    "Time of batches as the scheduler predicted it, and as it was measured, over those that it could predict.",
    ["model", "version", "time"],
)
IMAGES = Counter("convoy_images_total", "Images answered.", ["model", "version"])
ANSWERS = Counter(
    "convoy_answers_total",
    "Requests answered, except those of low priority, by whether within the latency objective of their version.",
    ["model", "version", "objective"],
)
REFUSALS = Counter("convoy_refusals_total", "Images and requests that were not served, by reason.", ["model", "reason"])
DEADLINE_MISSES = Counter("convoy_deadline_misses_total", "Requests whose time ran out before their answer.", ["model"])
CANCELLED = Counter("convoy_cancelled_total", "Requests that their callers cancelled before the deadline.", ["model"])
INPUT_PIXELS = Counter(
    "convoy_input_pixels_total", "Pixels of images that were run, with all padding.", ["model", "version"]
)
PADDING = Counter("convoy_padding_pixels_total", "Pixels of padding that were run beside images.", ["model", "version"])
RETRIES = Counter("convoy_retries_total", "Images sent again to a restarted engine.", ["model"])
QUEUE_DEPTH = Gauge(
    "convoy_queue_depth", "Images that wait for the device.", ["model", "device"], multiprocess_mode="livesum"
)
QUEUE_SECONDS = Gauge(
    "convoy_queue_seconds",
    "Time that the device needs for the images that wait, as predicted.",
    ["model", "device"],
    multiprocess_mode="livesum",
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
CERTIFICATE_EXPIRY = Gauge(
    "convoy_tls_certificate_expiry_timestamp_seconds",
    "When the certificate in use expires.",
    ["port"],
    multiprocess_mode="livemin",
)
RELOAD_FAILED = Gauge(
    "convoy_reload_failed",
    "1 where changed files cannot be used, so that what was read before stays in use.",
    ["files"],
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
    "1 where a version serves, 0 where it does not; without a provider, a version that should and cannot.",
    ["model", "version", "provider", "device"],
    multiprocess_mode="livemostrecent",
)
MODEL_NODES = Gauge(
    "convoy_model_nodes",
    "Nodes of a version's network that a provider runs, where it serves on a GPU.",
    ["model", "version", "provider", "device"],
    multiprocess_mode="livemostrecent",
)
MODEL_OBJECTIVE = Gauge(
    "convoy_model_latency_objective_seconds",
    "The latency objective of a version: what is configured, or else 100 ms or five times the time of one image.",
    ["model", "version"],
    multiprocess_mode="livemostrecent",
)
MODEL_FALLBACK = Gauge(
    "convoy_model_fallback",
    "1 where a version runs on the CPU though this onnxruntime offers CUDA and the settings allow it.",
    ["model", "version", "device"],
    multiprocess_mode="livemostrecent",
)
EXAMPLE_FAILURES = Counter(
    "convoy_example_failures_total",
    "Checks in which the answer to a file's own example was not that of its export.",
    ["model", "version"],
)
MODEL_QUARANTINED = Gauge(
    "convoy_model_quarantined",
    "1 where the files of a version killed the process that tried them, or did not come to an end.",
    ["model", "version", "device"],
    multiprocess_mode="livemostrecent",
)
LAST_INFERENCE = Gauge(
    "convoy_last_inference_timestamp_seconds", "When a batch last ended.", ["model", "version"], multiprocess_mode="max"
)

_OF_VERSIONS: tuple[Any, ...] = (
    REQUEST_DURATION,
    STAGE_DURATION,
    BATCH_SIZE,
    BATCHES,
    BATCH_STAGE,
    BATCH_PREDICTION,
    IMAGES,
    ANSWERS,
    INPUT_PIXELS,
    PADDING,
    MODEL_BATCHED,
    MODEL_READY,
    MODEL_NODES,
    MODEL_OBJECTIVE,
    MODEL_FALLBACK,
    EXAMPLE_FAILURES,
    MODEL_QUARANTINED,
    LAST_INFERENCE,
)


def count_request(model: str, version: str, method: str, code: str, seconds: float) -> None:
    """Count a request that was answered `seconds` after its arrival."""
    _add(_request_counters(model, version, method, code), seconds, 1)


def count_requests(model: str, version: str, method: str, code: str, seconds: Sequence[float]) -> None:
    """Count requests that were answered together, each `seconds` after its own arrival."""
    total, buckets = _request_counters(model, version, method, code)
    total.inc(sum(seconds))
    for bucket, times in collections.Counter([bisect_left(SECONDS, each) for each in seconds]).items():
        buckets[bucket].inc(times)


def count_answer(model: str, version: str, objective: float, seconds: float) -> None:
    """Count a request that was answered `seconds` after its arrival; `objective` is that of the version."""
    _answer_counters(model, version)[seconds > objective].inc()


def count_answers(model: str, version: str, objective: float, seconds: Sequence[float]) -> None:
    """Count requests that were answered together, each `seconds` after its own arrival: see `count_answer`."""
    late = sum([each > objective for each in seconds])
    met, missed = _answer_counters(model, version)
    if late:
        missed.inc(late)
    if late < len(seconds):
        met.inc(len(seconds) - late)


def count_images(model: str, version: str, images: int, seconds: Sequence[float]) -> None:
    """Count `images` answered images, each of which spent `seconds` in the STAGES."""
    counter, histograms = _image_counters(model, version)
    counter.inc(images)
    for histogram, span in zip(histograms, seconds, strict=True):
        _add(histogram, span, images)


@cache
def batch_counters(model: str, version: str, size: int, device: int) -> tuple[Any, ...]:
    """What counts a batch: its size, batches of this size, the seconds of gather, run and scatter, and its end."""
    stages = [BATCH_STAGE.labels(model, version, size, stage) for stage in ("gather", "run", "scatter")]
    return (
        BATCH_SIZE.labels(model, version),
        BATCHES.labels(model, version, size, device),
        *stages,
        LAST_INFERENCE.labels(model, version),
    )


@cache
def prediction_counters(model: str, version: str) -> tuple[Counter, Counter]:
    """What counts the seconds of batches, as predicted and as measured."""
    return BATCH_PREDICTION.labels(model, version, "predicted"), BATCH_PREDICTION.labels(model, version, "measured")


def forget_version(model: str, version: int) -> None:
    """Drop the series of a version that no longer serves from this process's counts, and what has counted them."""
    for cached in (_request_counters, _answer_counters, _image_counters, batch_counters, prediction_counters):
        cached.cache_clear()
    for metric in _OF_VERSIONS:
        of_model, of_version = (metric._labelnames.index(name) for name in ("model", "version"))
        with metric._lock:  # its own `remove` warns that it leaves the files as they are
            for labels in [each for each in metric._metrics if each[of_model] == model]:
                if labels[of_version] == str(version):
                    del metric._metrics[labels]
    metric_files.forget({"model": model, "version": str(version)})


def count_unready(model: str, version: int, device: int, *, unready: bool) -> None:
    """Show that a version cannot be served, or no longer show that. `version` 0: the model has none."""
    label = str(version) if version else ""
    if unready:
        MODEL_READY.labels(model, label, "", device).set(0)
        return
    with MODEL_READY._lock:
        MODEL_READY._metrics.pop((model, label, "", str(device)), None)
    metric_files.forget({"model": model, "version": label, "provider": ""}, MODEL_READY._name)


class Levels:
    """Gauges that change with every request: kept elsewhere, and written for the scraper after a short delay.

    One write covers many changes; `write` sets the gauges, on the running loop. `changed` may be called in any thread.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._due = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def changed(self) -> None:
        """Schedule a write, because a value has changed."""
        if self._due:
            return
        self._due = True
        if threading.get_ident() == self._thread:
            self._loop.call_later(_LEVELS_SECONDS, self._write_now)
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, _LEVELS_SECONDS, self._write_now)

    def _write_now(self) -> None:
        self._due = False
        self._write()


# The counters of a histogram: the sum, and one for each bucket; the last is for longer times than all others.
_Parts = tuple[Any, list[Any]]


def _add(histogram: _Parts, seconds: float, times: int) -> None:
    # What Histogram.observe does, for many observations at once.
    total, buckets = histogram
    total.inc(times * seconds)
    buckets[bisect_left(SECONDS, seconds)].inc(times)


def _parts_of(histogram: Histogram) -> _Parts:
    return histogram._sum, histogram._buckets


# Looking up labels takes longer than counting.
@cache
def _request_counters(model: str, version: str, method: str, code: str) -> _Parts:
    return _parts_of(REQUEST_DURATION.labels(model, version, method, code))


@cache
def _answer_counters(model: str, version: str) -> tuple[Counter, Counter]:
    return ANSWERS.labels(model, version, "met"), ANSWERS.labels(model, version, "missed")


@cache
def _image_counters(model: str, version: str) -> tuple[Counter, list[_Parts]]:
    histograms = [_parts_of(STAGE_DURATION.labels(model, version, stage)) for stage in STAGES]
    return IMAGES.labels(model, version), histograms


class Supplied(NamedTuple):
    """A metric that is in no file: the supervisor knows it at each scrape."""

    name: str  # as in the exposition
    kind: Literal["counter", "gauge"]
    text: str
    labels: tuple[str, ...] = ()

    def family(self, value: float | None = None) -> CounterMetricFamily | GaugeMetricFamily:
        """A family to be filled; `value` is that of the only series, if there are no labels."""
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        return make(self.name, self.text, value, labels=None if value is not None else self.labels)


ENGINE_RESTARTS = Supplied(
    "convoy_engine_restarts_total", "counter", "Engines started again after one ended unexpectedly.", ("device",)
)
FRONTEND_RESTARTS = Supplied(
    "convoy_frontend_restarts_total", "counter", "Front ends started again after one ended unexpectedly."
)
RECYCLED = Supplied(
    "convoy_recycled_total", "counter", "Processes replaced by fresh ones.", ("process", "device", "reason")
)
PROCESS_CPU = Supplied(
    "convoy_process_cpu_seconds_total",
    "counter",
    "CPU time of a process, of all its threads.",
    ("process", "device", "pid"),
)
PROCESS_RESIDENT = Supplied(
    "convoy_process_resident_bytes",
    "gauge",
    "Resident memory of a process, with what it shares with others.",
    ("process", "device", "pid"),
)
BUILD = Supplied("convoy_build_info", "gauge", "1 for the versions in use.", ("version", "python", "onnxruntime"))


class Running(NamedTuple):
    """A process of the server. `device` is that of an engine, else empty."""

    kind: str
    device: str
    pid: int


class ServerCollector(Collector):
    """All processes' metrics, what the supervisor knows of them, and the same values under Triton's names."""

    def __init__(
        self,
        directory: Path,
        restarts: Restarts,
        recycled: Restarts,
        running: Callable[[], Iterable[Running]],
    ) -> None:
        self._directory = directory
        self._restarts = restarts
        self._recycled = recycled
        self._running = running

    def collect(self) -> Iterator[Metric]:
        families = metric_files.collect(self._directory)
        yield from families
        engines = ENGINE_RESTARTS.family()
        front_ends = 0
        for (kind, device), count in self._restarts.items():
            if kind == "engine":
                engines.add_metric([str(device)], count)
            else:
                front_ends += count
        yield engines
        yield FRONTEND_RESTARTS.family(front_ends)
        recycled = RECYCLED.family()
        for (kind, device), count in self._recycled.items():
            recycled.add_metric([kind, str(device), "memory"], count)
        yield recycled
        yield from _of_processes(self._running())
        build = BUILD.family()
        build.add_metric([_versions()[label] for label in BUILD.labels], 1)
        yield build
        yield from _triton_names(statistics(families))


def registry(
    directory: Path,
    restarts: Restarts,
    recycled: Restarts = _NONE,
    running: Callable[[], Iterable[Running]] = tuple,
) -> CollectorRegistry:
    """The registry that the supervisor exposes. The supervisor itself updates `restarts`, and `recycled`: how many
    processes it replaced because of their memory. `running` returns the processes at each scrape."""
    result = CollectorRegistry()
    result.register(ServerCollector(directory, restarts, recycled, running))
    return result


def _of_processes(running: Iterable[Running]) -> Iterator[Metric]:
    """What the kernel knows of each process. One that is restarted has series of its own: no counter goes back."""
    cpu, resident = PROCESS_CPU.family(), PROCESS_RESIDENT.family()
    for each in running:
        with suppress(OSError):  # it has ended
            seconds, nbytes = machine.usage(each.pid)
            cpu.add_metric([each.kind, each.device, str(each.pid)], seconds)
            resident.add_metric([each.kind, each.device, str(each.pid)], nbytes)
    yield cpu
    yield resident


@cache
def _versions() -> dict[str, str]:
    python = ".".join(map(str, sys.version_info[:3]))
    return {"version": _installed("convoy"), "python": python, "onnxruntime": _installed(*_RUNTIMES)}


def _installed(*packages: str) -> str:
    from importlib import metadata  # noqa: PLC0415  it would delay the start of every process

    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return ""


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
    result: dict[tuple[str, str], Statistics] = {}
    for family in families:
        for sample in family.samples:
            labels = sample.labels
            if not labels.get("model") or not labels.get("version"):
                continue
            entry = result.setdefault((labels["model"], labels["version"]), Statistics())
            _read_sample(entry, sample.name, labels, sample.value)
    return result


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


def _triton_names(versions: dict[tuple[str, str], Statistics]) -> Iterator[Metric]:
    """The metrics under the names that Triton's dashboards expect. Its counters lack `_total`, so these are untyped."""
    for name, text, read in _TRITON:
        family = Metric(name, text, "unknown")
        for (model, version), entry in sorted(versions.items()):
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
