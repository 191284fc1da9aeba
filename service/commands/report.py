"""The report of a load test on a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from convoy.service.bench.plan import Closed
from convoy.service.bench.report import Figures, Latency, Report
from convoy.service.commands.terminal import bar, milliseconds, plain


def show(out: Console, report: Report) -> None:
    """Print the figures."""
    figures = report.all
    throughput = (f"{figures.images_per_second:,.1f} images/s", "bold green" if figures.images else "bold red")
    mean_batch = f" in batches of {figures.mean_batch_size:.1f} (mean)" if figures.mean_batch_size else ""
    out.print(Text.assemble(throughput, mean_batch))
    out.print(f"{figures.images:,} images of {figures.requests:,} requests answered in {figures.seconds:g} s")
    if figures.latency is not None and report.since_sent is not None:
        due = None if isinstance(report.plan.load, Closed) else figures.latency
        out.print("", _latencies(due, report.since_sent))
    if len(report.steps) > 1:
        names = (f"{step.at:g} to {step.at + step.seconds:g} s" for step in report.steps)
        out.print("", _parts("time", zip(names, report.steps, strict=True)))
    if len(report.models) > 1:
        out.print("", _parts("model", ((plain(each.model), each.figures) for each in report.models)))
    if figures.stage_seconds:
        out.print("", _stages(figures))
    if report.warnings:
        advice = "the latencies are in part its own: try more --processes, a lower load, or another machine"
        out.print("", Text(f"{'; '.join(report.warnings)}: {advice}", "yellow"), sep="\n")
    if figures.errors:
        out.print("", _errors(figures))


def _latencies(due: Latency | None, sent: Latency) -> Table:
    table = _table("latency, ms", "p50", "p90", "p99", "p99.9", "max")
    for name, found in (("from when it was due", due), ("from when it was sent", sent)):
        if found is not None:
            row = (found.p50, found.p90, found.p99, found.p999, found.max)
            table.add_row(name, *map(milliseconds, row))
    return table


def _parts(what: str, parts: Iterable[tuple[str, Figures]]) -> Table:
    table = _table(what, "requests/s", "images/s", "p50 ms", "p99 ms", "refused")
    for name, figures in parts:
        found = figures.latency
        latencies = (milliseconds(found.p50), milliseconds(found.p99)) if found is not None else ("", "")
        rates = (f"{figures.requests / figures.seconds:,.1f}", f"{figures.images_per_second:,.1f}")
        table.add_row(Text(name), *rates, *latencies, f"{sum(figures.errors.values()):,}")
    return table


def _stages(figures: Figures) -> Table:
    table = _table("stage, mean", "ms")
    table.add_column("share")
    means = {**figures.stage_seconds, "outside the server": figures.outside_seconds}
    total = sum(means.values())
    for stage, seconds in means.items():
        table.add_row(stage, milliseconds(seconds), Text(bar(seconds / total if total else 0.0, 30), "cyan"))
    return table


def _errors(figures: Figures) -> Table:
    table = _table("images not answered", "")
    table.add_column("first message")
    for name, count in figures.errors.items():
        table.add_row(Text(plain(name), "red"), f"{count:,}", Text(plain(figures.messages[name])))
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
