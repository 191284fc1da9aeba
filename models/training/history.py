"""Writes the rows of a run's `metrics.csv` as its epochs end."""

import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from convoy.models.training import metrics_table
from convoy.models.training.metrics_table import Row

OF_STEPS = ("loss", "learning_rate")  # values of the last step, replaced by those of the epoch


class History(Callback):
    """Rewrites the table after each epoch, so that a killed run has the rows up to then. A resumed run keeps the rows
    of the epochs before its checkpoint."""

    def __init__(self, root: Path) -> None:
        self.path = root / metrics_table.FILE
        self.rows: list[Row] = []
        self.rate = 0.0  # of the last step
        self.seconds_before = 0.0
        self.start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = metrics_table.read(self.path) if trainer.current_epoch else []
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
        metrics_table.write(self.path, self.rows)


def _place(name: str) -> tuple[int, str]:
    first = ("train_loss", "validation_loss")
    return (first.index(name), "") if name in first else (len(first), name)
