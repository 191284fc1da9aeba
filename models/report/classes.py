"""The table of scores per class, for the terminal, CSV and HTML."""

import csv
from pathlib import Path

from rich.table import Table

from convoy.models.evaluation.classes import ClassScores
from convoy.models.evaluation.evaluate import Evaluation

MOST_ROWS = 40  # in the terminal, and visible on a page; the file has all rows


def columns(evaluation: Evaluation) -> list[str]:
    """Returns the fields of `ClassScores` that apply to this task, in display order."""
    if evaluation.network.task == "classification":
        return ["precision", "recall", "f1", "support"]
    return ["iou", "precision", "recall", "boundary_f1", "support"]


def cells(scores: ClassScores, names: list[str]) -> list[str]:
    """Returns a row as text; – for an undefined score."""
    found = [getattr(scores, name) for name in names]
    return ["–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for value in found]


def table(evaluation: Evaluation) -> Table:
    """Returns the table for the terminal: all classes in order, or the worst ones if there are many."""
    names, rows, title = columns(evaluation), worst(evaluation), "classes"
    if len(rows) < len(evaluation.classes):
        title = f"the {len(rows)} worst of {len(evaluation.classes)} classes"
    result = Table(title=title, box=None, padding=(0, 2, 0, 0))
    result.add_column("class", style="bold")
    for name in names:
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(row.label, *cells(row, names))
    return result


def worst(evaluation: Evaluation) -> list[ClassScores]:
    """Returns all classes in order, or if there are many the worst ones, worst first."""
    rows = evaluation.classes
    if len(rows) <= MOST_ROWS:
        return rows
    return sorted(rows, key=lambda row: (row.support == 0, row.f1 or 0.0))[:MOST_ROWS]


def save(evaluation: Evaluation, path: Path) -> None:
    """Writes all classes as CSV; undefined scores are empty."""
    names = columns(evaluation)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *names])
        for row in evaluation.classes:
            writer.writerow([row.label, *(_number(getattr(row, name)) for name in names)])


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
