"""The images of one request, put together into chunks that share a slot: one way to the engine and back for many."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from convoy.service.pb.convoy.v1 import vision_pb2 as pb

_LEAST_SHARE = 8  # of a batch: no chunk but the last one is smaller than one in so many


class Sent(NamedTuple):
    """An image as it came. `pixels` are those of a raw one, which may be in the message or still where they came."""

    image: pb.Image
    pixels: bytes | memoryview


class Chunk(NamedTuple):
    """Images that share a slot, by their numbers in the request.

    `size` is the (height, width) of raw pixels that are the network's input as they are; None where one image still
    has to be decoded or resized.
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
    """Every image of a request in one chunk: of those that need no work as many together as batches have use for.

    payloads    raw pixels that are not in the message, by the image's number
    channels    of the network's input
    fitted      its (height, width) for an image of a height and a width
    max_pixels  of one image, its height times its width
    batch_size  images at most, 1 or more, in one chunk
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
    """How many images go into each chunk: whole batches, then halves of them, so that the chunks of different requests
    fill batches together."""
    count = batch_size
    while images:
        if images < count and count > max(1, batch_size // _LEAST_SHARE):
            count = -(-count // 2)
            continue
        taken = min(count, images)
        yield taken
        images -= taken
