"""Learns shape buckets from the sizes of the images that come. Plain code: sizes come in, buckets go out.

A bucket may hold what it pads to at most MOST_PADDING times its pixels, so no image costs more than that, and it is
worth having for sizes that would not meet otherwise, two at least. Which few buckets hold most is a maximum coverage
problem: the greedy choice holds at least 1 - 1/e, 63 %, of what the best choice of as many could (Nemhauser, Wolsey,
Fisher: An analysis of approximations for maximizing submodular set functions, 1978). It ends where a further bucket
would hold a single size that no other holds: that one keeps its own.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from heapq import nlargest
from operator import itemgetter
from typing import NamedTuple

from service.buckets import Size, ordered

MOST_PADDING = 1.25  # pixels run for each that the network needs
WORTH = 1.5  # images a second of the best batch over those of a batch of one: then padding costs less than it brings

_MOST_BUCKETS = 8
_MOST_SIZES = 48  # the heaviest, that are looked at
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

    At most `max_pixels` each. The same for the same arguments.
    """
    pixels = {size: count * size[0] * size[1] for size, count in images.items()}
    heaviest = sorted(pixels, key=lambda size: (-pixels[size], size))[:_MOST_SIZES]
    candidates = list(_candidates(heaviest, max_pixels))
    chosen: list[Size] = []
    left = set(heaviest)
    while len(chosen) < _MOST_BUCKETS:
        best = max((_Candidate.of(each, left, pixels) for each in candidates), default=None)
        if best is None or best.sizes < 2:
            break
        chosen.append(best.bucket)
        left -= _held(best.bucket, left)
    gain = _weight(heaviest, chosen, pixels) - _weight(heaviest, present, pixels)
    return ordered(chosen) if gain > _BETTER * sum(pixels.values()) else tuple(present)


class _Candidate(NamedTuple):
    """In the order of what is preferred, the best last."""

    pixels: float
    padding: int  # negative: of two that hold the same the smaller
    bucket: Size
    sizes: int

    @classmethod
    def of(cls, bucket: Size, left: Collection[Size], pixels: Mapping[Size, float]) -> "_Candidate":
        held = _held(bucket, left)
        # One that would bring nothing together brings nothing.
        weight = sum(pixels[size] for size in held) if len(held) > 1 else 0.0
        return cls(weight, -bucket[0] * bucket[1], bucket, len(held))


def _candidates(sizes: Sequence[Size], max_pixels: int) -> Iterator[Size]:
    # A bucket that fits tightly has its height from one of those it holds, and its width from one.
    for height in sorted({size[0] for size in sizes}):
        for width in sorted({size[1] for size in sizes}):
            if height * width <= max_pixels and len(_held((height, width), sizes)) > 1:
                yield height, width


def _held(bucket: Size, sizes: Collection[Size]) -> set[Size]:
    return {size for size in sizes if _holds(bucket, size)}


def _holds(bucket: Size, size: Size) -> bool:
    fits = size[0] <= bucket[0] and size[1] <= bucket[1]
    return fits and bucket[0] * bucket[1] <= MOST_PADDING * size[0] * size[1]


def _weight(sizes: Collection[Size], buckets: Sequence[Size], pixels: Mapping[Size, float]) -> float:
    return sum(pixels[size] for size in sizes if any(_holds(bucket, size) for bucket in buckets))
