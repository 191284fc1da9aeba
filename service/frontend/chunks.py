"""Groups the images of one request into chunks that share a slot, so that many images make one trip to the engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from convoy.service.pb.convoy.v1 import vision_pb2 as pb

_LEAST_SHARE = 8  # no chunk but the last one is smaller than 1/8 of a batch


class Sent(NamedTuple):
    """An image as received. `pixels` are those of a raw image, in the message or still in the received bytes."""

    image: pb.Image
    pixels: bytes | memoryview


class Chunk(NamedTuple):
    """Images that share a slot, by their numbers in the request.

    `size` is the (height, width) of raw pixels that are the network's input unchanged; None for one image that must be
    decoded or resized.
    """

    numbers: Sequence[int]
    sent: Sequence[Sent]
    size: tuple[int, int] | None


def chunks(
    images: Sequence[pb.Image],
    payloads: Mapping[int, memoryview],
    channels: int,
    fitted: Callable[[int, int], tuple[int, int]],
    max_pixels: int,
    batch_size: int,
) -> list[Chunk]:
    """Divides the images of a request into chunks; those that need no work are grouped by size, as fits batches.

    payloads    raw pixels that are not in the message, by the image's number
    channels    of the network's input
    fitted      returns the input's (height, width) for the height and width of an image
    max_pixels  of one image, height times width
    batch_size  most images in one chunk, 1 or more
    """
    if len(images) == 1:
        only = Sent(images[0], payloads.get(0) or images[0].raw.pixels)
        return [Chunk((0,), (only,), _size_as_it_is(only, channels, fitted, max_pixels))]
    found: list[Chunk] = []
    alike: dict[tuple[int, int], list[int]] = {}
    sent = [Sent(image, payloads.get(number) or image.raw.pixels) for number, image in enumerate(images)]
    for number, one in enumerate(sent):
        size = _size_as_it_is(one, channels, fitted, max_pixels)
        if size is None:
            found.append(Chunk((number,), (one,), None))
        else:
            alike.setdefault(size, []).append(number)
    for size, numbers in alike.items():
        at = 0
        for count in _counts(len(numbers), batch_size):
            chosen = numbers[at : at + count]
            found.append(Chunk(chosen, [sent[number] for number in chosen], size))
            at += count
    return found


def _size_as_it_is(
    sent: Sent, channels: int, fitted: Callable[[int, int], tuple[int, int]], max_pixels: int
) -> tuple[int, int] | None:
    if not sent.pixels:
        return None
    raw = sent.image.raw
    height, width = raw.height_px, raw.width_px
    right = (
        raw.channels == channels
        and len(sent.pixels) == height * width * channels
        and height * width <= max_pixels
        and fitted(height, width) == (height, width)
    )
    return (height, width) if right else None


def _counts(images: int, batch_size: int) -> Iterator[int]:
    """Yields the number of images in each chunk: whole batches, then halves of them, so that the chunks of different
    requests fill batches together."""
    count = batch_size
    while images:
        if images < count and count > max(1, batch_size // _LEAST_SHARE):
            count = -(-count // 2)
            continue
        taken = min(count, images)
        yield taken
        images -= taken
