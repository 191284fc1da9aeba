"""The logs of a run: `metrics.csv` with a row per epoch, and CSV and TensorBoard files with a row per step."""

import csv
import shutil
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.optim import Optimizer

from convoy.models.training import run
from convoy.models.training.module import Training
from convoy.models.training.run import Row

LOG_FOLDERS = ("csv", "tensorboard")
EVERY_STEPS = 10  # steps per logged row


class EpochTable(Callback):
    """Rewrites the table after each epoch, so that a killed run has the rows up to then. A resumed run keeps the rows
    of the epochs before its checkpoint."""

    def __init__(self, root: Path) -> None:
        self.path = root / run.METRICS
        self.rows: list[Row] = []
        self.rate = 0.0  # of the last step
        self.seconds_before = 0.0
        self.start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = run.read_metrics(self.path) if trainer.current_epoch else []
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
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row: Row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(self.seconds_before + time.monotonic() - self.start, 3),
            "learning_rate": self.rate,
            **{name: scores[name] for name in sorted(scores, key=_place)},
        }
        self.rows = [*(each for each in self.rows if each["epoch"] < row["epoch"]), row]
        run.write_metrics(self.path, self.rows)


class StepRows(Callback):
    """Logs loss and learning rate of every tenth step. Lightning's own log would average them over the processes, which
    they do not need, and costs a millisecond in every step."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Training)
        done = trainer.global_step
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or batch_idx + 1 == trainer.num_training_batches
        if not (whole and done % EVERY_STEPS == 0 and trainer.is_global_zero):
            return
        row = {"epoch": trainer.current_epoch, "learning_rate": pl_module.step_rate, "loss": float(pl_module.step_loss)}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=done - 1)


def loggers(root: Path) -> list[CSVLogger | TensorBoardLogger]:
    """Returns loggers for `csv/version_N/metrics.csv`, flushed per row in case of a kill, and `tensorboard`."""
    return [
        CSVLogger(root, name="csv", flush_logs_every_n_steps=1),
        TensorBoardLogger(root, name="tensorboard"),
    ]


def clear_logs(root: Path) -> None:
    """Removes the logs of an earlier run in the same folder."""
    for name in LOG_FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)


def drop_steps(root: Path, step: int) -> None:
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


def _place(name: str) -> tuple[int, str]:
    first = ("train_loss", "validation_loss")
    return (first.index(name), "") if name in first else (len(first), name)
