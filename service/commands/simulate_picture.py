"""The picture of a simulation: the results of each policy next to the others and the oracle."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convoy.service.bench.simulation import Outcome

# Okabe and Ito's colours, which are distinguishable with colour blindness.
_BLUE, _ORANGE, _GREEN, _PINK, _SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
_FATES = (
    ("in time", _BLUE, ""),
    ("late", _ORANGE, "//"),
    ("refused", _SKY, ".."),
    ("dropped", _PINK, "xx"),
)


def save(outcomes: Mapping[str, Outcome], best: float, deadline: float, title: str, path: Path) -> None:
    """Draw the results of each policy to a PNG file. Raises OSError.

    best      the oracle's requests a second, 0 if it has none
    deadline  seconds
    """
    mpl.use("Agg")  # no window, so no display is needed
    figure = Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(title)
    (goodput, latencies), (batches, fates) = figure.subplots(2, 2)
    _draw_goodput(goodput, outcomes, best)
    _draw_latencies(latencies, outcomes, deadline)
    _draw_batches(batches, outcomes)
    _draw_fates(fates, outcomes)
    figure.savefig(path, dpi=100, format="png")


def _draw_goodput(axes: Axes, outcomes: Mapping[str, Outcome], best: float) -> None:
    names = [f"{name}\n{each.goodput:,.0f}" for name, each in outcomes.items()]
    axes.bar(names, [each.goodput for each in outcomes.values()], color=_BLUE, width=0.6)
    if best:
        axes.axhline(best, color="black", linestyle="--", label=f"oracle, {best:,.0f}")
        axes.legend(loc="upper center")
    axes.margins(y=0.25)
    axes.set(title="answered in time", ylabel="requests a second")
    axes.grid(alpha=0.3, axis="y")


def _draw_latencies(axes: Axes, outcomes: Mapping[str, Outcome], deadline: float) -> None:
    width = 0.8 / len(_QUANTILES)
    for number, (name, share) in enumerate(_QUANTILES.items()):
        values = [1000 * float(np.quantile(each.latencies or [0.0], share)) for each in outcomes.values()]
        colour = (_SKY, _BLUE, _ORANGE, _PINK)[number]
        axes.bar(np.arange(len(outcomes)) + (number - 1.5) * width, values, width, color=colour, label=name)
    axes.axhline(1000 * deadline, color="black", linestyle="--", label="deadline")
    axes.set_xticks(range(len(outcomes)), list(outcomes))
    axes.margins(y=0.25)
    axes.set(title="latency of the answered", ylabel="ms")
    axes.legend(loc="upper center", ncols=5, fontsize="small", columnspacing=1, handlelength=1.2)
    axes.grid(alpha=0.3, axis="y")


def _draw_batches(axes: Axes, outcomes: Mapping[str, Outcome]) -> None:
    """The distribution over requests, not over batches: many small batches contain few requests."""
    for number, (name, each) in enumerate(outcomes.items()):
        sizes = sorted(each.batches)
        held = np.cumsum([size * each.batches[size] for size in sizes])
        if len(held):
            colour = (_BLUE, _ORANGE, _GREEN, _PINK, "black")[number % 5]
            shares = [0.0, *(held / held[-1])]
            axes.step([0, *sizes], shares, where="post", color=colour, linestyle=_LINES[number % 5], label=name)
    axes.set(title="batch sizes", xlabel="images in a batch", ylabel="share of requests in such or smaller ones")
    axes.set(xlim=(0, None), ylim=(0, 1.02))
    axes.legend(loc="best")
    axes.grid(alpha=0.3)


def _draw_fates(axes: Axes, outcomes: Mapping[str, Outcome]) -> None:
    below = np.zeros(len(outcomes))
    for name, colour, hatch in _FATES:
        counts = [getattr(each, name.replace(" ", "_")) / each.offered for each in outcomes.values()]
        axes.bar(
            list(outcomes),
            counts,
            0.6,
            bottom=below,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=name,
        )
        below += np.array(counts)
    axes.set(title="what became of the requests", ylabel="share", ylim=(0, 1.15))
    axes.legend(loc="upper center", ncols=4, fontsize="small")
    axes.grid(alpha=0.3, axis="y")
