"""convoy.v1.Vision: images from the wire to their slots, through the engine, and back as labels or class maps."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from convoy.service import metadata, metrics
from convoy.service.config import LimitsConfig
from convoy.service.errors import BadImage, BadRequest, ConvoyError, EngineDied, PredictedLate, RunFailed
from convoy.service.frontend import encoding, status
from convoy.service.frontend.admission import Outlook
from convoy.service.frontend.call import Call, count_refusal
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.chunks import Part, Sent, parts
from convoy.service.frontend.encoding import Labels
from convoy.service.frontend.engine_client import EngineLink, Slot
from convoy.service.frontend.model_info import describe
from convoy.service.frontend.postprocess import Ranking, rankings, segmentation
from convoy.service.frontend.threads import to_its_end
from convoy.service.frontend.timings import Marks, observe
from convoy.service.images.decode import Picture, decode, from_raw
from convoy.service.ipc.channel import Answer
from convoy.service.metadata import Document, InputSpec
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.preprocess import Placement, input_size, preprocess, reduction
from convoy.service.repository import Version

_STAGE_FIELDS = tuple(f"{stage}_seconds" for stage in metrics.STAGES)
_PRIORITIES = frozenset(pb.Priority.values())
_UINT8 = np.dtype(np.uint8)

Result = TypeVar("Result")

_FEW = 1 << 17  # bytes of raw pixels: copying them takes about as long as the way to a thread and back


class _Prepared(NamedTuple):
    """Images in their slot, and what of each of its inputs they fill."""

    slot: Slot
    placement: Placement
    marks: Marks


class _Ran(NamedTuple):
    """The network's outputs for the images of a slot: views, (N, ...), valid until the slot ends."""

    outputs: dict[str, NDArray[Any]]
    answer: Answer


class Vision:
    """The servicer. Decodes and postprocesses in `threads`, but for what takes less time than the way there; everything
    else on the loop."""

    def __init__(
        self, catalogue: Catalogue, link: EngineLink, limits: LimitsConfig, threads: ThreadPoolExecutor
    ) -> None:
        self._catalogue = catalogue
        self._link = link
        self._limits = limits
        self._threads = threads
        self._labels: dict[tuple[str, int], tuple[Document, Labels]] = {}
        self._outlook = Outlook()

    async def Classify(self, request: pb.ClassifyRequest, call: Call) -> bytes:
        """Ranked labels for each image: a ClassifyResponse."""
        row, document = self._catalogue.for_task(request.model, request.version, "classification")
        call.serves(row)
        call.low_priority = _is_low(request.priority)
        labels, top_k = self._labels_of(row, document), request.top_k

        async def answer(part: Part) -> list[bytes | ConvoyError]:
            prepared = await self._prepare(part, row, document, call)
            with prepared.slot:
                ran = await self._run(prepared, len(part.sent), row, call)
                found = rankings(ran.outputs[metadata.PROBABILITIES], len(document.labels), top_k)
            good = sum(isinstance(one, Ranking) for one in found)
            taken = observe(call, prepared.marks, ran.answer.times, good)
            timings = encoding.timings(taken.stages, taken.total, ran.answer.batch_size)
            return [labels.result(*one, timings) if isinstance(one, Ranking) else one for one in found]

        with self._catalogue.using(row):
            chosen = self._parts(request.images, row, document.image, call, row.batch_size)
            results = await self._each(
                chosen, answer, call, lambda error: pb.ClassifyResult(error=_image_error(error)).SerializeToString()
            )
        return encoding.response(row.model, row.version, results)

    async def Segment(self, request: pb.SegmentRequest, call: Call) -> pb.SegmentResponse:
        """A class map, of the size that was sent, for each image."""
        row, document = self._catalogue.for_task(request.model, request.version, "segmentation")
        call.serves(row)
        call.low_priority = _is_low(request.priority)
        if request.format not in pb.MaskFormat.values():
            raise BadRequest(f"format is {request.format}, want one of MaskFormat's values")
        if request.with_confidence and metadata.CONFIDENCE not in [spec.name for spec in row.outputs]:
            raise BadRequest(
                f"with_confidence: model {row.model!r} version {row.version} answers masks alone: want false"
            )

        async def answer(part: Part) -> list[pb.SegmentResult | ConvoyError]:
            prepared = await self._prepare(part, row, document, call)
            with prepared.slot:
                ran = await self._run(prepared, 1, row, call)
                mask = ran.outputs[metadata.MASK][0]
                confidence = ran.outputs[metadata.CONFIDENCE][0] if request.with_confidence else None
                # Waited for to its end even where the caller goes: it reads the slot.
                class_map = await to_its_end(
                    self._threads,
                    lambda: segmentation(mask, confidence, document, prepared.placement, request.format),
                )
            return [pb.SegmentResult(segmentation=class_map, timings=_timings(call, prepared, ran))]

        with self._catalogue.using(row):
            # What comes behind the network takes most of the time, and a thread for each image.
            chosen = self._parts(request.images, row, document.image, call, 1)
            results = await self._each(chosen, answer, call, lambda error: pb.SegmentResult(error=_image_error(error)))
        return pb.SegmentResponse(model=row.model, version=row.version, results=results)

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """Every version in the repository."""
        return pb.ListModelsResponse(models=[describe(row) for row in self._catalogue.table.versions])

    def _labels_of(self, row: Version, document: Document) -> Labels:
        known, labels = self._labels.get((row.model, row.version), (None, None))
        if labels is None or known is not document:
            labels = Labels(document.labels)
            there = {(each.model, each.version) for each in self._catalogue.table.versions}
            self._labels = {version: of for version, of in self._labels.items() if version in there}
            self._labels[row.model, row.version] = document, labels
        return labels

    def _parts(
        self, images: Sequence[pb.Image], row: Version, spec: InputSpec, call: Call, batch_size: int
    ) -> list[Part]:
        if not 1 <= len(images) <= self._limits.max_images:
            raise BadRequest(f"request has {len(images)} images, want 1 to {self._limits.max_images}")
        fitted = partial(input_size, spec, buckets=row.buckets)
        return parts(images, call.payloads, spec.channels, fitted, self._max_pixels(spec), batch_size)

    async def _each(
        self,
        found: Sequence[Part],
        answer: Callable[[Part], Awaitable[list[Result | ConvoyError]]],
        call: Call,
        failed: Callable[[ConvoyError], Result],
    ) -> list[Result]:
        """One result an image. A single image's error is the request's; of several, each has its own."""
        if len(found) == 1 and len(found[0].sent) == 1:
            (only,) = await answer(found[0])
            if isinstance(only, ConvoyError):
                raise only
            return [only]

        if len(found) == 1:
            outcomes = [await _outcomes(found[0], answer)]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_outcomes(part, answer)) for part in found]
            outcomes = [task.result() for task in tasks]
        results: dict[int, Result] = {}
        for part, own in zip(found, outcomes, strict=True):
            for number, outcome in zip(part.numbers, own, strict=True):
                if isinstance(outcome, ConvoyError):
                    count_refusal(call, outcome)
                    results[number] = failed(outcome)
                else:
                    results[number] = outcome
        return [results[number] for number in range(len(results))]

    async def _prepare(self, part: Part, row: Version, document: Document, call: Call) -> _Prepared:
        """Bring a part into a slot: decoded and resized in a thread, so that an image changes hands once."""
        if document.image.height is not None:  # of other sizes one image says nothing about the next
            kind = (row.model, row.version, call.low_priority)
            self._outlook.check(row.model, kind, len(part.sent), call.deadline, time.monotonic_ns())
        if part.size is not None:
            return await self._copy(part, part.size, row, document, call)
        with self._link.coming(row.model):
            work = self._threads.submit(self._decode_into_slot, part.sent[0], row, document, call)
            preparing = asyncio.wrap_future(work)
            try:
                return await asyncio.shield(preparing)
            except asyncio.CancelledError:
                # What has not begun never does. Else the thread goes on: what it claims is given back, and the request
                # counts as in flight until then, as its bytes are.
                if not work.cancel():
                    work.add_done_callback(_end_slot)
                    await asyncio.wait([preparing])
                raise

    async def _copy(self, part: Part, size: tuple[int, int], row: Version, document: Document, call: Call) -> _Prepared:
        """Pixels that are the network's input as they are: a few are copied in less time than it takes to reach a
        thread."""
        began = time.monotonic_ns()
        call.check_deadline()
        count, channels = len(part.sent), document.image.channels
        slot = self._link.claim([(_UINT8, (count, *size, channels))], _output_bytes(row, document, size, count))
        try:
            target = slot.bytes_of(0)
            if len(target) <= _FEW:
                _copy_pixels(part, target)
            else:
                with self._link.coming(row.model):
                    await to_its_end(self._threads, lambda: _copy_pixels(part, target))
        except BaseException:
            slot.free()
            raise
        return _Prepared(slot, Placement(*size, 0, 0, *size), Marks(began, began, time.monotonic_ns()))

    def _decode_into_slot(self, sent: Sent, row: Version, document: Document, call: Call) -> _Prepared:
        began = time.monotonic_ns()
        call.check_deadline()
        spec = document.image
        # Decoding comes before the claim: a broken image never occupies a slot.
        picture = self._decode(sent, spec)
        decoded = time.monotonic_ns()
        size = input_size(spec, picture.height, picture.width, buckets=row.buckets)
        slot = self._link.claim([(_UINT8, (1, *size, spec.channels))], _output_bytes(row, document, size, 1))
        try:
            target = slot.inputs[0][0]
            placement = preprocess(picture.pixels, spec, target, (picture.height, picture.width))
        except BaseException:
            slot.free()
            raise
        if spec.fit in ("pad", "letterbox"):
            padding = size[0] * size[1] - placement.height * placement.width
            metrics.PADDING.labels(row.model, str(row.version)).inc(padding)
        return _Prepared(slot, placement, Marks(began, decoded, time.monotonic_ns()))

    def _decode(self, sent: Sent, spec: InputSpec) -> Picture:
        max_pixels = self._max_pixels(spec)
        match sent.image.WhichOneof("source"):
            case "encoded":
                return decode(sent.image.encoded, spec.colour, max_pixels, partial(reduction, spec))
            case "raw":
                raw = sent.image.raw
                return from_raw(sent.pixels, raw.height_px, raw.width_px, raw.channels, spec.colour, max_pixels)
        raise BadImage("image is empty, want a JPEG or PNG file, or raw pixels")

    def _max_pixels(self, spec: InputSpec) -> int:
        # What a model of any size would get as it is must not be larger than its runs can be.
        limits = self._limits
        return min(limits.max_pixels, limits.max_input_pixels) if spec.fit == "pad" else limits.max_pixels

    async def _run(self, prepared: _Prepared, rows: int, row: Version, call: Call) -> _Ran:
        placed = prepared.placement
        try:
            answer, outputs = await prepared.slot.run(
                row,
                rows=rows,
                company=self._catalogue.users(row),
                deadline=call.deadline,
                image=(placed.height, placed.width),
                low_priority=call.low_priority,
            )
        except PredictedLate as error:
            kind = (row.model, row.version, call.low_priority)
            self._outlook.learn(kind, rows, call.deadline, error, time.monotonic_ns())
            raise
        return _Ran({row.outputs[number].name: values for number, values in outputs.items()}, answer)


async def _outcomes(
    part: Part, answer: Callable[[Part], Awaitable[list[Result | ConvoyError]]]
) -> list[Result | ConvoyError]:
    """A result or an error for each image of a part."""
    try:
        return await answer(part)
    except RunFailed as error:
        if len(part.sent) > 1 and not isinstance(error, EngineDied):
            # One of them may be what it failed on: the others are not to suffer for it.
            return [outcome for one in part.alone() for outcome in await _outcomes(one, answer)]
        return [error] * len(part.sent)
    except ConvoyError as error:
        return [error] * len(part.sent)


def _is_low(priority: pb.Priority) -> bool:
    if priority not in _PRIORITIES:
        raise BadRequest(f"priority is {priority}, want one of Priority's values")
    return priority == pb.PRIORITY_LOW


def _copy_pixels(part: Part, target: memoryview) -> None:
    at = 0
    for sent in part.sent:
        end = at + len(sent.pixels)
        target[at:end] = sent.pixels
        at = end


def _image_error(error: ConvoyError) -> pb.ImageError:
    return pb.ImageError(code=status.number_of(error), reason=error.reason, message=status.message_of(error))


def _end_slot(work: Future[_Prepared]) -> None:
    if work.exception() is None:
        work.result().slot.free()


def _output_bytes(row: Version, document: Document, size: tuple[int, int], images: int) -> list[tuple[int, int]]:
    """The (number, bytes) of the outputs for so many images whose input has `size`."""
    pixels = size[0] * size[1]
    sizes = {
        metadata.PROBABILITIES: 4 * len(document.labels),
        metadata.MASK: pixels,
        metadata.CONFIDENCE: pixels,
    }
    return [(number, images * sizes[spec.name]) for number, spec in enumerate(row.outputs) if spec.name in sizes]


def _timings(call: Call, prepared: _Prepared, ran: _Ran) -> pb.Timings:
    taken = observe(call, prepared.marks, ran.answer.times)
    stages = dict(zip(_STAGE_FIELDS, taken.stages, strict=True))
    return pb.Timings(total_seconds=taken.total, batch_size=ran.answer.batch_size, **stages)
