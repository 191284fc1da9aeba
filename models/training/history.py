"""`metrics.csv` of a run: one row per epoch, with its learning rate and every loss and score, without gaps."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from convoy.models import whole_file
from convoy.models.errors import BadRun

FILE = "metrics.csv"
OF_STEPS = ("loss", "learning_rate")  # values of the last step, which differ from the epoch's

Row = dict[str, float]


class History(Callback):
    """Rewrites the table after each epoch, so that a killed run has it up to there. A resumed run keeps the rows of the
    epochs before its checkpoint."""

    def __init__(self, root: Path) -> None:
        self.path = root / FILE
        self.rows: list[Row] = []
        self.rate = 0.0  # of the last step
        self.seconds_before = 0.0
        self.start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = read(self.path) if trainer.current_epoch else []
        self.rows = [row for row in before if row["epoch"] <= trainer.current_epoch]
        self.seconds_before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.start = time.monotonic()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self.rate = max(group["lr"] for group in optimizer.param_groups)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name not in OF_STEPS}
        row: Row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(self.seconds_before + time.monotonic() - self.start, 3),
            "learning_rate": self.rate,
            **{name: scores[name] for name in sorted(scores, key=_place)},
        }
        self.rows = [*(each for each in self.rows if each["epoch"] < row["epoch"]), row]
        _write(self.path, self.rows)


def read(path: Path) -> list[Row]:
    """Reads the rows of a run, by epoch; none if there is no table. Raises BadRun if it is damaged."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise BadRun(f"{path} is not as it was written, want numbers by epoch, or no such file: {error}") from None


def _place(name: str) -> tuple[int, str]:
    first = ("train_loss", "validation_loss")
    return (first.index(name), "") if name in first else (len(first), name)


def _write(path: Path, rows: list[Row]) -> None:
    columns: dict[str, Any] = {name: None for row in rows for name in row}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows({name: f"{value:.8g}" for name, value in row.items()} for row in rows)
    whole_file.write(path, text.getvalue().encode())
