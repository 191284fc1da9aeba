"""The report of a load test, computed from its findings."""

from collections.abc import Sequence

import msgspec

from convoy.service.bench.findings import Findings, Histogram, Tally, total
from convoy.service.bench.plan import Closed, Open, Plan, TargetModel, edges

_LATE = 0.005  # seconds: above this, the figures depend as much on the load generator as on the server
_BUSY = 0.9  # of a core: a process short of CPU time reads answers late, which no other figure shows


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles in seconds, of requests with at least one answered image."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The requests due within `seconds` from `at`, which counts from the end of the warm-up."""

    at: float
    seconds: float
    requests: int
    images: int  # answered, of these requests
    images_per_second: float  # answers within this time
    latency: Latency | None  # from the due time; None if nothing was answered
    errors: dict[str, int]  # images, by code and reason
    messages: dict[str, str]  # the first message of each error
    mean_batch_size: float  # images per batch in the server; 0 if not reported
    stage_seconds: dict[str, float]  # mean over the images, in the server; empty if not reported
    outside_seconds: float  # mean over the images: in the client, in gRPC and on the wire


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    version: str
    figures: Figures


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """The load generator's own behaviour: whether its figures can be trusted."""

    processes: int
    sent_late_p99: float  # seconds between due and sent; in a closed loop, between a tick and its event loop
    sent_late_max: float
    cores: float  # CPU time over wall-clock time, of the busiest process

    @property
    def warnings(self) -> list[str]:
        """Why the figures are doubtful, one sentence each."""
        warnings = []
        if self.sent_late_p99 > _LATE:
            warnings.append(f"the load generator itself was up to {1000 * self.sent_late_p99:.1f} ms late (p99)")
        if self.cores > _BUSY:
            warnings.append(f"a client process was busy for {self.cores:.0%} of the time")
        return warnings


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All results of a load test."""

    plan: Plan
    all: Figures
    since_sent: Latency | None  # `all.latency` without the load generator's own delay
    generator: Generator
    warnings: list[str]
    models: list[ModelFigures]
    steps: list[Figures]  # for each piece of the load
    timeline: list[Figures]  # for each interval
    histogram: str  # of `all.latency`: HdrHistogram V2, base64, microseconds


def summarise(plan: Plan, findings: Findings) -> Report:
    """The report of a plan, from the findings of all its processes."""
    cuts = edges(plan.load.pieces())
    every = [tally for row in findings.cells for tally in row]
    columns = [total(column) for column in zip(*findings.cells, strict=True)]
    generator = Generator(
        processes=plan.processes,
        sent_late_p99=findings.late.percentile(99),
        sent_late_max=findings.late.percentile(100),
        cores=max(findings.cores),
    )
    whole = total(every)
    return Report(
        plan=plan,
        all=figures(whole, 0.0, plan.load.seconds),
        since_sent=latency(findings.since_sent),
        generator=generator,
        warnings=generator.warnings,
        models=[
            _of_model(model, total(row), plan.load.seconds)
            for model, row in zip(plan.models, findings.cells, strict=True)
        ],
        steps=_steps(plan.load, cuts, columns),
        timeline=[figures(column, cuts[place], cuts[place + 1] - cuts[place]) for place, column in enumerate(columns)],
        histogram=whole.latency.encode(),
    )


def figures(tally: Tally, at: float, seconds: float) -> Figures:
    return Figures(
        at=at,
        seconds=seconds,
        requests=tally.requests,
        images=tally.images,
        images_per_second=tally.arrived / seconds,
        latency=latency(tally.latency),
        errors=dict(sorted(tally.refused.items(), key=lambda entry: -entry[1])),
        messages=tally.messages,
        mean_batch_size=tally.timed / tally.batches if tally.batches else 0.0,
        stage_seconds={stage: spent / tally.timed for stage, spent in tally.stages.items()},
        outside_seconds=tally.outside / tally.timed if tally.timed else 0.0,
    )


def latency(histogram: Histogram) -> Latency | None:
    """The usual percentiles; None if empty."""
    if not histogram.count:
        return None
    p50, p90, p99, p999, longest = (histogram.percentile(percent) for percent in (50, 90, 99, 99.9, 100))
    return Latency(p50=p50, p90=p90, p99=p99, p999=p999, max=longest)


def _of_model(model: TargetModel, tally: Tally, seconds: float) -> ModelFigures:
    return ModelFigures(model=model.model, version=model.version, figures=figures(tally, 0.0, seconds))


def _steps(load: Closed | Open, cuts: Sequence[float], columns: Sequence[Tally]) -> list[Figures]:
    steps, at = [], 0.0
    for piece in load.pieces():
        middles = ((cuts[place] + cuts[place + 1]) / 2 for place in range(len(columns)))
        inside = [column for column, middle in zip(columns, middles, strict=True) if at < middle < at + piece.seconds]
        steps.append(figures(total(inside), at, piece.seconds))
        at += piece.seconds
    return steps
