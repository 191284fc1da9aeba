"""Feature maps of layers for one image, one picture per channel."""

import math

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from convoy.models.analysis.operators import by
from convoy.models.visualize import hooks
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.network import Pixels, Subject, as_pictures
from convoy.models.visualize.sheet import Section, Tile

COLOURS = "viridis"  # dark blue is a channel's minimum, yellow its maximum; also uniform for colour-blind viewers


def features(subject: Subject, image: Pixels, chosen: list[tuple[Layer, list[int]]]) -> list[Section]:
    """Returns a section for each layer, with the selected channels.

    image   as returned by `Subject.fit`

    Each map is scaled from its own minimum to its own maximum, both in the caption: on a common scale, strong maps
    would hide the others.
    """
    names = [layer.name for layer, _ in chosen]
    with torch.no_grad():
        answers = hooks.answers(subject, names, as_pictures(image))
    return [_section(layer, channels, answers[layer.name][0]) for layer, channels in chosen]


def _section(layer: Layer, channels: list[int], answer: Tensor) -> Section:
    heading = f"{layer.name}  ({layer.kind}, {by(layer.shape)})"
    if answer.dim() == 3:
        return Section(heading, [_tile(f"{channel}: ", answer[channel]) for channel in channels])
    values = answer[channels]
    columns = math.ceil(math.sqrt(len(values)))
    # Without positions: one picture with a square per value; unused squares in the last row have the minimum.
    square = values.new_full((math.ceil(len(values) / columns) * columns,), float(values.min()))
    square[: len(values)] = values
    return Section(heading, [_tile("", square.view(-1, columns))])


def _tile(caption: str, values: Tensor) -> Tile:
    low, high = float(values.min()), float(values.max())
    shares = (values.numpy() - low) / ((high - low) or 1.0)
    picture = np.asarray(mpl.colormaps[COLOURS](shares, bytes=True))[..., :3]
    return Tile(picture, f"{caption}{_short(low)} to {_short(high)}" if high > low else f"{caption}all {_short(low)}")


def _short(number: float) -> str:
    return f"{number:.2g}".replace("-", "−")
