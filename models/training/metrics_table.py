"""The `metrics.csv` of a run: one row per epoch, with its learning rate and every loss and score, without gaps."""

import csv
import io
from pathlib import Path
from typing import Any

from convoy.models import paths
from convoy.models.errors import BadRun

FILE = "metrics.csv"

Row = dict[str, float]


def read(path: Path) -> list[Row]:
    """Returns the rows of a run, by epoch; empty if the file does not exist. Raises BadRun if it is damaged."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise BadRun(f"{path} is not as it was written, want numbers by epoch, or no such file: {error}") from None


def write(path: Path, rows: list[Row]) -> None:
    columns: dict[str, Any] = {name: None for row in rows for name in row}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows({name: f"{value:.8g}" for name, value in row.items()} for row in rows)
    paths.write_atomically(path, text.getvalue().encode())
