"""The mask of a picture of any size, tile by tile over one stream.

`run` and `run_async` are the shells around a stream; `tile_queue` decides which tile is sent when, `assembly` what the
masks of the tiles add up to.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from convoy.service.client.assembly import Assembly
from convoy.service.client.results import ClassPixels, Mask, Model, Segmentation, ServerError
from convoy.service.client.tile_queue import FOREVER, TileQueue
from convoy.service.client.tiling import Plan, Tile
from convoy.service.errors import BadImage, BadRequest, UnknownModel, meant
from convoy.service.rasters.raster import NO_CLASS, MaskSink, Raster

LargeSource = str | Path | NDArray[np.uint8] | Raster
MOST_TILES = 32  # on their way at a time
MOST_BYTES = 64 << 20  # of their pixels
TOO_LARGE = ("server's limits.", "larger than max")  # in the server's message, in gRPC's
MOST_PIXELS = 1 << 31  # of a mask that is returned as an array


class Progress(NamedTuple):
    """How far it is: `tiles` of `total` are done, of which `sent` were sent just now, and `rows` of the mask."""

    tiles: int
    total: int
    sent: int
    rows: int


class LargeSegmentation(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The class of every pixel of a large picture.

    mask          (H, W) uint8, class indices, NO_CLASS (255) where the picture has no data; None if it went to a sink
    class_pixels  one entry per class, of the rows that were computed
    exact         whether the mask is that of the whole picture; if not, `note` says why
    tile, halo    (height, width) of a tile, and the largest number of pixels around the part of it that is used
    tiles         how many there are
    """

    model: str
    version: int
    mask: Mask | None
    class_pixels: tuple[ClassPixels, ...]
    exact: bool
    note: str
    tile: tuple[int, int]
    halo: int
    tiles: int


class ArrayRaster:
    """An array as a picture: uint8 (H, W), (H, W, 1) or (H, W, 3). Raises BadImage."""

    ground = None
    georeference = None
    notes: tuple[str, ...] = ()

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.dtype != np.uint8 or self._pixels.ndim != 3 or self._pixels.shape[2] not in (1, 3) or not pixels.size:
            raise BadImage(f"array is {pixels.dtype} {pixels.shape}, want uint8 (H, W), (H, W, 1) or (H, W, 3)")
        self.height, self.width, self.channels = self._pixels.shape

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        return self._pixels[top : top + height, left : left + width]

    def absent(self, top: int, left: int, height: int, width: int) -> None:
        """Returns None: an array has no places without data."""

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> "ArrayRaster":
        return self

    def __exit__(self, *_: object) -> None: ...


def as_raster(picture: LargeSource) -> AbstractContextManager[Raster]:
    """The picture, opened; a raster that the caller has opened stays open. Raises BadImage."""
    if isinstance(picture, np.ndarray):
        return ArrayRaster(picture)
    if isinstance(picture, str | Path):
        from convoy.service.rasters.opening import opened  # noqa: PLC0415  loads readers

        try:
            return opened(Path(picture))
        except OSError as error:
            raise BadImage(f"cannot read image {str(picture)!r}: {error.strerror or error}") from None
    return nullcontext(picture)


def chosen(served: Sequence[Model], model: str, version: int = 0) -> Model:
    """The version that masks are asked of: of the only segmentation model if `model` is empty, its highest that is
    ready if `version` is 0. Raises UnknownModel, BadRequest."""
    masks = [each for each in served if each.task == "segmentation" and each.state == "ready"]
    names = sorted({each.model for each in masks})
    if not model and len(names) != 1:
        found = f"{len(names)} ({', '.join(names)})" if names else "none"
        raise BadRequest(f"model is empty, want a name: the server has {found} for segmentation")
    fitting = [each for each in masks if each.model == (model or names[0]) and version in (0, each.version)]
    if not fitting:
        which = f"{model!r} version {version}" if version else repr(model)
        raise UnknownModel(f"no model {which} for segmentation that is ready{meant(model, names)}")
    return fitting[0]


class Job:
    """A picture, its plan, and what has become of it. Its methods may be called from several threads."""

    def __init__(
        self,
        raster: Raster,
        plan: Plan,
        model: Model,
        sink: MaskSink | None,
        first_row: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        if sink is None and raster.height * raster.width > MOST_PIXELS:
            raise BadRequest(
                f"the mask has {raster.width} x {raster.height} pixels, want at most {MOST_PIXELS} without a sink"
            )
        self.raster, self.plan, self.model = raster, plan, model
        self._sink = sink
        self._mask = np.zeros((raster.height, raster.width), np.uint8) if sink is None else None
        self._counts = np.zeros(256, np.int64)
        self._assembly = Assembly(plan, raster.width, self._write, first_row)
        self._absent: dict[int, NDArray[np.bool_]] = {}
        self._marks = len(model.labels) <= NO_CLASS  # else 255 is a class
        self._progress = progress
        self._first_row = first_row
        self._reading, self._placing = threading.Lock(), threading.Lock()
        tiles = list(plan.tiles(first_row))
        self._done, self._sent = len(plan) - len(tiles), 0
        tile_bytes = max(1, plan.size[0] * plan.size[1] * raster.channels)
        self.work = TileQueue(tiles, max(2, min(MOST_TILES, MOST_BYTES // tile_bytes)))

    def pixels(self, tile: Tile) -> NDArray[np.uint8] | None:
        """The pixels of a tile; None for one without data, which needs no answer. Raises BadImage."""
        rows, columns = tile.rows, tile.columns
        window = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        with self._reading:
            absent = self.raster.absent(*window) if self._marks else None
            if absent is not None and absent.any():
                self._absent[tile.number] = absent
                if absent.all():
                    return None
            pixels = self.raster.read(*window)
        if not self.plan.fixed:
            return pixels
        missing = [max(0, side - own) for side, own in zip(self.plan.size, pixels.shape, strict=False)]
        return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else pixels

    def place(self, tile: Tile, answer: Segmentation | None) -> None:
        """Uses the answer to a tile; None for one without data. Raises OSError."""
        absent = self._absent.pop(tile.number, None)
        if answer is None:
            assert absent is not None
            nothing = np.zeros(absent.shape, np.uint8)
            mask, confidence = nothing, nothing if self.plan.joined else None
        else:
            mask, confidence = answer.mask, answer.confidence
        with self._placing:
            self._assembly.place(tile, mask, confidence, absent)
            self._done += 1
            self._sent += answer is not None
            if self._progress is not None:
                self._progress(Progress(self._done, len(self.plan), self._sent, self._assembly.row))

    def explained(self, error: ServerError) -> ServerError:
        """A refusal, for tiles that are too large with what to do."""
        if any(words in error.message for words in TOO_LARGE):
            height, width = self.plan.size
            error.message = f"tiles of {width}x{height} are too large: {error.message}; want smaller ones (--tile)"
            error.args = (error.message,)
        return error

    def result(self) -> LargeSegmentation:
        assert self.work.complete, "tiles without an answer"
        return LargeSegmentation(
            model=self.model.model,
            version=self.model.version,
            mask=self._mask,
            class_pixels=tuple(
                ClassPixels(index=index, name=name, pixels=int(self._counts[index]))
                for index, name in enumerate(self.model.labels)
            ),
            exact=self.plan.exact,
            note=self.plan.note,
            tile=self.plan.size,
            halo=max(max(pair) for pair in self.plan.halo),
            tiles=len(self.plan),
        )

    def _write(self, rows: NDArray[np.uint8]) -> None:
        self._counts += np.bincount(rows.reshape(-1), minlength=256)
        if self._sink is not None:
            self._sink.write(rows)
        if self._mask is not None:
            self._mask[self._assembly.row : self._assembly.row + len(rows)] = rows


Answer = tuple[int, Segmentation | ServerError]
Pictures = AsyncIterator[NDArray[np.uint8]]


def run(job: Job, stream: Callable[[Iterator[NDArray[np.uint8]]], Iterator[Answer]]) -> LargeSegmentation:
    """Sends the tiles over a stream, and over another one where it breaks. Raises ServerError, BadImage, OSError."""
    while not job.work.complete:
        try:
            _attempt(job, stream)
        except ServerError as error:
            time.sleep(job.work.lost(job.explained(error), time.monotonic()))
    return job.result()


def _attempt(job: Job, stream: Callable[[Iterator[NDArray[np.uint8]]], Iterator[Answer]]) -> None:
    changed = threading.Condition()
    numbered: list[Tile] = []
    over = False

    def pictures() -> Iterator[NDArray[np.uint8]]:
        while True:
            with changed:
                # A tile that is taken once this stream has ended would be nobody's.
                while not over and isinstance(step := job.work.next(time.monotonic()), float):
                    changed.wait(None if step == FOREVER else step)
                if over or not isinstance(step, Tile):
                    return
            pixels = job.pixels(step)
            if pixels is None:
                job.place(step, None)
                with changed:
                    job.work.answered(step)
            else:
                numbered.append(step)
                yield pixels

    try:
        for number, answer in stream(pictures()):
            tile = numbered[number]
            if isinstance(answer, Segmentation):
                job.place(tile, answer)
            with changed:
                if isinstance(answer, ServerError):
                    job.work.refused(tile, answer, time.monotonic())
                else:
                    job.work.answered(tile)
                changed.notify()
    finally:
        with changed:
            over = True
            changed.notify()


async def run_async(job: Job, stream: Callable[[Pictures], AsyncGenerator[Answer, None]]) -> LargeSegmentation:
    """As `run`, in asyncio; pictures are read and masks written in threads."""
    while not job.work.complete:
        try:
            await _attempt_async(job, stream)
        except ServerError as error:
            await asyncio.sleep(job.work.lost(job.explained(error), time.monotonic()))
    return job.result()


async def _attempt_async(job: Job, stream: Callable[[Pictures], AsyncGenerator[Answer, None]]) -> None:
    changed = asyncio.Event()
    numbered: list[Tile] = []

    async def pictures() -> Pictures:
        while (step := job.work.next(time.monotonic())) is not None:
            if not isinstance(step, Tile):
                changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), None if step == FOREVER else step)
                continue
            pixels = await asyncio.to_thread(job.pixels, step)
            if pixels is None:
                await asyncio.to_thread(job.place, step, None)
                job.work.answered(step)
            else:
                numbered.append(step)
                yield pixels

    async with aclosing(stream(pictures())) as answers:
        async for number, answer in answers:
            tile = numbered[number]
            if isinstance(answer, ServerError):
                job.work.refused(tile, answer, time.monotonic())
            else:
                await asyncio.to_thread(job.place, tile, answer)
                job.work.answered(tile)
            changed.set()
