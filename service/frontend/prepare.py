"""Prepares received images as the network's input: decodes and fits them straight into a slot."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from convoy.service import metadata
from convoy.service.config import LimitsConfig
from convoy.service.errors import BadImage
from convoy.service.frontend.call import Call, Marks
from convoy.service.frontend.chunks import Chunk, Sent
from convoy.service.frontend.engine_client import EngineClient, Lease
from convoy.service.images.decode import Picture, decode, from_raw
from convoy.service.ipc.slots import COPIED_AT_ONCE
from convoy.service.metadata import Document, InputSpec
from convoy.service.preprocess import Placement, input_size, preprocess, reduction
from convoy.service.repository import Version

_UINT8 = np.dtype(np.uint8)

T = TypeVar("T")


class Served(NamedTuple):
    """The version that answers a request for images, its metadata, and the call with the request's limits."""

    row: Version
    document: Document
    call: Call


class Prepared(NamedTuple):
    """Images in their slot, and the part of its input that each fills. The caller must release the lease."""

    lease: Lease
    placement: Placement
    marks: Marks


class Preparer:
    """Preparation of chunks in slots, with the threads and limits of the front end."""

    def __init__(self, client: EngineClient, limits: LimitsConfig, threads: ThreadPoolExecutor) -> None:
        self._client = client
        self._limits = limits
        self._threads = threads

    def max_pixels(self, spec: InputSpec) -> int:
        """Returns the most pixels of an image, height times width."""
        # A model of any size runs the image unscaled, so the limit of its runs applies, too.
        limits = self._limits
        return min(limits.max_pixels, limits.max_input_pixels) if spec.fit == "pad" else limits.max_pixels

    async def prepare(self, chunk: Chunk, served: Served) -> Prepared:
        """Prepares a chunk. Raises BadImage, QueueFull, DeadlinePassed."""
        if chunk.size is not None:
            return await self._copy(chunk, chunk.size, served)
        with self._client.coming(served.row.model):
            work = self._threads.submit(self._decode, chunk.sent[0], served)
            preparing = asyncio.wrap_future(work)
            try:
                return await asyncio.shield(preparing)
            except asyncio.CancelledError:
                # Work that has not begun is cancelled. Otherwise the thread goes on, and its lease is released. Until
                # then the request counts as in flight, because its bytes are in use.
                if not work.cancel():
                    work.add_done_callback(_release)
                    await asyncio.wait([preparing])
                raise

    async def _copy(self, chunk: Chunk, size: tuple[int, int], served: Served) -> Prepared:
        """Copies pixels that are the network's input unchanged; a few are copied in less time than a hop to a thread
        takes."""
        began = time.monotonic_ns()
        served.call.check_deadline()
        count, channels = len(chunk.sent), served.document.image.channels
        lease = self._client.claim([(_UINT8, (count, *size, channels))], _output_bytes(served, size, count))
        try:
            target = lease.bytes_of(0)
            if len(target) <= COPIED_AT_ONCE:
                _copy_pixels(chunk, target)
            else:
                with self._client.coming(served.row.model):
                    await to_its_end(self._threads, partial(_copy_pixels, chunk, target))
        except BaseException:
            lease.release()
            raise
        return Prepared(lease, Placement(*size, 0, 0, *size), Marks(began, began, time.monotonic_ns()))

    def _decode(self, sent: Sent, served: Served) -> Prepared:
        began = time.monotonic_ns()
        served.call.check_deadline()
        row, spec = served.row, served.document.image
        # Decoding precedes the claim, so that a broken image never occupies a slot.
        picture = self._picture(sent, spec)
        decoded = time.monotonic_ns()
        size = input_size(spec, picture.height, picture.width, buckets=row.buckets)
        lease = self._client.claim([(_UINT8, (1, *size, spec.channels))], _output_bytes(served, size, 1))
        try:
            placement = preprocess(picture.pixels, spec, lease.inputs[0][0], (picture.height, picture.width))
        except BaseException:
            lease.release()
            raise
        return Prepared(lease, placement, Marks(began, decoded, time.monotonic_ns()))

    def _picture(self, sent: Sent, spec: InputSpec) -> Picture:
        max_pixels = self.max_pixels(spec)
        match sent.image.WhichOneof("source"):
            case "encoded":
                return decode(sent.image.encoded, spec.colour, max_pixels, partial(reduction, spec))
            case "raw":
                raw = sent.image.raw
                return from_raw(sent.pixels, raw.height_px, raw.width_px, raw.channels, spec.colour, max_pixels)
        raise BadImage("image is empty, want a JPEG or PNG file, or raw pixels")


async def to_its_end(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Returns the result of work that reads or writes a slot. After a cancellation it still waits for the work, so that
    the slot is not released before."""
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _copy_pixels(chunk: Chunk, target: memoryview) -> None:
    at = 0
    for sent in chunk.sent:
        end = at + len(sent.pixels)
        target[at:end] = sent.pixels
        at = end


def _release(work: Future[Prepared]) -> None:
    if work.exception() is None:
        work.result().lease.release()


def _output_bytes(served: Served, size: tuple[int, int], images: int) -> list[tuple[int, int]]:
    """Returns the (number, bytes) of the outputs for a number of images whose input has `size`."""
    pixels = size[0] * size[1]
    sizes = {
        metadata.PROBABILITIES: 4 * len(served.document.labels),
        metadata.MASK: pixels,
        metadata.CONFIDENCE: pixels,
    }
    return [(number, images * sizes[spec.name]) for number, spec in enumerate(served.row.outputs) if spec.name in sizes]
