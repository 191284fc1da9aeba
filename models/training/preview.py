"""A preview of augmented training images, before any training."""

from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convoy.models.checkpoint import Description
from convoy.models.data.augmentation import Mixed
from convoy.models.data.contact_sheet import COLUMNS, Tile, sheet
from convoy.models.errors import BadTraining
from convoy.models.training.module import Training
from convoy.models.training.run import Settings
from convoy.models.training.train import prepared_run, training_batches

ROWS = 4


def preview(settings: Settings, file: Path, strict: bool = False) -> int:
    """Writes a PNG file of the first images of the first epoch, augmented as in that run, with their classes or masks.
    Returns their number. Raises BadTraining if there are no images; `strict` is as in `data_set`."""
    data, description, network = prepared_run(settings, strict=strict)
    if data.colour is None:
        raise BadTraining(f"{data.name} has no images to show")
    training = Training(description, network, data, settings)
    batches = training_batches(description, data, settings)
    count = ROWS * (COLUMNS if data.task == "classification" else COLUMNS // 2)
    of_each = -(-count // min(ROWS, len(batches)))  # from several batches: mixup blends a batch in one ratio
    tiles: list[Tile] = []
    for step, batch in enumerate(islice(batches, count)):
        tiles += _tiles(training.prepared(batch, step), description)[:of_each]
        if len(tiles) >= count:
            break
    sheet(tiles[:count], data.palette, data.labels).save(file, "PNG")
    return len(tiles[:count])


def _tiles(mixed: Mixed, description: Description) -> list[Tile]:
    pixels = _pixels(mixed.images, description)
    if mixed.targets.dim() > 1:
        masks = mixed.targets.numpy().astype(np.uint8)
        return [Tile(image, "", mask) for image, mask in zip(pixels, masks, strict=True)]
    pairs = zip(mixed.targets.tolist(), mixed.partners.tolist(), strict=True)
    return [
        Tile(image, _caption(description.labels, pair, mixed.share)) for image, pair in zip(pixels, pairs, strict=True)
    ]


def _pixels(images: Tensor, description: Description) -> NDArray[np.uint8]:
    """Network input (N, C, H, W) -> (N, H, W, C)."""
    if description.channel_order == "BGR":
        images = images.flip(1)
    values = images.movedim(1, -1).numpy() * description.std + description.mean
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def _caption(labels: list[str], pair: tuple[int, int], share: float) -> str:
    first, second = labels[pair[0]], labels[pair[1]]
    return first if share == 1 else f"{share:.0%} {first}, {1 - share:.0%} {second}"
