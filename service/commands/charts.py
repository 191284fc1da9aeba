"""The charts of the commands, as PNG files: of a load test, of a simulation, of a profile.

Figures are created without pyplot, so no display is needed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from convoy.service.bench.plan import Closed, describe

if TYPE_CHECKING:
    from convoy.service.bench.report import Report
    from convoy.service.bench.simulation import Outcome
    from convoy.service.commands.profile_served import Row
    from convoy.service.engine.profiles import Profile

# Okabe and Ito's colours, which are distinguishable with colour blindness.
_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _RED)
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP"

_SHARES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
_MANY = 20  # requests per interval from which its 99th percentile means more than its maximum
_QUANTILES = {"p50": (0.5, _SKY), "p90": (0.9, _BLUE), "p99": (0.99, _ORANGE), "p99.9": (0.999, _PINK)}
_FATES = (("in time", _BLUE, ""), ("late", _ORANGE, "//"), ("refused", _SKY, ".."), ("dropped", _PINK, "xx"))


def draw_load(report: "Report", path: Path) -> None:
    """Draw a load test: latency and throughput over time, and the latency distribution. Raises OSError."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    over_time, rates, distribution = figure.subplots(3, 1, height_ratios=(3, 2, 3))
    names = ", ".join(model.model for model in report.plan.models)
    figure.suptitle(f"{names}: {describe(report.plan.load)}")
    _draw_latencies(over_time, report)
    _draw_rates(rates, report)
    _draw_distribution(distribution, report)
    figure.savefig(path, dpi=100, format="png")


def draw_simulation(outcomes: Mapping[str, "Outcome"], best: float, deadline: float, title: str, path: Path) -> None:
    """Draw the results of each policy next to the others and the oracle. Raises OSError.

    best      the oracle's requests a second, 0 if it has none
    deadline  seconds
    """
    figure = Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(title)
    (goodput, quantiles), (batches, fates) = figure.subplots(2, 2)
    _draw_goodput(goodput, outcomes, best)
    _draw_quantiles(quantiles, outcomes, deadline)
    _draw_batches(batches, outcomes)
    _draw_fates(fates, outcomes)
    figure.savefig(path, dpi=100, format="png")


def draw_profiles(
    profiles: Sequence["Profile"], largest: Sequence[int], title: str, path: Path, served: Sequence["Row"] = ()
) -> None:
    """Draw time and throughput by batch size, predicted and, if there is any, served. Raises OSError.

    `largest` is the largest batch in use, per profile.
    """
    figure = Figure(figsize=(13.3 if served else 10, 4.2), layout="constrained")
    figure.suptitle(f"{title} on {profiles[0].machine.device}")
    seconds, rates, cpu, *more = figure.subplots(1, 4 if served else 3)
    for number, (profile, most) in enumerate(zip(profiles, largest, strict=True)):
        style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 5}
        name, instances = _profile_name(profile), profile.machine.instances
        sizes, batches = list(profile.batches), list(profile.batches.values())
        images = [instances * size for size in sizes]
        rate = [count / batch.seconds for count, batch in zip(images, batches, strict=True)]
        seconds.plot(sizes, [1000 * batch.seconds for batch in batches], label=name, **style)
        rates.plot(sizes, rate, label=name, **style)
        used = sizes.index(max((size for size in sizes if size <= most), default=sizes[0]))
        rates.plot(
            sizes[used], rate[used], marker="o", markersize=14, fillstyle="none", color="black", linestyle="none",
            label="largest used" if not number else None,
        )  # fmt: skip
        cpu_ms = [1000 * batch.cpu_seconds / count for count, batch in zip(images, batches, strict=True)]
        cpu.plot(sizes, cpu_ms, label=name, **style)
    seconds.set(title="time of a batch", ylabel="ms")
    rates.set(title="throughput", ylabel="images a second")
    cpu.set(title="CPU time of an image", ylabel="ms")
    every_size = sorted({size for profile in profiles for size in profile.batches})
    for axes in (seconds, rates, cpu):
        _logarithmic_sizes(axes, every_size)
    for axes in more:
        _draw_served(axes, served)
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=100, format="png")


def _draw_served(axes: Axes, rows: Sequence["Row"]) -> None:
    fixed = [row for row in rows if not row.automatic]
    (own,) = (row for row in rows if row.automatic)
    sizes = [row.batch_size for row in fixed]
    predicted = [np.nan if row.predicted is None else row.predicted for row in fixed]
    axes.plot(sizes, predicted, color=_BLUE, linestyle=":", label="predicted")
    axes.plot(sizes, [row.served.images_per_second for row in fixed], color=_GREEN, marker="s", label="fixed size")
    for number, row in enumerate(fixed):
        label = None if number else "each round"
        axes.plot([row.batch_size] * len(row.served.rounds), row.served.rounds, "_", color=_GREEN, label=label)
    axes.axhline(own.served.images_per_second, color=_RED, linestyle="--", label=f"auto ({own.batch_size})")
    axes.set(title="served", ylabel="images a second")
    _logarithmic_sizes(axes, sizes)
    # The network alone may be many times as fast as the server: then its line leaves the picture.
    most = max(row.served.images_per_second for row in rows)
    axes.set_ylim(0, 1.1 * min(2 * most, max(most, *np.nan_to_num(predicted))))
    axes.legend(loc="lower right", fontsize="small")


def _draw_latencies(axes: Axes, report: "Report") -> None:
    points = [(each.at + each.seconds / 2, each.requests, each.latency) for each in report.timeline if each.latency]
    middles = [at for at, _, _ in points]
    axes.plot(middles, [1000 * latency.max for _, _, latency in points], ".", color=_RED, label="longest")
    if any(requests >= _MANY for _, requests, _ in points):
        axes.plot(middles, [1000 * latency.p99 for _, _, latency in points], color=_ORANGE, label="p99")
    axes.plot(middles, [1000 * latency.p50 for _, _, latency in points], color=_BLUE, label="p50")
    axes.set(ylabel="latency, ms", xlim=(0, report.all.seconds), title="latency of the requests due at that time")
    _finish(axes)
    if points:
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis)


def _draw_rates(axes: Axes, report: "Report") -> None:
    middles = [each.at + each.seconds / 2 for each in report.timeline]
    refused = [sum(each.errors.values()) / each.seconds for each in report.timeline]
    if not isinstance(report.plan.load, Closed):
        answered = (each.images / each.seconds for each in report.timeline)
        due = [sum(both) for both in zip(answered, refused, strict=True)]
        axes.plot(middles, due, color="grey", label="due")
    axes.plot(middles, [each.images_per_second for each in report.timeline], color=_GREEN, label="answered")
    if any(refused):
        axes.plot(middles, refused, color=_RED, label="refused")
    axes.set(xlabel="seconds", ylabel="images a second", xlim=(0, report.all.seconds), ylim=(0, None))
    _finish(axes)


def _draw_distribution(axes: Axes, report: "Report") -> None:
    """The scale is minus the logarithm of the remaining share: each nine is equally wide."""
    from convoy.service.bench.findings import Histogram  # the other charts need no histogram package

    seconds, shares = Histogram.decode(report.histogram).cumulative()
    if len(seconds):
        # The last share is 1, which this axis cannot show: it is drawn half a request lower.
        left = np.maximum(1 - shares, 0.5 / report.all.requests)
        axes.step(1000 * seconds, -np.log10(left), where="post", color=_BLUE)
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
        top = float(-np.log10(left[-1]))
        ticks = [share for share in _SHARES if -np.log10(1 - share) <= top]
        axes.set_yticks([-np.log10(1 - share) for share in ticks], [f"{100 * share:g} %" for share in ticks])
    axes.set(xlabel="latency, ms", ylabel="share of answered requests", title="latency distribution", ylim=(0, None))
    _finish(axes)


def _draw_goodput(axes: Axes, outcomes: Mapping[str, "Outcome"], best: float) -> None:
    names = [f"{name}\n{each.goodput:,.0f}" for name, each in outcomes.items()]
    axes.bar(names, [each.goodput for each in outcomes.values()], color=_BLUE, width=0.6)
    if best:
        axes.axhline(best, color="black", linestyle="--", label=f"oracle, {best:,.0f}")
    axes.margins(y=0.25)
    axes.set(title="answered in time", ylabel="requests a second")
    _finish(axes, "y", loc="upper center")


def _draw_quantiles(axes: Axes, outcomes: Mapping[str, "Outcome"], deadline: float) -> None:
    width = 0.8 / len(_QUANTILES)
    for number, (name, (share, colour)) in enumerate(_QUANTILES.items()):
        values = [1000 * float(np.quantile(each.latencies or [0.0], share)) for each in outcomes.values()]
        axes.bar(np.arange(len(outcomes)) + (number - 1.5) * width, values, width, color=colour, label=name)
    axes.axhline(1000 * deadline, color="black", linestyle="--", label="deadline")
    axes.set_xticks(range(len(outcomes)), list(outcomes))
    axes.margins(y=0.25)
    axes.set(title="latency of answered requests", ylabel="ms")
    _finish(axes, "y", loc="upper center", ncols=5, fontsize="small", columnspacing=1, handlelength=1.2)


def _draw_batches(axes: Axes, outcomes: Mapping[str, "Outcome"]) -> None:
    """The distribution over requests, not over batches: many small batches contain few requests."""
    for number, (name, each) in enumerate(outcomes.items()):
        sizes = sorted(each.batches)
        requests = np.cumsum([size * each.batches[size] for size in sizes])
        if len(requests):
            colour = (_BLUE, _ORANGE, _GREEN, _PINK, "black")[number % 5]
            shares = [0.0, *(requests / requests[-1])]
            axes.step([0, *sizes], shares, where="post", color=colour, linestyle=_LINES[number % 5], label=name)
    axes.set(title="batch sizes", xlabel="images in a batch", ylabel="share of requests in such or smaller ones")
    axes.set(xlim=(0, None), ylim=(0, 1.02))
    _finish(axes)


def _draw_fates(axes: Axes, outcomes: Mapping[str, "Outcome"]) -> None:
    below = np.zeros(len(outcomes))
    for name, colour, hatch in _FATES:
        counts = np.array([getattr(each, name.replace(" ", "_")) / each.offered for each in outcomes.values()])
        axes.bar(
            list(outcomes), counts, 0.6, bottom=below, label=name,
            color=colour, hatch=hatch, edgecolor="white", linewidth=0,
        )  # fmt: skip
        below += counts
    axes.set(title="outcome of all requests", ylabel="share", ylim=(0, 1.15))
    _finish(axes, "y", loc="upper center", ncols=4, fontsize="small")


def _profile_name(profile: "Profile") -> str:
    sides = "x".join(map(str, profile.shape))
    instances, threads = profile.machine.instances, profile.machine.threads
    of_threads = f"{threads} thread{'s' * (threads > 1)}"
    return f"{sides}, {of_threads}" if instances == 1 else f"{sides}, {instances} sessions, {of_threads} each"


def _logarithmic_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)  # sizes double
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="images in a batch", ylim=(0, 1.1 * axes.dataLim.ymax))
    axes.grid(alpha=0.3)


def _plain_ticks(axis: Axis) -> None:
    """Labels at 1, 2 and 5 times the powers of ten: otherwise one power would have one label, or none."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _finish(axes: Axes, grid: Literal["both", "y"] = "both", **legend: object) -> None:
    axes.grid(alpha=0.3, axis=grid)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**{"loc": "best", **legend})
