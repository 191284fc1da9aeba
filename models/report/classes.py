"""Scores per class and confusion matrices: for the terminal, as CSV, as pictures and for HTML."""

import csv
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from convoy.models.evaluation.evaluate import Evaluation
from convoy.models.evaluation.metrics import ClassScores

MAX_ROWS = 40  # in the terminal, and visible on a page; the file has all rows

MAX_COLUMNS = 21  # in a table in the terminal
MAX_COUNTS = 30  # classes up to which counts fit in the cells of a picture
MAX_NAMES = 60  # classes up to which there is room for their names
MAX_ERRORS = 20
ERROR_COLUMNS = ("true", "predicted", "count", "% of the true class")
MAX_SIDE = 20.0  # inches


def class_columns(evaluation: Evaluation) -> list[str]:
    """Returns the fields of `ClassScores` that apply to this task, in display order."""
    if evaluation.network.task == "classification":
        return ["precision", "recall", "f1", "support"]
    return ["iou", "precision", "recall", "boundary_f1", "support"]


def class_cells(scores: ClassScores, names: list[str]) -> list[str]:
    """Returns a row as text; – for an undefined score."""
    values = [getattr(scores, name) for name in names]
    return ["–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for value in values]


def class_table(evaluation: Evaluation) -> Table:
    """Returns the table for the terminal: all classes in order, or the worst ones if there are many."""
    names, rows, title = class_columns(evaluation), worst_classes(evaluation), "classes"
    if len(rows) < len(evaluation.classes):
        title = f"the {len(rows)} worst of {len(evaluation.classes)} classes"
    result = Table(title=title, box=None, padding=(0, 2, 0, 0))
    result.add_column("class", style="bold")
    for name in names:
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(row.label, *class_cells(row, names))
    return result


def worst_classes(evaluation: Evaluation) -> list[ClassScores]:
    """Returns all classes in order, or if there are many the worst ones, worst first."""
    rows = evaluation.classes
    if len(rows) <= MAX_ROWS:
        return rows
    return sorted(rows, key=lambda row: (row.support == 0, row.f1 or 0.0))[:MAX_ROWS]


def save_classes(evaluation: Evaluation, path: Path) -> None:
    """Writes all classes as CSV; undefined scores are empty."""
    names = class_columns(evaluation)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *names])
        for row in evaluation.classes:
            writer.writerow([row.label, *(_number(getattr(row, name)) for name in names)])


def confusion_table(counts: NDArray[np.int64], labels: list[str]) -> Table:
    """Returns a table with true classes as rows, predicted ones as columns, and each cell as a percentage of its row;
    for more classes than fit in a terminal, the most frequent errors."""
    if len(labels) > MAX_COLUMNS:
        return _error_table(counts, labels)
    result = Table(title="predicted classes, % of each true class", box=None, padding=(0, 1, 0, 0))
    result.add_column("true", style="bold")
    for label in labels:
        result.add_column(_short(label), justify="right", no_wrap=True)
    for label, row in zip(labels, _shares(counts), strict=True):
        result.add_row(label, *map(_cell, row))
    return result


def frequent_errors(counts: NDArray[np.int64], labels: list[str]) -> list[tuple[str, str, str, str]]:
    """Returns the most frequent errors, at most 20, with the columns `ERROR_COLUMNS`."""
    wrong, shares = counts.copy(), _shares(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_ERRORS]
    return [
        (labels[true], labels[predicted], f"{wrong[true, predicted]:,}", f"{100 * shares[true, predicted]:.1f}")
        for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[true, predicted]
    ]


def save_confusion(counts: NDArray[np.int64], labels: list[str], title: str, path: Path) -> None:
    """Writes the matrix as a PNG file: shares of each true class, darker for more, with the counts in the cells if they
    fit."""
    mpl.use("Agg")  # no window, so no display is needed
    shares = _shares(counts)
    side = min(MAX_SIDE, 3 + 0.55 * len(labels))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    if len(labels) <= MAX_NAMES:
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels, rotation=45 if max(map(len, labels)) > 2 else 0)
        axes.set_yticks(ticks, labels)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if len(labels) <= MAX_COUNTS:
        _write_counts(axes, counts, shares)
    figure.savefig(path, dpi=120)


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _error_table(counts: NDArray[np.int64], labels: list[str]) -> Table:
    result = Table(title="most frequent errors", box=None, padding=(0, 2, 0, 0))
    result.add_column(ERROR_COLUMNS[0], style="bold")
    result.add_column(ERROR_COLUMNS[1])
    for name in ERROR_COLUMNS[2:]:
        result.add_column(name, justify="right")
    for row in frequent_errors(counts, labels):
        result.add_row(*row)
    return result


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for true, predicted in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[true, predicted] > 0.5 else "black"
        text = _count(int(counts[true, predicted]))
        axes.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=8)


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
