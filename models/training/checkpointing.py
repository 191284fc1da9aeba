"""Checkpoints of a run: the best, the last, and one within an epoch in case the run is killed; and the moving average
of the weights in them."""

import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from convoy.models import paths
from convoy.models.training.run import RunFolder

MONITOR = "validation_loss"
MAX_TIME_SHARE = 0.02  # limit on the time spent writing checkpoints within an epoch
STEPS_BETWEEN = 10  # steps between checks of the clock, for which several processes must synchronise


def checkpoints(folder: RunFolder, keep: int, every_seconds: float) -> list[Checkpoint]:
    """Returns the callbacks that write the best checkpoint, the `keep` best, each epoch's, and those in between."""
    kept = [_each(BestFew, folder.kept / "epoch-{epoch:04d}.ckpt", MONITOR, keep)] if keep > 1 else []
    best, last = _each(ModelCheckpoint, folder.best, MONITOR), _each(ModelCheckpoint, folder.last)
    # The last one comes after the others, so that it records them.
    return [best, *kept, last, WithinEpoch(folder.last, every_seconds)]


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically. Lightning copies them from the temporary folder, often on another file system, so
    that an incomplete file replaces the last good one in the meantime."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        paths.write_atomically(path, content.getbuffer())


class BestFew(ModelCheckpoint):
    """Keeps several of the best. It is a separate class since Lightning identifies callbacks by class and monitor."""

    def format_checkpoint_name(self, metrics: dict[str, Any], *args: Any, **named: Any) -> str:
        # Epochs count from 1, as in the output.
        return super().format_checkpoint_name({**metrics, "epoch": metrics["epoch"] + 1}, *args, **named)


class WithinEpoch(Checkpoint):
    """Writes `path` every `every_seconds` within an epoch, but uses at most a fiftieth of the time.

    Not between accumulated batches, because a checkpoint does not contain gradients, nor after the last step of an
    epoch, because Lightning would then skip its validation.
    """

    def __init__(self, path: Path, every_seconds: float) -> None:
        self.path, self.every_seconds = path, every_seconds
        self.written = time.monotonic()
        self.write_seconds = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        whole = done % trainer.accumulate_grad_batches == 0 and done < trainer.num_training_batches
        checks_clock = self.every_seconds == 0 or trainer.global_step % STEPS_BETWEEN == 0
        if whole and checks_clock and self._due(trainer):
            start = time.monotonic()
            trainer.save_checkpoint(self.path)
            self.written = time.monotonic()
            self.write_seconds = self.written - start

    def _due(self, trainer: pl.Trainer) -> bool:
        pause = 0.0 if self.every_seconds == 0 else max(self.every_seconds, self.write_seconds / MAX_TIME_SHARE)
        # One process decides, because all write a checkpoint together.
        return bool(trainer.strategy.broadcast(time.monotonic() - self.written >= pause))


def averaging(decay: float) -> WeightAveraging:
    """An exponential moving average of the weights after each step (Polyak and Juditsky 1992; as a moving average,
    Tarvainen and Valpola, arXiv 1703.01780).

    Validation and every checkpoint's network use the average; the checkpoint also contains the current weights, from
    which training resumes. The decay after n steps is (1 + n) / (10 + n), at most `decay`: otherwise the random
    initial weights would dominate at first.
    """

    def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not current.is_floating_point():  # a batch counter of batch normalisation
            return current
        remembered = min(decay, (1 + int(steps)) / (10 + int(steps)))
        # In this form, unchanged weights remain bitwise equal.
        return averaged + (current - averaged) * (1 - remembered)

    return WeightAveraging(avg_fn=average)


def _each(kind: type[ModelCheckpoint], path: Path, monitor: str | None = None, keep: int = 1) -> ModelCheckpoint:
    # Without a monitor: every epoch. ModelCheckpoint's own save_last skips epochs that are not the best so far.
    return kind(
        path.parent,
        filename=path.stem,
        monitor=monitor,
        save_top_k=keep,
        save_on_train_epoch_end=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,  # a second run in the same folder replaces the first
    )
