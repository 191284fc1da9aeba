"""The picture of a load test: latency and throughput over time, and the latency distribution."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from convoy.service.bench.histogram import Histogram
from convoy.service.bench.plan import Closed
from convoy.service.bench.report import Report, in_words

_SHARES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
_MANY = 20  # requests per interval from which its 99th percentile means more than its maximum


def save(report: Report, path: Path) -> None:
    """Draw the report to a PNG file. Raises OSError if it cannot be written."""
    mpl.use("Agg")  # no window, so no display is needed
    figure = Figure(figsize=(10, 9), layout="constrained")
    over_time, rates, distribution = figure.subplots(3, 1, height_ratios=(3, 2, 3))
    names = ", ".join(model.model for model in report.plan.models)
    figure.suptitle(f"{names}: {in_words(report.plan.load)}")
    _draw_latencies(over_time, report)
    _draw_rates(rates, report)
    _draw_distribution(distribution, report)
    figure.savefig(path, dpi=100, format="png")


def _draw_latencies(axes: Axes, report: Report) -> None:
    told = [(each.at + each.seconds / 2, each.requests, each.latency) for each in report.timeline if each.latency]
    middles = [at for at, _, _ in told]
    axes.plot(middles, [1000 * found.max for _, _, found in told], ".", color="tab:red", label="longest")
    if any(requests >= _MANY for _, requests, _ in told):
        axes.plot(middles, [1000 * found.p99 for _, _, found in told], color="tab:orange", label="p99")
    axes.plot(middles, [1000 * found.p50 for _, _, found in told], color="tab:blue", label="p50")
    axes.set(ylabel="latency, ms", xlim=(0, report.all.seconds), title="latency of the requests due at that time")
    _finish(axes)
    if told:
        axes.set_yscale("log")
        _write_plainly(axes.yaxis)


def _draw_rates(axes: Axes, report: Report) -> None:
    middles = [each.at + each.seconds / 2 for each in report.timeline]
    refused = [sum(each.errors.values()) / each.seconds for each in report.timeline]
    if not isinstance(report.plan.load, Closed):
        answered = (each.images / each.seconds for each in report.timeline)
        due = [sum(both) for both in zip(answered, refused, strict=True)]
        axes.plot(middles, due, color="tab:grey", label="due")
    axes.plot(middles, [each.images_per_second for each in report.timeline], color="tab:green", label="answered")
    if any(refused):
        axes.plot(middles, refused, color="tab:red", label="refused")
    axes.set(xlabel="seconds", ylabel="images a second", xlim=(0, report.all.seconds), ylim=(0, None))
    _finish(axes)


def _draw_distribution(axes: Axes, report: Report) -> None:
    """The scale is minus the logarithm of the remaining share: each nine is equally wide."""
    seconds, shares = Histogram.decode(report.histogram).cumulative()
    if len(seconds):
        # The last share is 1, which this axis cannot show: it is drawn half a request lower.
        left = np.maximum(1 - shares, 0.5 / report.all.requests)
        axes.step(1000 * seconds, -np.log10(left), where="post", color="tab:blue")
        axes.set_xscale("log")
        _write_plainly(axes.xaxis)
        top = float(-np.log10(left[-1]))
        drawn = [share for share in _SHARES if -np.log10(1 - share) <= top]
        axes.set_yticks([-np.log10(1 - share) for share in drawn], [f"{100 * share:g} %" for share in drawn])
    axes.set(
        xlabel="latency, ms", ylabel="share of the answered", title="how many were answered within", ylim=(0, None)
    )
    _finish(axes)


def _write_plainly(axis: Axis) -> None:
    """Labels at 1, 2 and 5 times the powers of ten: otherwise one power would have one label, or none."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
