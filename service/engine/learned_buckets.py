"""Learns shape buckets from the sizes of the images that come. Plain code: sizes come in, buckets go out.

A bucket may hold what it pads to at most MOST_PADDING times its pixels, so no image costs more than that, and it is
worth having for sizes that would not meet otherwise, two at least. Which few buckets hold most is a maximum coverage
problem: the greedy choice holds at least 1 - 1/e, 63 %, of what the best choice of as many could (Nemhauser, Wolsey,
Fisher: An analysis of approximations for maximizing submodular set functions, 1978). It ends where a further bucket
would hold a single size that no other holds: that one keeps its own.
"""

from collections.abc import Mapping, Sequence
from heapq import nlargest
from itertools import product
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from convoy.service.buckets import Size, ordered

MOST_PADDING = 1.25  # pixels run for each that the network needs
WORTH = 1.5  # images a second of the best batch over those of a batch of one: then padding costs less than it brings

_MOST_BUCKETS = 8
_MOST_SIZES = 64  # the heaviest, whose sides buckets have
_REMEMBERED = 1024  # sizes
_EVERY = 512  # images between two looks
_FADING = 0.75  # of what was seen up to a look counts at the next
_BETTER = 0.1  # of all pixels must other buckets hold more than those there are: so they do not come and go


def pays(seconds: Mapping[int, float]) -> bool:
    """Whether batches bring so much, by what those of each size take, that sizes should be padded to meet in one."""
    return max(size / time for size, time in seconds.items()) * seconds[1] >= WORTH


class Sizes:
    """How many images of each size a model was sent of late. One writer: the engine's loop."""

    def __init__(self) -> None:
        self._images: dict[Size, float] = {}
        self._unlooked = 0

    def see(self, size: Size, images: int) -> bool:
        """So many images came whose input is of `size`, without a bucket. Whether it is time for a look."""
        self._images[size] = self._images.get(size, 0) + images
        self._unlooked += images
        return self._unlooked >= _EVERY

    def look(self) -> dict[Size, float]:
        """Images by size, the older the less they count."""
        found = dict(nlargest(_REMEMBERED, self._images.items(), key=itemgetter(1)))
        self._images = {size: images * _FADING for size, images in found.items()}
        self._unlooked = 0
        return found


def choose(images: Mapping[Size, float], present: Sequence[Size], max_pixels: int) -> tuple[Size, ...]:
    """The buckets for images of these sizes: `present` as long as others would not hold clearly more of their pixels.

    At most `max_pixels` each. The same for the same arguments, in whatever order.
    """
    if not images:
        return tuple(present)
    sizes = sorted(images)
    pixels = np.array([images[size] * size[0] * size[1] for size in sizes])
    candidates = _candidates(images, max_pixels)
    holds = _holds(candidates, sizes)
    chosen: list[Size] = []
    left = np.ones(len(sizes), bool)
    while len(chosen) < _MOST_BUCKETS and candidates:
        together = holds @ left > 1
        best = int(np.argmax(np.where(together, holds @ (left * pixels), 0)))  # of equal ones the first, the smallest
        if not together[best]:
            break
        chosen.append(candidates[best])
        left &= holds[best] == 0
    gain = _held(chosen, sizes, pixels) - _held(present, sizes, pixels)
    return ordered(chosen) if gain > _BETTER * pixels.sum() else tuple(present)


def _candidates(images: Mapping[Size, float], max_pixels: int) -> list[Size]:
    # A bucket that fits tightly has its height from one of those it holds, and its width from one.
    heaviest = sorted(images, key=lambda size: (-images[size] * size[0] * size[1], size))[:_MOST_SIZES]
    heights, widths = ({size[axis] for size in heaviest} for axis in (0, 1))
    return [size for size in ordered(product(heights, widths)) if size[0] * size[1] <= max_pixels]


def _holds(buckets: Sequence[Size], sizes: Sequence[Size]) -> NDArray[np.float64]:
    """(buckets, sizes): 1 where a bucket may hold a size, else 0."""
    height, width = np.array(buckets, np.int64).reshape(-1, 2).T[:, :, None]
    own_height, own_width = np.array(sizes, np.int64).T
    tight = height * width <= MOST_PADDING * own_height * own_width
    holds: NDArray[np.bool_] = (own_height <= height) & (own_width <= width) & tight
    return holds.astype(np.float64)


def _held(buckets: Sequence[Size], sizes: Sequence[Size], pixels: NDArray[np.float64]) -> float:
    return float(pixels[_holds(buckets, sizes).any(axis=0)].sum())
