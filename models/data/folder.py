"""One's own data: a folder of `images/` and `masks/`, or of a subfolder per class, as `listing` tells."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.data import picture
from models.data.dataset import DataSet, SplitName, Target
from models.data.listing import Entry, listing
from models.errors import BadData
from models.metrics import IGNORE
from service.metadata import Task

Colour = Literal["RGB", "L"]
Palette = list[tuple[int, int, int]]

MEASURED_IMAGES = 2000  # of the training split, evenly spread, for mean and deviation
LEAST_DEVIATION = 1 / 255  # of pixels that are all alike


def load(root: Path) -> DataSet:
    """The data of a folder, its name the folder's path. Grey where every training picture is.

    Opens every file, but reads the pixels of training pictures only: for mean and deviation, and of their masks where
    no `labels.txt` says how many classes there are. Raises BadData, naming the file.
    """
    found = listing(root)
    train = found.entries["train"]
    colour: Colour = "L" if all(picture.header(entry.image).grey for entry in train) else "RGB"
    labels = found.labels or _numbered(root, train)
    splits = {name: FolderSplit(entries, colour, len(labels)) for name, entries in found.entries.items()}
    palette = _palette(splits.values(), len(labels)) if found.task == "segmentation" else None
    mean, std = measured(splits["train"])
    return DataSet(str(root), found.task, colour, labels, palette, mean, std, splits.__getitem__)


def split(root: Path, name: SplitName, task: Task, colour: Colour, labels: list[str]) -> "FolderSplit":
    """One split, for a network that is trained: in its colour, with its labels. Raises BadData where they are others,
    or other ones than the folder's."""
    found = listing(root)
    if found.task != task:
        raise BadData(f"{root} is data for {found.task}, want some for {task}")
    if found.labels is not None and found.labels != labels:
        raise BadData(f"{root} has the classes {_brief(found.labels)}, the network was trained with {_brief(labels)}")
    return FolderSplit(found.entries[name], colour, len(labels))


class FolderSplit:
    """Pictures with their class, or the class of each pixel, read from their files each time they are asked for."""

    def __init__(self, entries: Sequence[Entry], colour: Colour, classes: int) -> None:
        self.entries, self.colour, self.classes = entries, colour, classes
        self.sizes = [picture.header(entry.image)[:2] for entry in entries]
        for entry, size in zip(entries, self.sizes, strict=True):
            if isinstance(entry.target, Path):
                _check_size(entry.image, size, entry.target, picture.mask_header(entry.target)[:2])

    def __len__(self) -> int:
        return len(self.entries)

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Target]:
        image, target = self.entries[index]
        pixels = picture.read(image, self.colour)
        if isinstance(target, int):
            return pixels, target
        mask = picture.read_mask(target)
        highest = _highest(mask)
        if highest >= self.classes:
            raise BadData(f"mask {target} has the class {highest}, want 0 to {self.classes - 1}, or {IGNORE} for none")
        return pixels, mask


def measured(pictures: FolderSplit) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, of pixels in 0..1, over the pixels of the split; of at most
    MEASURED_IMAGES pictures, evenly spread."""
    every = max(1, -(-len(pictures) // MEASURED_IMAGES))
    values = np.arange(256) / 255
    counts = np.zeros((3 if pictures.colour == "RGB" else 1, 256), np.int64)
    for entry in pictures.entries[::every]:
        image = picture.read(entry.image, pictures.colour)
        counts += [np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(image, -1, 0)]
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    deviation = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return mean.tolist(), np.maximum(deviation, LEAST_DEVIATION).tolist()


def _numbered(root: Path, entries: Iterable[Entry]) -> list[str]:
    highest = max(_highest(picture.read_mask(entry.target)) for entry in entries if isinstance(entry.target, Path))
    if highest < 1:
        raise BadData(
            f"the training masks of {root} have no class but 0, want at least two: {IGNORE} is a pixel of no class"
        )
    return [f"class {number}" for number in range(highest + 1)]


def _palette(splits: Iterable[FolderSplit], classes: int) -> Palette | None:
    masks = (entry.target for pictures in splits for entry in pictures.entries if isinstance(entry.target, Path))
    for mask in masks:
        # Some programs leave out the colours of classes that are not in the picture.
        palette = picture.mask_header(mask).palette
        if len(palette) >= classes:
            return palette[:classes]
    return None


def _check_size(image: Path, size: tuple[int, int], mask: Path, mask_size: tuple[int, int]) -> None:
    if size != mask_size:
        (height, width), (high, wide) = size, mask_size
        raise BadData(f"mask {mask} is {high}x{wide} (height x width), want {height}x{width} as {image} is seen")


def _highest(mask: NDArray[np.uint8]) -> int:
    there = np.bincount(mask.ravel(), minlength=256)[:IGNORE].nonzero()[0]
    return int(there[-1]) if len(there) else 0


def _brief(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + (f", ... ({len(labels)})" if len(labels) > 5 else "")
