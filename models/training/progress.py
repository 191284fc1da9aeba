"""Progress display of a run: a bar on a terminal, one line per epoch elsewhere."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar

from convoy.models.data.batches import Batch, Loader
from convoy.models.evaluation.metrics import LEADING
from convoy.service.metadata import Task

IMAGES_PER_SECOND, WAITING = "images_per_second", "waiting_for_data"


class Pace(Callback):
    """Measures the speed of an epoch and its share of time spent waiting for data; logged at its end."""

    def __init__(self) -> None:
        self.start = self.seconds = self.waiting = self.waited_before = 0.0
        self.images = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)  # an epoch that is resumed has no start hook

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.images += len(batch.images) * trainer.world_size
        self.seconds = time.monotonic() - self.start
        self.waiting = (self._waited(trainer) - self.waited_before) / max(self.seconds, 1e-9)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, value in self.figures().items():
            pl_module.log(name, value)

    def figures(self) -> dict[str, float]:
        """Returns this epoch's images per second, without validation, and the share of time, 0..1, spent waiting for
        the next batch."""
        return {IMAGES_PER_SECOND: self.images / max(self.seconds, 1e-9), WAITING: self.waiting}

    def _begin(self, trainer: pl.Trainer) -> None:
        self.start, self.images, self.seconds, self.waiting = time.monotonic(), 0, 0.0, 0.0
        self.waited_before = self._waited(trainer)

    def _waited(self, trainer: pl.Trainer) -> float:
        loader = trainer.train_dataloader
        return loader.waited if isinstance(loader, Loader) else 0.0


class EpochLines(Callback):
    """Prints one line per epoch on stderr, where a bar would be noise."""

    def __init__(self, task: Task, pace: Pace) -> None:
        self.shown = ("train_loss", "validation_loss", f"validation_{LEADING[task]}")
        self.pace = pace

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        scores = trainer.callback_metrics
        text = "  ".join(f"{name} {float(scores[name]):.4f}" for name in self.shown)
        figures = self.pace.figures()
        text += f"  {figures[IMAGES_PER_SECOND]:.0f} images/s  waiting {figures[WAITING]:.0%}"
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}", file=sys.stderr, flush=True)


class Bar(RichProgressBar):
    """A progress bar on stderr: losses, the leading score, the learning rate, speed and waiting."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(leave=True, console_kwargs={"stderr": True})
        self.pace = pace

    def _get_train_description(self, current_epoch: int) -> str:
        # Counted from 1, as everywhere else; padded to the width of the validation's description.
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(len(self.validation_description))

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        figures = self.pace.figures()
        return {
            **{name: value for name, value in shown.items() if name != "v_num"},
            "rate": f"{trainer.optimizers[0].param_groups[-1]['lr']:.2g}",
            "images/s": f"{figures[IMAGES_PER_SECOND]:.0f}",
            "waiting": f"{figures[WAITING]:.0%}",
        }
