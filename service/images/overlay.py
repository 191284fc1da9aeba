"""A class map in colour over its picture."""

import numpy as np
from numpy.typing import NDArray

_ROWS = 64  # blended at a time, to bound temporary memory


def overlay(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of the image and the mask's colours, halves to the even neighbour.

    pixels   (H, W, 3) RGB
    mask     (H, W) class indices
    palette  (classes, 3) RGB
    """
    colours = palette.astype(np.uint16)
    blended = np.empty_like(pixels)
    for top in range(0, len(pixels), _ROWS):
        rows = slice(top, top + _ROWS)
        sums = colours[mask[rows]]
        sums += pixels[rows]
        blended[rows] = (sums + (sums >> 1 & 1)) >> 1
    return blended
