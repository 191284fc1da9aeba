"""Which checkpoints a run leaves, and when: the best, the last, and one within an epoch for a run that is killed."""

import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from convoy.models import whole_file
from convoy.models.training.run import RunFolder

MONITOR = "validation_loss"
MOST_OF_TIME = 0.02  # that writing checkpoints within an epoch may take
STEPS_BETWEEN = 10  # looks at the clock, on which several processes have to agree each time


def checkpoints(folder: RunFolder, keep: int, every_seconds: float) -> list[Checkpoint]:
    """The callbacks that write them: the best one, the `keep` best, that of each epoch, and those in between."""
    kept = [_each(Kept, folder.kept / "epoch-{epoch:04d}.ckpt", MONITOR, keep)] if keep > 1 else []
    best, last = _each(ModelCheckpoint, folder.best, MONITOR), _each(ModelCheckpoint, folder.last)
    # The last one behind the others, so that it knows which those are.
    return [best, *kept, last, WithinEpoch(folder.last, every_seconds)]


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's own way copies from the folder of temporary files, mostly on another file system: half a file lies
    there meanwhile, in the place of the last good one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        whole_file.write(path, content.getbuffer())


class Kept(ModelCheckpoint):
    """Several of the best; a class of its own, for Lightning tells callbacks apart by class and monitor."""

    def format_checkpoint_name(self, metrics: dict[str, Any], *args: Any, **named: Any) -> str:
        # Epochs counted from 1, as they are shown.
        return super().format_checkpoint_name({**metrics, "epoch": metrics["epoch"] + 1}, *args, **named)


class WithinEpoch(Checkpoint):
    """Writes `path` every so many seconds of an epoch, and seldom enough to take no more than a fiftieth of the time.

    Not in the middle of steps that are added up, for their gradients are in no checkpoint, nor behind the last step of
    an epoch, whose validation Lightning would pass over.
    """

    def __init__(self, path: Path, every_seconds: float) -> None:
        self.path, self.every_seconds = path, every_seconds
        self.written = time.monotonic()
        self.took = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        whole = done % trainer.accumulate_grad_batches == 0 and done < trainer.num_training_batches
        looks = self.every_seconds == 0 or trainer.global_step % STEPS_BETWEEN == 0
        if whole and looks and self._due(trainer):
            start = time.monotonic()
            trainer.save_checkpoint(self.path)
            self.written = time.monotonic()
            self.took = self.written - start

    def _due(self, trainer: pl.Trainer) -> bool:
        pause = 0.0 if self.every_seconds == 0 else max(self.every_seconds, self.took / MOST_OF_TIME)
        # One process decides: a checkpoint is written together.
        return bool(trainer.strategy.broadcast(time.monotonic() - self.written >= pause))


def _each(kind: type[ModelCheckpoint], path: Path, monitor: str | None = None, keep: int = 1) -> ModelCheckpoint:
    # Without a monitor: every epoch. ModelCheckpoint's own save_last skips the epochs that are not the best so far.
    return kind(
        path.parent,
        filename=path.stem,
        monitor=monitor,
        save_top_k=keep,
        save_on_train_epoch_end=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,  # a second run in the same folder replaces the first
    )
