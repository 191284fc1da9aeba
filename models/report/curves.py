"""Curves of losses, scores and the learning rate, for one run or several."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convoy.models.training.run import Row

FEW = 25  # epochs up to which each point is marked
COLOURS = 20


class Line(NamedTuple):
    """One `column` of a run's rows, with its `label` in the legend."""

    label: str
    rows: Sequence[Row]
    column: str


def save_run(rows: Sequence[Row], path: Path) -> None:
    """Plots losses, scores and the learning rate of one run, one panel each, into a PNG file."""
    names = [name for row in rows for name in row]
    scores = [name for name in dict.fromkeys(names) if name.startswith("validation_") and name != "validation_loss"]
    _save(
        {
            "loss": [Line(name.removesuffix("_loss"), rows, name) for name in ("train_loss", "validation_loss")],
            "score": [Line(name.removeprefix("validation_"), rows, name) for name in scores],
            "learning rate": [Line("learning rate", rows, "learning_rate")],
        },
        path,
    )


def save_runs(runs: Mapping[str, Sequence[Row]], leading: str, path: Path) -> None:
    """Plots the leading validation score and both losses of several named runs, one panel each, into a PNG file."""
    columns = {
        leading.removeprefix("validation_"): leading,
        "validation loss": "validation_loss",
        "train loss": "train_loss",
    }
    _save(
        {
            title.replace("_", " "): [Line(name, rows, column) for name, rows in runs.items()]
            for title, column in columns.items()
        },
        path,
    )


def _save(panels: Mapping[str, Sequence[Line]], path: Path) -> None:
    mpl.use("Agg")  # no window, so no display is needed
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, line in enumerate(lines):
            _draw(axes, line, number, many=len(lines) > 10)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=8 if len(lines) <= 10 else 5)
    figure.savefig(path, dpi=100, format="png")


def _draw(axes: Axes, line: Line, number: int, many: bool) -> None:
    points = [(row["epoch"], row[line.column]) for row in line.rows if line.column in row]
    colour = mpl.colormaps["tab20" if many else "tab10"](number % COLOURS)
    axes.plot(*zip(*points, strict=True), ".-" if len(points) <= FEW else "-", color=colour, label=line.label)
