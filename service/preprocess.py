"""Fitting an image to a network's input as its metadata describe, and mapping a mask back to the image."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convoy.service.buckets import NONE, Buckets, Size, rounded
from convoy.service.metadata import InputSpec, Interpolation

RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Placement(NamedTuple):
    """The rectangle of the input, in its pixels, that the whole source image was resized to.

    It lies inside the input (`stretch`, `letterbox`, `pad`) or extends beyond it evenly on both sides (`crop`: `top` or
    `left` is then negative).
    """

    source_height: int
    source_width: int
    top: int
    left: int
    height: int
    width: int


def input_size(spec: InputSpec, height: int, width: int, *, buckets: Buckets = NONE) -> Size:
    """The (height, width) of the input for an image of `height` x `width` pixels.

    For a network that accepts any size, this is the image's size rounded up to an accepted one, then to its bucket.
    """
    if spec.height is not None and spec.width is not None:
        return spec.height, spec.width
    return buckets.fitting(rounded(spec, height, width))


def reduction(spec: InputSpec, height: int, width: int) -> int:
    """The factor by which both sides of an image may be reduced before it is resized: 4, 2 or 1.

    The reduced image still has at least as many pixels in each direction as it is resized to.
    """
    if spec.interpolation == "nearest":
        return 1  # nearest takes one pixel unchanged, never a mean
    placed = _place(spec, height, width, *input_size(spec, height, width))
    least = min(height // placed.height, width // placed.width)
    return 4 if least >= 4 else 2 if least >= 2 else 1


def preprocess(
    image: NDArray[np.uint8], spec: InputSpec, out: NDArray[np.uint8], sent: tuple[int, int] | None = None
) -> Placement:
    """Fit one image into its slot as `spec.fit` describes, and return its placement.

    image    (H, W, C), C = spec.channels, 0..255
    out      (h, w, C), (h, w) = input_size(spec, H, W), every byte written in place; the graph normalises
    sent     (H, W) of the original if the image has been reduced, by `reduction` at most; the pixels of the last row
             and column may then extend beyond it
    returns  where the image lies in `out`; `restore` uses it to map a mask back to (H, W)

    Resampling is Pillow's: its filters grow with the reduction, which avoids aliasing, and pixel centres stay in place.
    An image that needs no resizing is copied once.
    """
    height, width = sent or image.shape[:2]
    placed = _place(spec, height, width, out.shape[0], out.shape[1])
    top, bottom = max(placed.top, 0), min(placed.top + placed.height, out.shape[0])
    left, right = max(placed.left, 0), min(placed.left + placed.width, out.shape[1])
    out[:top] = spec.fill
    out[bottom:] = spec.fill
    out[top:bottom, :left] = spec.fill
    out[top:bottom, right:] = spec.fill
    window = out[top:bottom, left:right]
    top, bottom, left, right = top - placed.top, bottom - placed.top, left - placed.left, right - placed.left
    if image.shape[:2] == (placed.height, placed.width):
        window[...] = image[top:bottom, left:right]
        return placed
    # The part of the source, in its own pixels, that the window shows. Pillow's filters read beyond this box, so the
    # result equals resizing everything and cropping the window.
    smaller = next(factor for factor in (1, 2, 4) if -(-height // factor) == image.shape[0])
    down, across = height / smaller / placed.height, width / smaller / placed.width
    box = (left * across, top * down, min(right * across, image.shape[1]), min(bottom * down, image.shape[0]))
    source = Image.fromarray(image if spec.channels == 3 else image[:, :, 0])
    resized = source.resize((right - left, bottom - top), RESAMPLING[spec.interpolation], box)
    window[...] = np.asarray(resized).reshape(window.shape)
    return placed


def restore(mask: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """Map an input-sized map, (h, w), back to the source image, (H, W), by nearest neighbour.

    Class indices are never blended. Padding is cut off; what `crop` cut off is filled by repeating the border. The
    result may be a view of `mask`.
    """
    placed = placement
    if (placed.height, placed.width) == (placed.source_height, placed.source_width) and min(
        placed.top, placed.left
    ) >= 0:
        return mask[placed.top : placed.top + placed.height, placed.left : placed.left + placed.width]
    rows = _nearest(placed.source_height, placed.top, placed.height, mask.shape[0])
    columns = _nearest(placed.source_width, placed.left, placed.width, mask.shape[1])
    # Rows are gathered by memcpy, columns byte by byte: gather columns from the fewer rows.
    if len(rows) < mask.shape[0]:
        return mask.take(rows, axis=0).take(columns, axis=1)
    return mask.take(columns, axis=1).take(rows, axis=0)


def _place(spec: InputSpec, height: int, width: int, input_height: int, input_width: int) -> Placement:
    placed_height, placed_width = input_height, input_width
    if spec.fit == "pad":
        return Placement(height, width, 0, 0, height, width)
    if spec.fit != "stretch":
        # In integers: one side determines the scale, the other is rounded to the nearest pixel.
        by_height = (input_height * width <= input_width * height) == (spec.fit == "letterbox")
        if by_height:
            placed_width = max(1, (2 * width * input_height + height) // (2 * height))
        else:
            placed_height = max(1, (2 * height * input_width + width) // (2 * width))
    top, left = (input_height - placed_height) // 2, (input_width - placed_width) // 2
    return Placement(height, width, top, left, placed_height, placed_width)


def _nearest(source: int, offset: int, placed: int, limit: int) -> NDArray[np.intp]:
    # floor of the source pixel's centre in the input's pixels: offset + (i + 1/2) * placed / source, in integers.
    index = offset + (2 * np.arange(source, dtype=np.int64) + 1) * placed // (2 * source)
    return np.clip(index, 0, limit - 1).astype(np.intp, copy=False)
