"""`convoy train`'s own loop beside a bare loop over the same network, batches, augmentation, loss and optimizer.

Both run in turns in one process, so that what else runs on the machine slows both alike. Every other turn has a busy
process beside it.
"""

import contextlib
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from convoy.models.data.batches import Batch
from convoy.models.data.dataset import DataSet, Split, SplitName, Subset
from convoy.models.training.module import Training
from convoy.models.training.run import ONE, RunFolder, Settings, default_settings
from convoy.models.training.train import fit, prepared_run, trainer_of, training_batches

BEGIN = "<!-- Written by `make perf`: training. -->"  # in the page, around the table
END = "<!-- Written by hand again: training. -->"

THREADS = (1, 2)  # of the bare loop
BUSY = "while True: pass"
SIDE = 128  # of the pictures that are drawn for networks of photographs


class Work(NamedTuple):
    """A network in training: `steps` are those of one turn, `share` the wanted share of the bare loop's speed."""

    architecture: str
    data: str  # built-in, or `drawn`
    steps: int
    share: float


WORK = (
    Work("lenet5", "digits", 39, 0.7),
    Work("convpool", "digits", 39, 0.7),
    Work("pattern", "digits", 8, 0.7),
    Work("resnet18", "drawn", 2, 0.9),
    Work("unet", "digit-scenes", 8, 0.9),
)


class Turn(NamedTuple):
    """Seconds of wall and of CPU per step."""

    wall: float
    cpu: float


@dataclass
class Found:
    """Turns of one network: of its own loop, and of the bare loop by its number of threads. They alternate."""

    work: Work
    batch_size: int
    busy: bool
    own: list[Turn]
    bare: dict[int, list[Turn]]
    threads: int = 0  # of its own loop

    def share(self) -> float:
        """Returns the speed as a share of the bare loop's with the best number of threads."""
        return min(_median(turns, "wall") for turns in self.bare.values()) / _median(self.own, "wall")

    def cpu_share(self) -> float:
        """Returns the CPU time of the cheapest bare loop, as a share of its own loop's."""
        return min(_median(turns, "cpu") for turns in self.bare.values()) / _median(self.own, "cpu")

    def row(self) -> list[str]:
        speeds = [f"{self.batch_size / _median(turns, 'wall'):,.0f}" for turns in (self.own, *self.bare.values())]
        share = self.share()
        return [
            f"{self.work.architecture}, batches of {self.batch_size}",
            "a busy process" if self.busy else "nothing",
            *speeds,
            f"{share:.2f}",
            f"{self.cpu_share():.2f}",
            f"{self.work.share:g}, {'reached' if share >= self.work.share else '**not reached**'}",
        ]


HEADS = ["network", "beside it", "images/s", "bare, 1 thread", "bare, 2 threads", "share", "CPU share", "wanted share"]


def measured(work: Work, folder: Path, rounds: int, busy: Sequence[bool] = (False, True)) -> list[Found]:
    """Trains in `rounds` turns for each entry of `busy`, and as many of the bare loop in between."""
    settings = _settings(work, folder, 1 + rounds * len(busy))
    whole, description, network = prepared_run(settings)
    data = _shortened(whole, work.steps * settings.recipe.batch_size)
    training = Training(description, network, data, settings)
    trainer = trainer_of(settings.recipe, data.task, RunFolder(folder / "run"), ONE)
    turns = Turns(training, list(training_batches(description, data, settings)), busy)
    trainer.callbacks.insert(0, turns)  # type: ignore[attr-defined]
    fit(trainer, training, data, settings, ONE)
    turns.stop()
    return [
        Found(work, settings.recipe.batch_size, beside, turns.own[beside], turns.bare[beside], training.threads or 0)
        for beside in busy
    ]


class Turns(Callback):
    """Runs turns of the bare loop before each epoch, and measures the steps of the epoch. The first epoch does not
    count."""

    def __init__(self, training: Training, batches: list[Batch], busy: Sequence[bool]) -> None:
        self.bare_step, self.batches, self.busy = bare(training), batches, busy
        self.own: dict[bool, list[Turn]] = {beside: [] for beside in busy}
        self.bare: dict[bool, dict[int, list[Turn]]] = {beside: {count: [] for count in THREADS} for beside in busy}
        self.start = self.end = Turn(0, 0)
        self.steps = 0
        self.neighbour: subprocess.Popen[bytes] | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        number = trainer.current_epoch - 1
        beside = self.busy[number % len(self.busy)]
        self.stop()
        if beside and number >= 0:
            self.neighbour = subprocess.Popen([sys.executable, "-c", BUSY])
        for count in THREADS if number % 2 == 0 else THREADS[::-1]:
            found = self._bare(count)
            if number >= 0:
                self.bare[beside][count].append(found)
        self.steps, self.start = 0, now()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.steps, self.end = self.steps + 1, now()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        number = trainer.current_epoch - 1
        if number >= 0:
            self.own[self.busy[number % len(self.busy)]].append(_per_step(self.start, self.end, self.steps))

    def stop(self) -> None:
        """Ends the busy process."""
        if self.neighbour is not None:
            self.neighbour.kill()
            self.neighbour.wait()
            self.neighbour = None

    def _bare(self, threads: int) -> Turn:
        with _threads(threads):
            self.bare_step(self.batches[0])
            start = now()
            for batch in self.batches:
                self.bare_step(batch)
            return _per_step(start, now(), len(self.batches))


def bare(training: Training) -> Callable[[Batch], None]:
    """Returns a step of the bare loop: of a copy of the network, without Lightning, checkpoints, logs and schedule."""
    network = copy.deepcopy(training.network).train()
    recipe = training.recipe
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), recipe.learning_rate, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate)

    def step(batch: Batch) -> None:
        images = training.normalise(batch.images)
        if training.augment is not None:
            images = training.augment(images)
        loss = training.training_loss(network(images), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def table(found: Sequence[Found]) -> str:
    """Returns the results as Markdown."""
    lines = [HEADS, ["---"] * len(HEADS), *(each.row() for each in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(page: str, section: str) -> str:
    """Returns the page with another section between its marks. Raises ValueError for a page without marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def now() -> Turn:
    """Returns the clocks, in seconds."""
    return Turn(time.perf_counter(), time.process_time())


def _settings(work: Work, folder: Path, epochs: int) -> Settings:
    if work.data == "drawn":
        settings = default_settings(work.architecture, str(_draw(folder / "pictures", 2 * 32).resolve()))
        settings = replace(settings, size=(SIDE, SIDE))
    else:
        settings = default_settings(work.architecture, work.data)
    return replace(settings, recipe=replace(settings.recipe, epochs=epochs, patience=epochs))


def _draw(root: Path, count: int) -> Path:
    """Draws `count` training pictures of two classes, and some others."""
    random = np.random.default_rng(1)
    for split, pictures in {"train": count, "validation": 8, "test": 8}.items():
        for number in range(pictures):
            folder = root / split / ("light", "dark")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels: NDArray[np.uint8] = random.integers(0, 128, (SIDE, SIDE + 32, 3), np.uint8)
            Image.fromarray(pixels + np.uint8(128 * (number % 2))).save(folder / f"{number:03}.png")
    return root


def _shortened(data: DataSet, images: int) -> DataSet:
    def split(name: SplitName) -> Split:
        whole = data.split(name)
        return Subset(whole, range(min(len(whole), images if name == "train" else 32)))

    return DataSet(**{**vars(data), "split": split})


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _per_step(start: Turn, end: Turn, steps: int) -> Turn:
    return Turn(*((after - before) / steps for before, after in zip(start, end, strict=True)))


def _median(turns: Sequence[Turn], clock: str) -> float:
    return statistics.median(getattr(turn, clock) for turn in turns)
