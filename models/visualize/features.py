"""Pictures of a layer: a convolution's filters, and its feature maps for one image."""

import math

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from convoy.models.analysis.operators import by
from convoy.models.visualize import hooks
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.sheet import Section, Tile
from convoy.models.visualize.subjects import Pixels, Subject, as_pictures

KERNEL_SIDE = 40  # pixels on the sheet per kernel, for a filter with many

COLOURS = "viridis"  # dark blue is a channel's minimum, yellow its maximum; also uniform for colour-blind viewers


def in_colour(weight: Tensor, chosen: list[int], reverse: bool) -> Section:
    """Returns the filters of a layer that reads the image, one picture each, in its colours or grey.

    weight   (filters, 3 or 1, height, width)
    reverse  the network's channel order is BGR

    Middle grey is 0, and each filter is scaled to its largest absolute weight: filters differ in strength, and the
    picture shows the form. The strength, their Euclidean norm, is in the caption.
    """
    tiles = []
    for number in chosen:
        values = weight[number].flip(0) if reverse else weight[number]
        tiles.append(Tile(_grey_is_zero(values.permute(1, 2, 0)), f"{number}: {float(values.norm()):.2f}"))
    return Section("filter: its norm; middle grey is 0", tiles)


def by_input(weight: Tensor, chosen: list[int], inputs: list[int]) -> list[Section]:
    """Returns a row for each filter, with its kernel for each input map; the planes of a 3D kernel are side by side.
    All kernels of a filter share one scale.

    weight   (filters, maps, *sides), one to three sides
    """
    return [_row(number, _flat(weight[number]), inputs) for number in chosen]


def features(subject: Subject, image: Pixels, chosen: list[tuple[Layer, list[int]]]) -> list[Section]:
    """Returns a section for each layer, with the selected channels.

    image   as returned by `Subject.fit`

    Each map is scaled from its own minimum to its own maximum, both in the caption: on a common scale, strong maps
    would hide the others.
    """
    names = [layer.name for layer, _ in chosen]
    with torch.no_grad():
        outputs = hooks.outputs_of(subject, names, as_pictures(image))
    return [_section(layer, channels, outputs[layer.name][0]) for layer, channels in chosen]


def _flat(kernels: Tensor) -> Tensor:
    """(maps, *sides) -> (maps, height, width)."""
    if kernels.dim() == 2:
        return kernels[:, None].expand(-1, 2, -1)  # two rows: a single one is hard to see
    return kernels if kernels.dim() == 3 else kernels.transpose(1, 2).flatten(2)


def _row(number: int, values: Tensor, inputs: list[int]) -> Section:
    kernels = _grey_is_zero(values[inputs])[..., None]
    tiles = [Tile(kernel, str(channel)) for channel, kernel in zip(inputs, kernels, strict=True)]
    side = KERNEL_SIDE * max(1, values.shape[2] // values.shape[1])  # of one plane, if there are several
    return Section(f"filter {number}: its norm is {float(values.norm()):.2f}", tiles, len(inputs), side)


def _grey_is_zero(values: Tensor) -> Pixels:
    full = float(values.abs().max()) or 1.0
    picture: Pixels = (127.5 + 127.5 * values.detach().numpy() / full).round().astype(np.uint8)
    return picture


def _section(layer: Layer, channels: list[int], output: Tensor) -> Section:
    heading = f"{layer.name}  ({layer.kind}, {by(layer.shape)})"
    if output.dim() == 3:
        return Section(heading, [_tile(f"{channel}: ", output[channel]) for channel in channels])
    values = output[channels]
    columns = math.ceil(math.sqrt(len(values)))
    # Without positions: one picture with a square per value; unused squares in the last row have the minimum.
    square = values.new_full((math.ceil(len(values) / columns) * columns,), float(values.min()))
    square[: len(values)] = values
    return Section(heading, [_tile("", square.view(-1, columns))])


def _tile(caption: str, values: Tensor) -> Tile:
    low, high = float(values.min()), float(values.max())
    shares = (values.numpy() - low) / ((high - low) or 1.0)
    picture = np.asarray(mpl.colormaps[COLOURS](shares, bytes=True))[..., :3]
    return Tile(
        picture, f"{caption}{_rounded(low)} to {_rounded(high)}" if high > low else f"{caption}all {_rounded(low)}"
    )


def _rounded(number: float) -> str:
    return f"{number:.2g}".replace("-", "−")
