"""Data sets in a few large files of equally sized images, kept in memory at one byte per pixel and channel."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convoy.models.data.dataset import DataSet, SplitName
from convoy.models.data.formats.listing import for_validation
from convoy.models.data.reading import MEASURED_IMAGES, histogram, moments
from convoy.models.errors import BadData
from convoy.service.metadata import Task

Colour = Literal["RGB", "L"]


class Records(NamedTuple):
    """`images` (N, H, W, C) uint8 with their `classes` (N,); `names` contains the position of each in its file."""

    images: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    names: list[str]


class Arrays(NamedTuple):
    """Content of the files: `train` is everything that is not held out; names determine which part of it is for
    validation."""

    labels: list[str]
    train: Records
    test: Records


def load(root: Path, arrays: Arrays) -> DataSet:
    """Returns the data set of the files, named by its path. Raises BadData if a split is empty."""
    splits = {name: _split(arrays, name, _colour(arrays)) for name in ("train", "validation", "test")}
    for name, split in splits.items():
        if not len(split):
            raise BadData(f"{root} has no pictures in its {name} split, want at least one in each")
    images = splits["train"].images[:: max(1, len(splits["train"]) // MEASURED_IMAGES)]
    mean, std = moments(histogram(images))
    return DataSet(
        str(root), "classification", _colour(arrays), arrays.labels, None, mean, std, lambda name: splits[name]
    )


def split(root: Path, arrays: Arrays, name: SplitName, task: Task, colour: Colour, labels: list[str]) -> "ArraySplit":
    """Returns one split, in the colour of a trained network. Raises BadData if the classes differ."""
    if (task, labels) != ("classification", arrays.labels):
        raise BadData(f"{root} has other classes or another task than the network")
    return _split(arrays, name, colour)


class ArraySplit:
    """Images with their classes, converted to grey or RGB if the files differ from `colour`."""

    def __init__(self, records: Records, places: NDArray[np.intp], colour: Colour) -> None:
        self.images, self.classes, self.colour = records.images[places], records.classes[places], colour
        self.names: list[str] = [records.names[place] for place in places]

    def __len__(self) -> int:
        return len(self.images)

    def size(self, _: int) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        image, label = self.images[index], int(self.classes[index])
        if image.shape[2] == (3 if self.colour == "RGB" else 1):
            return image, label
        other = Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).convert(self.colour)
        return np.array(other).reshape(*image.shape[:2], -1), label

    def name(self, index: int) -> str:
        """Returns the position of an image in its file."""
        return self.names[index]


def _split(arrays: Arrays, name: SplitName, colour: Colour) -> ArraySplit:
    if name == "test":
        return ArraySplit(arrays.test, np.arange(len(arrays.test.images)), colour)
    aside = np.array(for_validation(arrays.train.names), bool)
    return ArraySplit(arrays.train, np.flatnonzero(aside == (name == "validation")), colour)


def _colour(arrays: Arrays) -> Colour:
    return "RGB" if arrays.train.images.shape[3] == 3 else "L"
