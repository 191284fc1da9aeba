"""What a load test found: samples in, figures out."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from service.commands.drive import Sample
from service.commands.terminal import STAGES


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Of the requests of which an image was answered, from when they were due to their answer, in seconds."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one window of `seconds`; the requests are those that were due in it."""

    seconds: float
    requests: int
    images: int  # answered, of these requests
    images_per_second: float  # answers that came in the window
    latency: Latency | None  # None where nothing was answered
    sent_late_p99: float  # seconds: by how much the load generator itself was late
    errors: dict[str, int]  # images, by code and reason
    messages: dict[str, str]  # the first one of each of these
    mean_batch_size: float  # images a batch
    stage_seconds: dict[str, float]  # mean of the images, in the server
    outside_seconds: float  # mean of the images: in the client, in gRPC and on the wire


def summarise(samples: Sequence[Sample], start: float, seconds: float) -> Report:
    """The figures of the window [start, start + seconds) of a drive; what is before it was warm-up."""
    end = start + seconds
    due = [sample for sample in samples if start <= sample.due < end]
    answered = [sample for sample in due if sample.outcome.answered]
    images = [(sample, timings) for sample in answered for timings in sample.outcome.answered]
    arrived = sum(len(sample.outcome.answered) for sample in samples if start <= sample.finished < end)
    refused = [refusal for sample in due for refusal in sample.outcome.refused]
    # A batch of b images shows up b times, so each counts for 1/b of it.
    batches = sum(1 / timings.batch_size for _, timings in images if timings.batch_size)
    return Report(
        seconds=seconds,
        requests=len(due),
        images=len(images),
        images_per_second=arrived / seconds,
        latency=_latency([sample.finished - sample.due for sample in answered]),
        sent_late_p99=percentile([sample.sent - sample.due for sample in due], 99),
        errors=dict(Counter(refusal.name for refusal in refused).most_common()),
        messages={refusal.name: refusal.message for refusal in reversed(refused)},
        mean_batch_size=len(images) / batches if batches else 0.0,
        stage_seconds={stage: _mean([getattr(timings, stage) for _, timings in images]) for stage in STAGES},
        outside_seconds=_mean([sample.finished - sample.sent - timings.total for sample, timings in images]),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` of them do not exceed (nearest rank); 0 of none."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if values else 0.0


def _latency(seconds: Sequence[float]) -> Latency | None:
    if not seconds:
        return None
    return Latency(
        p50=percentile(seconds, 50),
        p90=percentile(seconds, 90),
        p99=percentile(seconds, 99),
        p999=percentile(seconds, 99.9),
        max=max(seconds),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
