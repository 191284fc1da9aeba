"""The logs of a run: CSV and TensorBoard files, one folder of each per start."""

import csv
import shutil
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

FOLDERS = ("csv", "tensorboard")
EVERY_STEPS = 10  # steps per logged row


def loggers(root: Path) -> list[CSVLogger | TensorBoardLogger]:
    """Returns loggers for `csv/version_N/metrics.csv`, flushed per row in case of a kill, and `tensorboard`."""
    return [
        CSVLogger(root, name="csv", flush_logs_every_n_steps=1),
        TensorBoardLogger(root, name="tensorboard"),
    ]


def clear(root: Path) -> None:
    """Removes the logs of an earlier run in the same folder."""
    for name in FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)


def forget(root: Path, step: int) -> None:
    """Removes the rows from step `step` on, counted from 0, which a resumed run repeats."""
    for path in sorted(root.glob("csv/version_*/metrics.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            continue
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) < step)
