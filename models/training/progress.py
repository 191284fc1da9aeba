"""Progress display of a run: one line per epoch, an estimate of the time, and on a terminal a bar below."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from convoy.models.data.batches import Batch, Loader
from convoy.models.evaluation.metrics import LEADING
from convoy.models.training.run import IMAGES_PER_SECOND, WAITING
from convoy.service.metadata import Task

REFRESH_SECONDS = 0.2  # drawing the bar takes as long as a step of a small network
WARM_UP_STEPS, ESTIMATE_SECONDS = 3, 5.0  # of the first epoch, before the time of the run is estimated
SLOW_DATA = 0.1  # share of the time spent waiting for data that the bar shows
SHORT_RUN_SECONDS = 20.0  # of which no estimate is printed


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
    """Prints one line per epoch on stderr, which fits into 80 columns, and once an estimate of the time. `bar` is shown
    below."""

    def __init__(self, task: Task, pace: Pace, bar: "Bar | None" = None) -> None:
        self.leading = LEADING[task]
        self.pace, self.bar = pace, bar
        self.first_epoch, self.estimated = 0, False
        self.warm: tuple[float, int] | None = None  # time, and steps of this epoch, after the first few steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first_epoch = trainer.current_epoch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.estimated:
            return
        now = time.monotonic()
        if self.warm is None:
            if batch_idx + 1 >= WARM_UP_STEPS:
                self.warm = now, batch_idx
            return
        since, step = self.warm
        if trainer.current_epoch > self.first_epoch or (batch_idx > step and now - since > ESTIMATE_SECONDS):
            self.estimated = True
            steps = max(1, (trainer.current_epoch - self.first_epoch) * trainer.num_training_batches + batch_idx - step)
            epoch = (now - since) / steps * int(trainer.num_training_batches)
            left = epoch * ((trainer.max_epochs or 0) - self.first_epoch)
            if left >= SHORT_RUN_SECONDS:
                epochs = (trainer.max_epochs or 0) - self.first_epoch
                self._print(trainer, f"about {duration(epoch)} per epoch, {duration(left)} for {epochs} epochs")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        figures = self.pace.figures()
        self._print(
            trainer,
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {scores['train_loss']:.4f}  "
            f"validation {scores['validation_loss']:.4f}  {self.leading} {scores[f'validation_{self.leading}']:.4f}  "
            f"{figures[IMAGES_PER_SECOND]:.0f} images/s",
        )

    def _print(self, trainer: pl.Trainer, line: str) -> None:
        if not trainer.is_global_zero:
            return
        if self.bar is not None and self.bar.progress is not None:
            self.bar.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


class Bar(Callback):
    """A progress bar of one line on stderr: steps of the epoch, images per second, waiting and the time left."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self.start = self.drawn = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self.progress = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        self.task = self.progress.add_task("", text="")
        self.progress.start()
        self.start, self.first_step = time.monotonic(), self._step(trainer, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self.drawn < REFRESH_SECONDS:
            return
        done, epochs = self._step(trainer, batch_idx + 1), trainer.max_epochs or 0
        left = (now - self.start) / max(1, done - self.first_step) * (epochs * trainer.num_training_batches - done)
        figures = self.pace.figures()
        text = f"{figures[IMAGES_PER_SECOND]:.0f} images/s"
        if epochs:
            text += f"  {duration(left)} left"
        if figures[WAITING] >= SLOW_DATA:
            text += f"  waiting {figures[WAITING]:.0%}"
        title = f"epoch {trainer.current_epoch + 1}/{epochs}" if epochs else "steps"
        self._draw(title, batch_idx + 1, int(trainer.num_training_batches), text)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if time.monotonic() - self.drawn >= REFRESH_SECONDS:
            self._draw("validation", batch_idx + 1, int(trainer.num_val_batches[dataloader_idx]), "")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _draw(self, title: str, done: int, total: int, text: str) -> None:
        if self.progress is not None:
            self.progress.update(self.task, description=title, completed=done, total=total, text=text, refresh=True)
            self.drawn = time.monotonic()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _step(self, trainer: pl.Trainer, of_epoch: int) -> int:
        return int(trainer.current_epoch * trainer.num_training_batches) + of_epoch


def is_terminal() -> bool:
    """Returns whether stderr is a terminal on which a line can be drawn again."""
    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


def duration(seconds: float) -> str:
    """Returns a duration as text, in two digits: `8 s`, `12 min`, `3.5 h`."""
    if seconds < 60:
        return f"{max(1, seconds):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
