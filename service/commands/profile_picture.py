"""The picture of a profile: time and throughput by batch size."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from convoy.service.engine.profiles import Profile

# Okabe and Ito's colours, distinguishable with colour blindness; each has its own marker, too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_SIGNS = "osD^vP"


def save(profiles: Sequence[Profile], used: Sequence[int], title: str, path: Path) -> None:
    """Draw profiles to a PNG file; `used` is the largest batch size in use, per profile. Raises OSError."""
    mpl.use("Agg")  # no window, so no display is needed
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"{title} on {profiles[0].machine.device}")
    seconds, rates, cpu = figure.subplots(1, 3)
    for number, (made, largest) in enumerate(zip(profiles, used, strict=True)):
        style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _SIGNS[number % len(_SIGNS)], "markersize": 5}
        at_once = made.machine.instances
        sizes = list(made.batches)
        rate = [at_once * size / batch.seconds for size, batch in made.batches.items()]
        seconds.plot(sizes, [1000 * batch.seconds for batch in made.batches.values()], label=_name(made), **style)
        rates.plot(sizes, rate, label=_name(made), **style)
        chosen = sizes.index(max((size for size in sizes if size <= largest), default=sizes[0]))
        rates.plot(
            sizes[chosen], rate[chosen], marker="o", markersize=14, fillstyle="none", color="black", linestyle="none",
            label="largest used" if not number else None,
        )  # fmt: skip
        per_image = [1000 * batch.cpu_seconds / (at_once * size) for size, batch in made.batches.items()]
        cpu.plot(sizes, per_image, label=_name(made), **style)
    seconds.set(title="what a batch takes", ylabel="ms")
    rates.set(title="what it brings", ylabel="images a second")
    cpu.set(title="CPU time of an image", ylabel="ms")
    every = sorted({size for made in profiles for size in made.batches})
    for axes in (seconds, rates, cpu):
        _finish(axes, every)
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=100, format="png")


def _name(made: Profile) -> str:
    sides = "x".join(map(str, made.shape))
    number, threads = made.machine.instances, made.machine.threads
    sessions = f"{number} sessions, {threads} thread{'s' * (threads > 1)} each"
    return f"{sides}, {threads} thread{'s' * (threads > 1)}" if number == 1 else f"{sides}, {sessions}"


def _finish(axes: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis, because sizes double."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="images in a batch", ylim=(0, 1.1 * axes.dataLim.ymax))
    axes.grid(alpha=0.3)
