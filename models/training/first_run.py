"""A suggestion for the first training run on a data set, and an estimate of its time on this machine."""

import math
import time
from typing import NamedTuple

from convoy.models import registry
from convoy.models.data.check import SplitSummary, Summary
from convoy.models.data.dataset import DataSet

SIDE = 64  # pixels, of photographs: a network learns them from scratch in minutes
CROP = 128  # pixels
SMALL_SIDE = 48  # pixels: up to here, grey pictures are for LeNet-5
STEPS = {"classification": 800, "segmentation": 600}  # roughly, whatever the number of pictures
EPOCHS = (10, 60)  # at least and at most
UNBALANCED = 10.0  # ratio of the largest class of pixels to the smallest
STEP_OVERHEAD = 0.01  # of the training loop, beside the network
START_SECONDS = 10.0  # imports before, the report afterwards
TIMED_STEPS = 2
TIMED_PICTURES = 8


class FirstRun(NamedTuple):
    """An architecture and its options of `convoy train`."""

    architecture: str
    options: list[str]
    epochs: int
    size: tuple[int, ...]  # of the images of a batch, (height, width), or the shape of a tensor


def suggested(summary: Summary) -> FirstRun:
    """Returns a network that trains in minutes from scratch."""
    train = summary.splits["train"]
    if summary.read_as is None:
        architecture = "conv1d" if len(train.sizes.median) == 2 else "conv3d"
        return FirstRun(architecture, [], registry.architecture(architecture).recipe.epochs, train.sizes.median)
    if summary.task == "segmentation":
        return _segmentation(summary, train)
    epochs = _epochs("classification", train.count, 32)
    if summary.read_as == "L" and max(train.sizes.median) <= SMALL_SIDE:
        return FirstRun("lenet5", ["--epochs", str(epochs)], epochs, (32, 32))
    changes = ["--random-crop", "0.7", "--colour", "0.2"]
    return FirstRun("pattern", ["--size", f"{SIDE}x{SIDE}", "--epochs", str(epochs), *changes], epochs, (SIDE, SIDE))


def _segmentation(summary: Summary, train: SplitSummary) -> FirstRun:
    epochs = _epochs("segmentation", train.count, 8)
    options = ["--set", "width=8", "--set", "depth=4", "--lr", "0.01", "--schedule", "one-cycle"]
    if summary.balance is None or summary.balance > UNBALANCED:
        options += ["--loss", "cross-entropy+dice"]
    size = train.sizes.median
    if min(train.sizes.smallest) > CROP:
        options, size = [*options, "--crop", str(CROP)], (CROP, CROP)
    return FirstRun("unet", [*options, "--epochs", str(epochs)], epochs, size)


def _epochs(task: str, pictures: int, batch_size: int) -> int:
    least, most = EPOCHS
    return max(least, min(most, round(STEPS[task] / math.ceil(pictures / batch_size))))


def estimated_seconds(run: FirstRun, data: DataSet) -> float:
    """Returns the time of a run on pictures, from a few steps with noise and from reading a few of them."""
    import torch  # noqa: PLC0415  a suggestion needs no torch

    row, split = registry.architecture(run.architecture), data.split("train")
    batch_size = min(row.recipe.batch_size, len(split))
    arguments = dict(option.split("=") for option in run.options if "=" in option)
    sides = tuple(math.ceil(side / 16) * 16 for side in run.size) if row.task == "segmentation" else run.size
    network = registry.build(run.architecture, data.channels, len(data.labels), arguments, sides)
    images = torch.rand(batch_size, data.channels, *sides)
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> float:
        start = time.monotonic()
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
        return time.monotonic() - start

    step()  # the first one also allocates memory
    seconds = min(step() for _ in range(TIMED_STEPS)) + STEP_OVERHEAD
    start, count = time.monotonic(), min(TIMED_PICTURES, len(split))
    for index in range(count):
        _ = split[index]
    reading = (time.monotonic() - start) / count * (len(split) + len(data.split("validation")))
    steps = run.epochs * math.ceil(len(split) / batch_size)
    return START_SECONDS + steps * seconds + reading


def in_words(seconds: float) -> str:
    """Returns a duration as a person would say it."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
