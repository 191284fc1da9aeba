"""The logs of a run: rows of CSV and TensorBoard's files, one folder of each for every time it was started."""

import csv
import shutil
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

FOLDERS = ("csv", "tensorboard")
EVERY_STEPS = 10  # that a row tells of


def loggers(root: Path) -> list[CSVLogger | TensorBoardLogger]:
    """`csv/version_N/metrics.csv`, written row by row so that a killed run has them, and `tensorboard/version_N`."""
    return [
        CSVLogger(root, name="csv", flush_logs_every_n_steps=1),
        TensorBoardLogger(root, name="tensorboard"),
    ]


def clear(root: Path) -> None:
    """Remove the logs of an earlier run in the same folder."""
    for name in FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)


def forget(root: Path, step: int) -> None:
    """Remove the rows of steps from `step` on, counted from 0, which a resumed run takes again."""
    for path in sorted(root.glob("csv/version_*/metrics.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            continue
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) < step)
