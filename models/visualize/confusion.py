"""Confusion matrices as a table in the terminal and as a picture."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

MOST_COLUMNS = 21  # in a table in the terminal
MOST_NUMBERS = 30  # classes up to which counts fit in the cells of a picture
MOST_NAMES = 60  # classes up to which there is room for their names
MOST_MISTAKES = 20
MISTAKES = ("true", "answered", "count", "% of the true class")
MOST_SIDE = 20.0  # inches


def table(counts: NDArray[np.int64], labels: list[str]) -> Table:
    """Returns a table with true classes as rows, predicted ones as columns, and each cell as a percentage of its row;
    for more classes than fit in a terminal, the most frequent errors."""
    if len(labels) > MOST_COLUMNS:
        return _mistakes(counts, labels)
    result = Table(title="answered classes, % of each true class", box=None, padding=(0, 1, 0, 0))
    result.add_column("true", style="bold")
    for label in labels:
        result.add_column(_short(label), justify="right", no_wrap=True)
    for label, row in zip(labels, _shares(counts), strict=True):
        result.add_row(label, *map(_cell, row))
    return result


def mistakes(counts: NDArray[np.int64], labels: list[str]) -> list[tuple[str, str, str, str]]:
    """Returns the most frequent errors, at most 20, with the columns `MISTAKES`."""
    wrong, shares = counts.copy(), _shares(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_MISTAKES]
    return [
        (labels[true], labels[answered], f"{wrong[true, answered]:,}", f"{100 * shares[true, answered]:.1f}")
        for true, answered in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[true, answered]
    ]


def save(counts: NDArray[np.int64], labels: list[str], title: str, path: Path) -> None:
    """Writes the matrix as a PNG file: shares of each true class, darker for more, with the counts in the cells if they
    fit."""
    mpl.use("Agg")  # no window, so no display is needed
    shares = _shares(counts)
    side = min(MOST_SIDE, 3 + 0.55 * len(labels))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    if len(labels) <= MOST_NAMES:
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels, rotation=45 if max(map(len, labels)) > 2 else 0)
        axes.set_yticks(ticks, labels)
    axes.set(title=title, xlabel="answered", ylabel="true")
    if len(labels) <= MOST_NUMBERS:
        _write_counts(axes, counts, shares)
    figure.savefig(path, dpi=120)


def _mistakes(counts: NDArray[np.int64], labels: list[str]) -> Table:
    result = Table(title="commonest mistakes", box=None, padding=(0, 2, 0, 0))
    result.add_column(MISTAKES[0], style="bold")
    result.add_column(MISTAKES[1])
    for name in MISTAKES[2:]:
        result.add_column(name, justify="right")
    for row in mistakes(counts, labels):
        result.add_row(*row)
    return result


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for true, answered in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[true, answered] > 0.5 else "black"
        text = _count(int(counts[true, answered]))
        axes.text(answered, true, text, ha="center", va="center", color=colour, fontsize=8)


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _cell(share: float) -> str:
    return "·" if share == 0 else "100" if share == 1 else f"{100 * share:.1f}"


def _short(label: str) -> str:
    return label if len(label) <= 5 else f"{label[:4]}…"


def _count(count: int) -> str:
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1_000_000:.1f}M"
