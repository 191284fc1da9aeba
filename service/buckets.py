"""Shape buckets: the few sizes that images of any size are padded to, so that images of similar size share a batch.

Plain functions. A bucket is the (height, width) of an input, in pixels. Only segmentation has buckets: padding is cut
off its masks, but a classifier would treat it as part of the image.
"""

from collections.abc import Iterable

import msgspec

from convoy.service.config import BucketsSetting
from convoy.service.errors import BadConfig
from convoy.service.metadata import Document, InputSpec

Size = tuple[int, int]


class Buckets(msgspec.Struct, frozen=True):
    """The buckets of a model, fewest pixels first (see `ordered`).

    An input is padded to the first of `sizes` that it fits into, if that has at most `most_padding` times its pixels
    (None: no limit). Otherwise it keeps its size.
    """

    sizes: tuple[Size, ...] = ()
    most_padding: float | None = None

    def fitting(self, size: Size) -> Size:
        """The size that an input of `size` is padded to."""
        height, width = size
        for bucket in self.sizes:
            if height <= bucket[0] and width <= bucket[1]:
                allowed = self.most_padding is None or bucket[0] * bucket[1] <= self.most_padding * height * width
                return bucket if allowed else size  # later buckets have no fewer pixels
        return size


NONE = Buckets()


def accepts_buckets(document: Document | None) -> bool:
    """Whether images may be padded further than their network needs."""
    return document is not None and document.task == "segmentation" and document.image.fit == "pad"


def rounded(spec: InputSpec, height: int, width: int) -> Size:
    """The smallest input size that fits an image of `height` x `width` pixels and that the network accepts."""
    height, width = max(height, spec.min_height), max(width, spec.min_width)
    return -(-height // spec.multiple) * spec.multiple, -(-width // spec.multiple) * spec.multiple


def ordered(buckets: Iterable[Size]) -> tuple[Size, ...]:
    """Each bucket once, from the fewest pixels to the most."""
    return tuple(sorted(set(buckets), key=lambda bucket: (bucket[0] * bucket[1], bucket)))


def configured(
    default: BucketsSetting, own: BucketsSetting | None, document: Document | None, max_pixels: int
) -> Buckets:
    """The buckets that the server's or the model's own configuration sets for this network; none for "none" and "auto".

    The server's setting applies only to networks that accept buckets. Raises BadConfig for an invalid bucket.
    """
    chosen = default if own is None else own
    if isinstance(chosen, str):
        return NONE
    if document is None or not accepts_buckets(document):
        if own:
            raise BadConfig(f"buckets are {_shown(own)}, want none: only segmentation of images of any size has them")
        return NONE
    for bucket in chosen:
        _check(bucket, document.image, max_pixels)
    return Buckets(ordered(chosen))


def _check(bucket: Size, spec: InputSpec, max_pixels: int) -> None:
    height, width = bucket
    if height % spec.multiple or width % spec.multiple:
        raise BadConfig(
            f"buckets: {list(bucket)} has sides that the network does not accept, want multiples of {spec.multiple}"
        )
    if height < spec.min_height or width < spec.min_width:
        least = [spec.min_height, spec.min_width]
        raise BadConfig(f"buckets: {list(bucket)} is smaller than the network accepts, want at least {least}")
    if height * width > max_pixels:
        raise BadConfig(
            f"buckets: {list(bucket)} has {height * width} pixels, want at most limits.max_input_pixels, {max_pixels}"
        )


def _shown(buckets: BucketsSetting) -> str:
    return repr(buckets) if isinstance(buckets, str) else str([list(bucket) for bucket in buckets])
