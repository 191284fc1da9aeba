"""Learning of shape buckets from the sizes of incoming images. Plain code: sizes in, buckets out.

A bucket covers the sizes that it pads to at most MOST_PADDING times their pixels, which bounds the cost of any image.
It must cover at least two sizes that would not share a batch otherwise. Choosing the few buckets that cover most is a
maximum coverage problem: the greedy choice covers at least 1 - 1/e, 63 %, of what the best choice of the same number
could (Nemhauser, Wolsey, Fisher: An analysis of approximations for maximizing submodular set functions, 1978). It ends
where a further bucket would cover only one uncovered size: that size is not padded.
"""

from collections.abc import Mapping, Sequence
from heapq import nlargest
from itertools import product
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from convoy.service.buckets import Size, ordered

MOST_PADDING = 1.25  # pixels run per pixel that the network needs
WORTH = 1.5  # throughput of the best batch relative to a batch of one: above this, padding pays

_MOST_BUCKETS = 8
_MOST_SIZES = 64  # the sizes with most pixels in total, whose sides are used for buckets
_REMEMBERED = 1024  # sizes
_EVERY = 512  # images between two evaluations
_FADING = 0.75  # weight of earlier images at each evaluation
_BETTER = 0.1  # share of all pixels that new buckets must gain over the present ones, so that buckets do not flap


def pays(seconds: Mapping[int, float]) -> bool:
    """Whether batching gains enough to pad images for it, by the seconds of each batch size."""
    return max(size / time for size, time in seconds.items()) * seconds[1] >= WORTH


class Sizes:
    """How many images of each size a model was sent recently. One writer: the engine's loop."""

    def __init__(self) -> None:
        self._images: dict[Size, float] = {}
        self._unevaluated = 0

    def add(self, size: Size, images: int) -> bool:
        """Record images whose input has `size` and no bucket. Returns whether an evaluation is due."""
        self._images[size] = self._images.get(size, 0) + images
        self._unevaluated += images
        return self._unevaluated >= _EVERY

    def recent(self) -> dict[Size, float]:
        """Images by size, with older ones weighted less."""
        found = dict(nlargest(_REMEMBERED, self._images.items(), key=itemgetter(1)))
        self._images = {size: images * _FADING for size, images in found.items()}
        self._unevaluated = 0
        return found


def choose(images: Mapping[Size, float], present: Sequence[Size], max_pixels: int) -> tuple[Size, ...]:
    """The buckets for images of these sizes: `present` unless others would cover clearly more of their pixels.

    At most `max_pixels` each. Deterministic, and independent of the order of the arguments' entries.
    """
    if not images:
        return tuple(present)
    sizes = sorted(images)
    pixels = np.array([images[size] * size[0] * size[1] for size in sizes])
    candidates = _candidates(images, max_pixels)
    covers = _covers(candidates, sizes)
    chosen: list[Size] = []
    left = np.ones(len(sizes), bool)
    while len(chosen) < _MOST_BUCKETS and candidates:
        together = covers @ left > 1
        best = int(np.argmax(np.where(together, covers @ (left * pixels), 0)))  # the first of equal ones, the smallest
        if not together[best]:
            break
        chosen.append(candidates[best])
        left &= covers[best] == 0
    gain = _covered(chosen, sizes, pixels) - _covered(present, sizes, pixels)
    return ordered(chosen) if gain > _BETTER * pixels.sum() else tuple(present)


def _candidates(images: Mapping[Size, float], max_pixels: int) -> list[Size]:
    # A tight bucket has the height of one of the sizes it covers, and the width of one.
    heaviest = sorted(images, key=lambda size: (-images[size] * size[0] * size[1], size))[:_MOST_SIZES]
    heights, widths = ({size[axis] for size in heaviest} for axis in (0, 1))
    return [size for size in ordered(product(heights, widths)) if size[0] * size[1] <= max_pixels]


def _covers(buckets: Sequence[Size], sizes: Sequence[Size]) -> NDArray[np.float64]:
    """(buckets, sizes): 1 where a bucket covers a size, else 0."""
    height, width = np.array(buckets, np.int64).reshape(-1, 2).T[:, :, None]
    height_of_image, width_of_image = np.array(sizes, np.int64).T
    tight = height * width <= MOST_PADDING * height_of_image * width_of_image
    covers: NDArray[np.bool_] = (height_of_image <= height) & (width_of_image <= width) & tight
    return covers.astype(np.float64)


def _covered(buckets: Sequence[Size], sizes: Sequence[Size], pixels: NDArray[np.float64]) -> float:
    return float(pixels[_covers(buckets, sizes).any(axis=0)].sum())
