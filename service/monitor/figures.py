"""What a server did between two scrapes of its metrics: rates, percentiles, batch sizes, and its state after them."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

import msgspec

from convoy.service.monitor.exposition import Sample

STAGES = ("receive", "decode", "preprocess", "queue", "gather", "run", "scatter", "postprocess")
# The methods that run a network; the others return information about one.
INFERENCE = frozenset({"Classify", "Segment", "ClassifyStream", "SegmentStream", "ModelInfer", "ModelStreamInfer"})

Labels = frozenset[tuple[str, str]]
Values = dict[Labels, float]


class Scrape(msgspec.Struct, frozen=True):
    """The metrics at one moment: `at` is monotonic seconds; the values of each metric are keyed by their labels."""

    at: float
    metrics: Mapping[str, Values]


class Spread(msgspec.Struct, frozen=True):
    """The median and the 99th percentile of a distribution: times in seconds, batch sizes in images."""

    p50: float
    p99: float


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model.

    state     ready, not ready, failed (it cannot be loaded), quarantined, or "ready on 1 of 2" devices
    queued    images that wait for the device; None: another version has the figure of the model
    requests  requests a second that ran it, failed ones included
    latency   of these requests; None if there were none
    stages    time of one image, by stage
    batch     images in a batch, over batches; `mean_batch` likewise
    """

    model: str
    version: str
    state: str
    provider: str
    queued: float | None
    requests: float
    images: float
    latency: Spread | None
    stages: Mapping[str, Spread]
    batch: Spread | None
    mean_batch: float | None


class Refusals(msgspec.Struct, frozen=True):
    """Images and requests of a model that were not served for one reason: a second, and since the start."""

    model: str
    reason: str
    rate: float
    total: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A server over `seconds`: rates and percentiles are of these seconds, all else is as it was at their end.

    restarts  by process: "engine 0", "front end"; `recycled` likewise, of processes that had too much memory
    missed    requests a second whose deadline passed; `cancelled`: that their callers cancelled
    """

    seconds: float
    requests: float
    images: float
    failed: float
    missed: float
    cancelled: float
    in_flight: float
    in_flight_bytes: float
    queued: float
    restarts: Mapping[str, float]
    recycled: Mapping[str, float]
    versions: tuple[Version, ...]
    refusals: tuple[Refusals, ...]


def scraped(samples: Iterable[Sample], at: float) -> Scrape:
    """The samples by metric."""
    metrics: defaultdict[str, Values] = defaultdict(dict)
    for name, labels, value in samples:
        metrics[name][frozenset(labels.items())] = value
    return Scrape(at, dict(metrics))


def figures(before: Scrape, after: Scrape) -> Figures:
    """The figures of the time between two scrapes of one server."""
    seconds = max(after.at - before.at, 1e-9)
    gained = _Gain(before, after)
    counts = gained.sums("convoy_request_duration_seconds_count", "code", inference=True)
    return Figures(
        seconds=seconds,
        requests=sum(counts.values()) / seconds,
        images=gained.total("convoy_images_total") / seconds,
        failed=sum(count for (code,), count in counts.items() if code != "OK") / seconds,
        missed=gained.total("convoy_deadline_misses_total") / seconds,
        cancelled=gained.total("convoy_cancelled_total") / seconds,
        in_flight=_sum(after, "convoy_requests_in_flight"),
        in_flight_bytes=_sum(after, "convoy_in_flight_bytes"),
        queued=_sum(after, "convoy_queue_depth"),
        restarts=_restarts(after),
        recycled=_recycled(after),
        versions=tuple(_versions(after, gained, seconds)),
        refusals=tuple(_refusals(after, gained, seconds)),
    )


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """The value that `share` of the observations do not exceed, between the bounds of its bucket; None without any.

    buckets  cumulative counts by upper bound, as a histogram exposes them. Above the largest finite bound the answer
             is that bound, as in Prometheus.
    """
    bounds = sorted(buckets)
    counts = list(accumulate((buckets[bound] for bound in bounds), max))  # scraped while they changed, they may dip
    if not bounds or counts[-1] <= 0:
        return None
    rank = share * counts[-1]
    place = bisect_left(counts, rank)
    upper = bounds[place]
    lower, below = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    if math.isinf(upper):
        return lower
    return lower + (upper - lower) * (rank - below) / (counts[place] - below) if counts[place] > below else upper


class _Gain:
    """By how much counters have grown from one scrape to the next. After a restart they begin at 0 again."""

    def __init__(self, before: Scrape, after: Scrape) -> None:
        self._before, self._after = before, after

    def sums(self, name: str, *keys: str, inference: bool = False) -> dict[tuple[str, ...], float]:
        """The growth of a counter, added up over the series that have the same values of these labels.

        `inference`: only those of methods that run a network.
        """
        earlier = self._before.metrics.get(name, {})
        added: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for labels, value in self._after.metrics.get(name, {}).items():
            old = earlier.get(labels, 0.0)
            of = dict(labels)
            if inference and of.get("method") not in INFERENCE:
                continue
            added[tuple(of.get(key, "") for key in keys)] += value - old if value >= old else value
        return dict(added)

    def total(self, name: str) -> float:
        """The growth of all series."""
        return sum(self.sums(name).values())

    def spreads(self, name: str, *keys: str, inference: bool = False) -> dict[tuple[str, ...], Spread]:
        """The distribution of what a histogram has counted, by the values of these labels."""
        buckets: defaultdict[tuple[str, ...], dict[float, float]] = defaultdict(dict)
        for (*values, bound), count in self.sums(f"{name}_bucket", *keys, "le", inference=inference).items():
            buckets[tuple(values)][float(bound)] = count
        found = {values: _spread(of) for values, of in buckets.items()}
        return {values: spread for values, spread in found.items() if spread is not None}


def _spread(buckets: Mapping[float, float]) -> Spread | None:
    middle, high = quantile(0.5, buckets), quantile(0.99, buckets)
    return None if middle is None or high is None else Spread(middle, high)


def _versions(after: Scrape, gained: _Gain, seconds: float) -> Iterator[Version]:
    of_version = ("model", "version")
    states, providers = _states(after)
    images = gained.sums("convoy_images_total", *of_version)
    requests = gained.sums("convoy_request_duration_seconds_count", *of_version, inference=True)
    latencies = gained.spreads("convoy_request_duration_seconds", *of_version, inference=True)
    stages = gained.spreads("convoy_stage_duration_seconds", *of_version, "stage")
    batches = gained.sums("convoy_batch_size_count", *of_version)
    rows = gained.sums("convoy_batch_size_sum", *of_version)
    sizes: defaultdict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
    for (*of, size), count in gained.sums("convoy_batches_total", *of_version, "batch_size").items():
        sizes[tuple(of)][int(size)] = count
    queues = _by(after, "convoy_queue_depth", "model")
    known = sorted({*states, *(each for each in images if all(each))}, key=lambda each: (each[0], _number(each[1])))
    highest = {each[0]: each for each in known}
    for each in known:
        yield Version(
            model=each[0],
            version=each[1],
            state=states.get(each, "not ready"),
            provider=providers.get(each, ""),
            queued=queues.get(each[0], 0.0) if highest[each[0]] == each else None,
            requests=requests.get(each, 0.0) / seconds,
            images=images.get(each, 0.0) / seconds,
            latency=latencies.get(each),
            stages={stage: stages[*each, stage] for stage in STAGES if (*each, stage) in stages},
            batch=_batch_sizes(sizes[each]),
            mean_batch=rows[each] / batches[each] if batches.get(each) else None,
        )


def _batch_sizes(sizes: Mapping[int, float]) -> Spread | None:
    # Each exact size is counted: these percentiles need no buckets.
    ordered = sorted(sizes)
    counts = list(accumulate(sizes[size] for size in ordered))
    if not counts or counts[-1] <= 0:
        return None
    return Spread(*(float(ordered[bisect_left(counts, share * counts[-1])]) for share in (0.5, 0.99)))


def _states(after: Scrape) -> tuple[dict[tuple[str, ...], str], dict[tuple[str, ...], str]]:
    """The state and the providers of each version, over all devices."""
    ready: defaultdict[tuple[str, ...], dict[str, bool]] = defaultdict(dict)  # by device
    providers: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for labels, value in after.metrics.get("convoy_model_ready", {}).items():
        of = dict(labels)
        version, device = (of.get("model", ""), of.get("version", "")), of.get("device", "")
        ready[version][device] = value == 1 or ready[version].get(device, False)
        if provider := of.get("provider", ""):
            providers[version].add(provider.removesuffix("ExecutionProvider"))
    # A version that cannot be loaded has no provider.
    states = {version: _state([*devices.values()], version in providers) for version, devices in ready.items()}
    for labels, value in after.metrics.get("convoy_model_quarantined", {}).items():
        of = dict(labels)
        if value == 1:
            states[of.get("model", ""), of.get("version", "")] = "quarantined"
    return states, {version: ", ".join(sorted(names)) for version, names in providers.items()}


def _state(devices: list[bool], loaded: bool) -> str:
    if all(devices):
        return "ready"
    if any(devices):
        return f"ready on {sum(devices)} of {len(devices)}"
    return "not ready" if loaded else "failed"


def _refusals(after: Scrape, gained: _Gain, seconds: float) -> Iterator[Refusals]:
    grown = gained.sums("convoy_refusals_total", "model", "reason")
    rows = []
    for labels, total in after.metrics.get("convoy_refusals_total", {}).items():
        of = dict(labels)
        model, reason = of.get("model", ""), of.get("reason", "")
        if total:
            rows.append(Refusals(model, reason, grown[model, reason] / seconds, total))
    yield from sorted(rows, key=lambda row: (-row.rate, -row.total, row.model, row.reason))


def _restarts(after: Scrape) -> dict[str, float]:
    engines = _by(after, "convoy_engine_restarts_total", "device")
    named = {f"engine {device}": count for device, count in sorted(engines.items(), key=lambda each: _number(each[0]))}
    return {**named, "front end": _sum(after, "convoy_frontend_restarts_total")}


def _recycled(after: Scrape) -> dict[str, float]:
    counts: defaultdict[str, float] = defaultdict(float)
    for labels, value in after.metrics.get("convoy_recycled_total", {}).items():
        of = dict(labels)
        process = f"engine {of.get('device', '')}" if of.get("process") == "engine" else "front end"
        counts[process] += value
    return dict(sorted(counts.items()))


def _by(scrape: Scrape, name: str, label: str) -> dict[str, float]:
    added: defaultdict[str, float] = defaultdict(float)
    for labels, value in scrape.metrics.get(name, {}).items():
        added[dict(labels).get(label, "")] += value
    return dict(added)


def _sum(scrape: Scrape, name: str) -> float:
    return sum(scrape.metrics.get(name, {}).values())


def _number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (0, text)
