"""Learning rate finder: trains a few steps with rising rates and finds where the loss falls fastest."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from msgspec.structs import replace
from torch import Tensor

from convoy.models.data.batches import Batch
from convoy.models.errors import BadTraining
from convoy.models.training.distributed import environment
from convoy.models.training.module import Training
from convoy.models.training.progress import Bar, Pace, is_terminal
from convoy.models.training.run import Machine, Settings
from convoy.models.training.train import fit, prepared_run, trainer_options

LOWEST, HIGHEST = 1e-6, 10.0
STEPS = 120
DECAY = 0.9  # decay of the smoothed loss per step
DIVERGED = 3.0  # multiple of the lowest loss at which the test stops
MIN_STEPS = 10  # minimum number of steps for a slope


class Trial(NamedTuple):
    """One step: its learning rate, and the loss of its batch before the step."""

    rate: float
    loss: float


class Suggestion(NamedTuple):
    suggested: float
    picture: Path
    table: Path


def find_rate(settings: Settings, folder: Path, machine: Machine) -> Suggestion:
    """Runs the range test (Smith, arXiv 1506.01186, section 3.3): trains from the start while the rate rises with each
    step, here by a constant factor because it spans seven powers of ten. The trained weights are discarded.

    Writes `lr.png` and `lr.csv` into the folder. Raises BadTraining as `train` does, and if the loss never falls.
    """
    # The configured rate does not matter: the test sets its own.
    settings = replace(settings, recipe=replace(settings.recipe, learning_rate=1.0))
    data, description, network = prepared_run(settings, strict=machine.strict)
    training = RangeTest(description, network, data, settings)
    pace = Pace()
    trainer = pl.Trainer(
        max_steps=STEPS,
        **trainer_options(settings.recipe, machine),
        callbacks=[pace, Bar(pace)] if is_terminal() else [],
        plugins=[*environment()],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    fit(trainer, training, data, settings, machine)
    best = suggestion(training.trials)
    result = Suggestion(best, folder / "lr.png", folder / "lr.csv")
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        _write(result.table, training.trials)
        _draw(result.picture, training.trials, best, f"{settings.architecture} on {data.name}")
    return result


def suggestion(trials: Sequence[Trial]) -> float:
    """Returns the rate at which the smoothed loss falls fastest, over the logarithm of the rate. Raises BadTraining if
    it never falls."""
    losses = smoothed([trial.loss for trial in trials])
    if len(losses) >= MIN_STEPS:
        logarithms = torch.tensor([math.log(trial.rate) for trial in trials], dtype=torch.float64)
        (slopes,) = torch.gradient(torch.tensor(losses, dtype=torch.float64), spacing=(logarithms,))
        steepest = int(slopes.argmin())
        if float(slopes[steepest]) < 0:
            return trials[steepest].rate
    raise BadTraining(f"no learning rate from {LOWEST:g} to {HIGHEST:g} makes the loss smaller")


def smoothed(losses: Sequence[float]) -> list[float]:
    """Returns an exponential moving average, corrected for its bias to 0 at the start (Kingma and Ba, arXiv 1412.6980,
    section 3)."""
    average, averages = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = DECAY * average + (1 - DECAY) * loss
        averages.append(average / (1 - DECAY**count))
    return averages


def rate_of(step: int) -> float:
    """Returns the rate of step 0 .. STEPS - 1."""
    return float(LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)))


class RangeTest(Training):
    """Trains with a higher rate in each step, until the loss is well above its lowest value."""

    trials: list[Trial]

    def on_train_start(self) -> None:
        super().on_train_start()
        self.trials = []

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Leaves the momentum unchanged, also for one cycle."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss = super().training_step(batch, index)
        self.trials.append(Trial(rate_of(self.global_step), float(loss.detach())))
        losses = smoothed([trial.loss for trial in self.trials])
        if not losses[-1] < DIVERGED * min(losses):  # also if it is NaN
            self.trials.pop()
            self.trainer.should_stop = True
        return loss

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(
            configured["optimizer"], lambda step: rate_of(min(step, STEPS - 1))
        )
        return {**configured, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _write(path: Path, trials: Sequence[Trial]) -> None:
    losses = smoothed([trial.loss for trial in trials])
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["learning_rate", "loss", "smoothed_loss"])
        rows.writerows((trial.rate, trial.loss, smooth) for trial, smooth in zip(trials, losses, strict=True))


def _draw(path: Path, trials: Sequence[Trial], best: float, title: str) -> None:
    rates, losses = [trial.rate for trial in trials], [trial.loss for trial in trials]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses, color="0.75", label="loss of the batch")
    axes.semilogx(rates, smoothed(losses), color="C0", label="smoothed")
    axes.axvline(best, color="C3", linestyle="--", label=f"suggested: {best:.2g}")
    axes.set(xlabel="learning rate", ylabel="loss", title=title)
    axes.legend()
    figure.savefig(path, dpi=110)
