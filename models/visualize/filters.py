"""Pictures of a convolution's filters."""

import numpy as np
from torch import Tensor

from convoy.models.visualize.network import Pixels
from convoy.models.visualize.sheet import Section, Tile

KERNEL_SIDE = 40  # pixels on the sheet per kernel, for a filter with many


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
