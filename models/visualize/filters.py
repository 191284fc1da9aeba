"""The weights of a convolution as small pictures."""

import numpy as np
from torch import Tensor

from convoy.models.visualize.network import Pixels
from convoy.models.visualize.sheet import Section, Tile

KERNEL_SIDE = 40  # pixels on the sheet, of one kernel of many


def in_colour(weight: Tensor, chosen: list[int], reverse: bool) -> Section:
    """Filters of the layer that sees the image, one picture each: in its colours, or grey.

    weight   (filters, 3 or 1, height, width)
    reverse  the network takes blue first

    Middle grey is 0, and each filter's largest weight either way is full: filters differ in strength, and here the
    form is what counts; the strength, their Euclidean norm, is in the caption.
    """
    tiles = []
    for number in chosen:
        values = weight[number].flip(0) if reverse else weight[number]
        tiles.append(Tile(_grey_is_zero(values.permute(1, 2, 0)), f"{number}: {float(values.norm()):.2f}"))
    return Section("filter: its norm; middle grey is 0", tiles)


def by_input(weight: Tensor, chosen: list[int], inputs: list[int]) -> list[Section]:
    """A row for each filter, with the kernel it lays over each of the maps before it, the planes of a solid one side by
    side. One scale for all of a filter.

    weight   (filters, maps, *sides), one to three sides
    """
    return [_row(number, _flat(weight[number]), inputs) for number in chosen]


def _flat(kernels: Tensor) -> Tensor:
    """(maps, *sides) -> (maps, height, width)."""
    if kernels.dim() == 2:
        return kernels[:, None].expand(-1, 2, -1)  # two high: a line is hard to see
    return kernels if kernels.dim() == 3 else kernels.transpose(1, 2).flatten(2)


def _row(number: int, values: Tensor, inputs: list[int]) -> Section:
    kernels = _grey_is_zero(values[inputs])[..., None]
    tiles = [Tile(kernel, str(channel)) for channel, kernel in zip(inputs, kernels, strict=True)]
    side = KERNEL_SIDE * max(1, values.shape[2] // values.shape[1])  # of one plane, where there are several
    return Section(f"filter {number}: its norm is {float(values.norm()):.2f}", tiles, len(inputs), side)


def _grey_is_zero(values: Tensor) -> Pixels:
    full = float(values.abs().max()) or 1.0
    picture: Pixels = (127.5 + 127.5 * values.detach().numpy() / full).round().astype(np.uint8)
    return picture
