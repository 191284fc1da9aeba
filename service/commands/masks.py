"""Masks as pictures: class colours, the palette PNG, the overlay over the image."""

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from convoy.service.metadata import default_palette

Pixels = NDArray[np.uint8]
Palette = NDArray[np.uint8]

_OPACITY = 0.5  # of the mask's colours over the image


def palette_of(colours: Sequence[tuple[int, int, int]], classes: int) -> Palette:
    """(classes, 3) uint8 RGB: the model's own colours; without them, the server's default palette."""
    return np.array(colours or default_palette(classes), np.uint8)


def overlay(pixels: Pixels, mask: Pixels, palette: Palette) -> Pixels:
    """The image with the mask's colours blended over it.

    pixels  (H, W, 3) RGB
    mask    (H, W) class indices
    """
    blended: Pixels = np.rint((1 - _OPACITY) * pixels + _OPACITY * palette[mask]).astype(np.uint8)
    return blended


def mask_png(mask: Pixels, palette: Palette) -> bytes:
    """A palette PNG file whose indices are the classes. mask (H, W)."""
    image = PIL.Image.fromarray(mask, "L")
    image.putpalette(palette.tobytes())
    return png(image)


def png(image: PIL.Image.Image) -> bytes:
    """A PNG file of this image."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=False)
    return file.getvalue()
