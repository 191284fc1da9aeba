"""Selection of sample images that represent a data set."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convoy.models.data.contact_sheet import COLUMNS, Tile, sheet
from convoy.models.data.dataset import DataSet, Split
from convoy.models.errors import BadTraining

ROWS = 6


def save_samples(data: DataSet, file: Path) -> int:
    """Writes a PNG file of training images, with their class names or with their masks drawn over them. Returns their
    number. Classes have equal numbers of images, as far as space permits. Raises BadTraining if there are no images."""
    if data.colour is None:
        raise BadTraining(f"{data.name} has no images to show")
    split = data.split("train")
    if data.task == "classification":
        chosen = _of_every_class(_classes(split), ROWS * COLUMNS)
    else:
        chosen = _spread(range(len(split)), ROWS * COLUMNS // 2)
    tiles = [_tile(data, split, index) for index in chosen]
    sheet(tiles, data.palette, data.labels).save(file, "PNG")
    return len(tiles)


def _tile(data: DataSet, split: Split, index: int) -> Tile:
    image, target = split[index]
    if isinstance(target, np.ndarray):
        there = [name for number, name in enumerate(data.labels) if (target == number).any()]
        return Tile(image, ", ".join(there), target)
    return Tile(image, data.labels[target])


def _classes(split: Split) -> dict[int, list[int]]:
    places: dict[int, list[int]] = defaultdict(list)
    for index in range(len(split)):
        target = split[index][1]
        assert isinstance(target, int)
        places[target].append(index)
    return places


def _of_every_class(places: dict[int, list[int]], room: int) -> list[int]:
    shown = _spread(sorted(places), room)
    return [index for name in shown for index in _spread(places[name], max(1, room // len(shown)))]


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Returns at most `count` of the values, evenly spread."""
    if len(values) <= count:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, count).round().astype(int)]
