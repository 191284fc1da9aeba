"""Prepares the images of a request: groups them into chunks, and decodes, fits and copies each chunk into a slot."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple, TypeVar

from convoy.service import metadata
from convoy.service.config import LimitsConfig
from convoy.service.errors import BadImage, BadRequest
from convoy.service.frontend.call import Call
from convoy.service.frontend.decoder import Decoder
from convoy.service.frontend.engine_client import EngineClient, Lease
from convoy.service.frontend.threads import HEAVY, Threads, Who, awaited
from convoy.service.images.decode import Picture, estimate, from_raw
from convoy.service.images.geometry import is_too_large
from convoy.service.ipc.slots import COPIED_AT_ONCE
from convoy.service.metadata import InputSpec
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.preprocess import Placement, input_size, preprocess

_RAW_SECONDS = 2e-9  # that a byte of raw pixels takes to be resized
_LOOKED_AT = 4 << 20  # bytes of a file; a longer one counts as heavy, because copying it would delay the loop
_LEAST_SHARE = 8  # no chunk but the last one is smaller than 1/8 of a batch

T = TypeVar("T")
Pixels = bytes | memoryview


class Chunk(NamedTuple):
    """Images of a request that share a slot, so that many make one trip to the engine.

    `size` is the (height, width) of raw pixels that are the network's input unchanged; None for one image that must be
    decoded or resized.
    """

    numbers: Sequence[int]  # in the request
    images: Sequence[pb.Image]
    pixels: Sequence[Pixels]  # of raw images, in the message or still in the received bytes; else empty
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
    pixels = [payloads.get(number) or image.raw.pixels for number, image in enumerate(images)]
    result: list[Chunk] = []
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, (image, data) in enumerate(zip(images, pixels, strict=True)):
        size = _unchanged_size(image.raw, data, channels, fitted, max_pixels) if data else None
        if size is None or len(images) == 1:
            result.append(Chunk((number,), (image,), (data,), size))
        else:
            by_size.setdefault(size, []).append(number)
    for size, numbers in by_size.items():
        at = 0
        for count in _counts(len(numbers), batch_size):
            group = numbers[at : at + count]
            result.append(
                Chunk(group, [images[number] for number in group], [pixels[number] for number in group], size)
            )
            at += count
    return result


class Preparer:
    """Preparation of chunks in slots, with the threads and limits of the front end."""

    def __init__(self, client: EngineClient, limits: LimitsConfig, threads: Threads, decoder: Decoder) -> None:
        self._decoder = decoder
        self._client = client
        self._limits = limits
        self._threads = threads

    def chunks(self, images: Sequence[pb.Image], call: Call, batch_size: int) -> list[Chunk]:
        """Divides a request's images into chunks of at most `batch_size`. Raises BadRequest for too many images."""
        if not 1 <= len(images) <= self._limits.max_images:
            raise BadRequest(f"request has {len(images)} images, want 1 to {self._limits.max_images}")
        return chunks(images, call.payloads, *self._input_of(call), batch_size)

    def unchanged_size(self, image: pb.Image, pixels: Pixels, call: Call) -> tuple[int, int] | None:
        """Returns the (height, width) of raw pixels that are the network's input unchanged; None for other images."""
        return _unchanged_size(image.raw, pixels, *self._input_of(call))

    def _input_of(self, call: Call) -> tuple[int, Callable[[int, int], tuple[int, int]], int]:
        """Returns what `chunks` is given of the network's input."""
        spec = call.document.image
        return spec.channels, partial(input_size, spec, buckets=call.row.buckets), self._max_pixels(spec)

    async def prepare(self, chunk: Chunk, call: Call) -> Lease:
        """Prepares a chunk in a slot, which the caller must release. Raises BadImage, QueueFull, DeadlinePassed."""
        if chunk.size is not None:
            return await self._copy(chunk, chunk.size, call)
        with self._client.preparing(call.model):
            data, seconds = _look(chunk.images[0], chunk.pixels[0])
            decode = partial(self._decode, chunk.images[0], data, chunk.pixels[0], call)
            work = self._threads.submit(call.who, decode, seconds)
            preparing = awaited(work)
            try:
                return await asyncio.shield(preparing)
            except asyncio.CancelledError:
                # Work that has not begun is cancelled. Otherwise the thread goes on, and its lease is released. Until
                # then the request counts as in flight, because its bytes are in use.
                if not work.cancel():
                    work.add_done_callback(_release)
                    await asyncio.wait([preparing])
                raise
            finally:
                del work, preparing

    async def _copy(self, chunk: Chunk, size: tuple[int, int], call: Call) -> Lease:
        """Copies pixels that are the network's input unchanged, unless they have landed. A few are copied in less time
        than a hop to a thread takes."""
        began = time.monotonic()
        call.check_deadline()
        lease = self._claim(size, len(chunk.images), call, chunk.pixels)
        try:
            target = lease.bytes_of(0)
            if lease.unfilled and len(target) <= COPIED_AT_ONCE:
                _copy_pixels(chunk.pixels, target)
            elif lease.unfilled:
                with self._client.preparing(call.model):
                    await to_its_end(self._threads, call.who, partial(_copy_pixels, chunk.pixels, target))
        except BaseException:
            lease.release()
            raise
        lease.placement = Placement(*size, 0, 0, *size)
        lease.prepared = (began, began, time.monotonic())
        return lease

    def _decode(self, image: pb.Image, data: bytes, pixels: Pixels, call: Call, thread: int) -> Lease:
        began = time.monotonic()
        call.check_deadline()
        spec = call.document.image
        # Decoding precedes the claim, so that a broken image never occupies a slot.
        picture = self._picture(image, data, pixels, spec, thread)
        decoded = time.monotonic()
        size = input_size(spec, picture.height, picture.width, buckets=call.row.buckets)
        lease = self._claim(size, 1, call)
        try:
            sent = picture.height, picture.width
            lease.placement = preprocess(picture.pixels, spec, lease.inputs[0][0], sent)
        except BaseException:
            lease.release()
            raise
        lease.prepared = (began, decoded, time.monotonic())
        return lease

    def _claim(self, size: tuple[int, int], images: int, call: Call, pixels: Sequence[Pixels] = ()) -> Lease:
        """Claims a slot for a number of images whose input has `size`. `pixels` may stay where they have landed."""
        document, places = call.document, size[0] * size[1]
        nbytes = {
            metadata.PROBABILITIES: 4 * len(document.labels),
            metadata.MASK: places,
            metadata.CONFIDENCE: places,
        }
        outputs = [
            (number, images * nbytes.get(spec.name, 0))  # 0: its size is not known
            for number, spec in enumerate(call.row.outputs)
            if call.every_output or spec.name in nbytes
        ]
        inputs = [("uint8", (images, *size, document.image.channels))]
        return self._client.claim(inputs, outputs, call.landing if pixels else None, [pixels])

    def _picture(self, image: pb.Image, data: bytes, pixels: Pixels, spec: InputSpec, thread: int) -> Picture:
        max_pixels = self._max_pixels(spec)
        try:
            match image.WhichOneof("source"):
                case "encoded":
                    return self._decoder.decode(data or image.encoded, spec, max_pixels, thread)
                case "raw":
                    raw = image.raw
                    return from_raw(pixels, raw.height_px, raw.width_px, raw.channels, spec.colour, max_pixels)
        except BadImage as error:
            if not is_too_large(error, max_pixels):
                raise
            key = "max_pixels" if max_pixels == self._limits.max_pixels else "max_input_pixels"
            raise BadImage(f"{error.message}, the server's limits.{key}") from None
        raise BadImage("image is empty, want a JPEG or PNG file, or raw pixels")

    def _max_pixels(self, spec: InputSpec) -> int:
        """Returns the most pixels of an image, height times width."""
        # A model of any size runs the image unscaled, so the limit of its runs applies, too.
        limits = self._limits
        return min(limits.max_pixels, limits.max_input_pixels) if spec.fit == "pad" else limits.max_pixels


async def to_its_end(threads: Threads, who: Who, work: Callable[[], T], seconds: float = 0.0) -> T:
    """Returns the result of work that reads or writes a slot. After a cancellation it still waits for the work, so that
    the slot is not released before. For `who` and `seconds` see Threads.submit."""
    future = awaited(threads.submit(who, lambda thread: work(), seconds))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
    finally:
        del future


def _look(image: pb.Image, pixels: Pixels) -> tuple[bytes, float]:
    """Returns the file of an image, if it is short, and an estimate of the seconds that its decoding takes."""
    if pixels:
        return b"", _RAW_SECONDS * len(pixels)
    if image.ByteSize() > _LOOKED_AT:
        return b"", HEAVY
    data = image.encoded  # protobuf makes a copy each time
    return data, estimate(data)


def _unchanged_size(
    raw: pb.RawImage, pixels: Pixels, channels: int, fitted: Callable[[int, int], tuple[int, int]], max_pixels: int
) -> tuple[int, int] | None:
    """Returns the (height, width) of raw pixels that are the network's input unchanged; None for other images."""
    height, width = raw.height_px, raw.width_px
    unchanged = (
        raw.channels == channels
        and len(pixels) == height * width * channels
        and height * width <= max_pixels
        and fitted(height, width) == (height, width)
    )
    return (height, width) if unchanged else None


def _counts(images: int, batch_size: int) -> Iterator[int]:
    """Yields the number of images in each chunk: whole batches, then halves of them, so that the chunks of different
    requests fill batches together."""
    count = batch_size
    while images:
        if images < count and count > max(1, batch_size // _LEAST_SHARE):
            count = -(-count // 2)
            continue
        yield min(count, images)
        images -= min(count, images)


def _copy_pixels(images: Sequence[Pixels], target: memoryview) -> None:
    at = 0
    for pixels in images:
        end = at + len(pixels)
        target[at:end] = pixels
        at = end


def _release(work: Future[Lease]) -> None:
    if work.exception() is None:
        work.result().release()
