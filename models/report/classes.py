"""The scores class by class as a table: in the terminal, as CSV, and in a page."""

import csv
from pathlib import Path

from rich.table import Table

from convoy.models.evaluation.classes import ClassScores
from convoy.models.evaluation.evaluate import Evaluation

MOST_ROWS = 40  # in the terminal, and in sight on a page; the file has them all


def columns(evaluation: Evaluation) -> list[str]:
    """The fields of `ClassScores` that say something in this task, in the order in which they are shown."""
    if evaluation.network.task == "classification":
        return ["precision", "recall", "f1", "support"]
    return ["iou", "precision", "recall", "boundary_f1", "support"]


def cells(scores: ClassScores, names: list[str]) -> list[str]:
    """A row as text; – for a score that there is nothing to measure on."""
    found = [getattr(scores, name) for name in names]
    return ["–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for value in found]


def table(evaluation: Evaluation) -> Table:
    """For the terminal: the classes in their order, or of many the worst ones."""
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
    """The classes in their order where they are few, else the worst ones, worst first."""
    rows = evaluation.classes
    if len(rows) <= MOST_ROWS:
        return rows
    return sorted(rows, key=lambda row: (row.support == 0, row.f1 or 0.0))[:MOST_ROWS]


def save(evaluation: Evaluation, path: Path) -> None:
    """All classes as CSV, a score that there is nothing to measure on left empty."""
    names = columns(evaluation)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *names])
        for row in evaluation.classes:
            writer.writerow([row.label, *(_number(getattr(row, name)) for name in names)])


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
