"""convoy.v1.Vision: one image from the wire to its slot, through the engine, and back as labels or a class map."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from service import metadata, metrics
from service.channel import Answer
from service.config import LimitsConfig
from service.errors import BadImage, BadRequest, ConvoyError
from service.frontend import status
from service.frontend.catalogue import Catalogue
from service.frontend.decode import Picture, decode, from_raw
from service.frontend.link import EngineLink, Slot
from service.frontend.postprocess import classification, segmentation
from service.frontend.preprocess import Placement, input_size, preprocess, reduction
from service.frontend.rpc import Call, count_refusal
from service.frontend.tensors import DATATYPES
from service.frontend.threads import to_its_end
from service.frontend.timings import Marks, observe
from service.metadata import Document, InputSpec, TensorInput
from service.pb.convoy.v1 import vision_pb2 as pb
from service.repository import Version

_TASKS = {
    None: pb.TASK_TENSORS,
    "classification": pb.TASK_CLASSIFICATION,
    "segmentation": pb.TASK_SEGMENTATION,
    "matching": pb.TASK_MATCHING,
}
_STATES = {
    "LOADING": pb.MODEL_STATE_LOADING,
    "READY": pb.MODEL_STATE_READY,
    "UNAVAILABLE": pb.MODEL_STATE_UNAVAILABLE,
}

Result = TypeVar("Result", pb.ClassifyResult, pb.SegmentResult)


class _Sent(NamedTuple):
    """An image as it came. `pixels` are those of a raw one, which may be in the message or still where they came."""

    image: pb.Image
    pixels: bytes | memoryview


class _Prepared(NamedTuple):
    """An image in its slot."""

    slot: Slot
    placement: Placement
    marks: Marks


class _Ran(NamedTuple):
    """The network's outputs for one image, without the batch dimension: views, valid until the slot ends."""

    outputs: dict[str, NDArray[Any]]
    answer: Answer


_FEW = 1 << 17  # bytes of raw pixels: copying them takes about as long as the way to a thread and back


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

    async def Classify(self, request: pb.ClassifyRequest, call: Call) -> pb.ClassifyResponse:
        """Ranked labels for each image."""
        row, document = self._catalogue.for_task(request.model, request.version, "classification")
        call.serves(row)

        async def one(sent: _Sent) -> pb.ClassifyResult:
            prepared = await self._prepare(sent, row, document, call)
            with prepared.slot:
                ran = await self._run(prepared, row, call)
                labels = classification(ran.outputs[metadata.PROBABILITIES], document.labels, request.top_k)
            return pb.ClassifyResult(classification=labels, timings=_timings(call, prepared, ran))

        with self._catalogue.using(row):
            results = await self._each(request.images, one, call, pb.ClassifyResult)
        return pb.ClassifyResponse(model=row.model, version=row.version, results=results)

    async def Segment(self, request: pb.SegmentRequest, call: Call) -> pb.SegmentResponse:
        """A class map, of the size that was sent, for each image."""
        row, document = self._catalogue.for_task(request.model, request.version, "segmentation")
        call.serves(row)
        if request.format not in pb.MaskFormat.values():
            raise BadRequest(f"format is {request.format}, want one of MaskFormat's values")

        async def one(sent: _Sent) -> pb.SegmentResult:
            prepared = await self._prepare(sent, row, document, call)
            with prepared.slot:
                ran = await self._run(prepared, row, call)
                outputs = ran.outputs
                confidence = outputs[metadata.CONFIDENCE] if request.with_confidence else None
                # Waited for to its end even where the caller goes: it reads the slot.
                class_map = await to_its_end(
                    self._threads,
                    lambda: segmentation(
                        outputs[metadata.MASK], confidence, document, prepared.placement, request.format
                    ),
                )
            return pb.SegmentResult(segmentation=class_map, timings=_timings(call, prepared, ran))

        with self._catalogue.using(row):
            results = await self._each(request.images, one, call, pb.SegmentResult)
        return pb.SegmentResponse(model=row.model, version=row.version, results=results)

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """Every version in the repository."""
        return pb.ListModelsResponse(models=[_describe(row) for row in self._catalogue.table.versions])

    async def _each(
        self,
        images: Sequence[pb.Image],
        one: Callable[[_Sent], Awaitable[Result]],
        call: Call,
        result: type[Result],
    ) -> list[Result]:
        """One result an image. A single image's error is the request's; of several, each has its own."""
        if not 1 <= len(images) <= self._limits.max_images:
            raise BadRequest(f"request has {len(images)} images, want 1 to {self._limits.max_images}")

        async def guarded(sent: _Sent) -> Result:
            try:
                return await one(sent)
            except ConvoyError as error:
                count_refusal(call, error)
                number = status.number_of(error)
                return result(error=pb.ImageError(code=number, reason=error.reason, message=error.message))

        all_sent = [_Sent(image, call.payloads.get(n) or image.raw.pixels) for n, image in enumerate(images)]
        if len(all_sent) == 1:
            return [await one(all_sent[0])]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(guarded(sent)) for sent in all_sent]
        return [task.result() for task in tasks]

    async def _prepare(self, sent: _Sent, row: Version, document: Document, call: Call) -> _Prepared:
        """Decode, claim a slot, preprocess into it: in one thread, so that an image changes hands once; a few raw
        pixels are copied in less time than it takes to reach a thread."""
        if sent.pixels and _fits(sent, document.image):
            return self._prepare_here(sent, row, document, call)
        with self._link.coming(row.model):
            work = self._threads.submit(self._prepare_here, sent, row, document, call)
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

    def _prepare_here(self, sent: _Sent, row: Version, document: Document, call: Call) -> _Prepared:
        began = time.monotonic_ns()
        call.check_deadline()
        spec = document.image
        # Decoding comes before the claim: a broken image never occupies a slot.
        picture = self._decode(sent, spec)
        decoded = time.monotonic_ns()
        size = input_size(spec, picture.height, picture.width, buckets=row.buckets)
        shape = (1, *size, spec.channels)
        slot = self._link.claim([(np.dtype(np.uint8), shape)], _output_bytes(row, document, size))
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

    def _decode(self, sent: _Sent, spec: InputSpec) -> Picture:
        # What a model of any size would get as it is must not be larger than its runs can be.
        free = spec.fit == "pad"
        max_pixels = min(self._limits.max_pixels, self._limits.max_input_pixels) if free else self._limits.max_pixels
        match sent.image.WhichOneof("source"):
            case "encoded":
                return decode(sent.image.encoded, spec.colour, max_pixels, partial(reduction, spec))
            case "raw":
                raw = sent.image.raw
                return from_raw(sent.pixels, raw.height_px, raw.width_px, raw.channels, spec.colour, max_pixels)
        raise BadImage("image is empty, want a JPEG or PNG file, or raw pixels")

    async def _run(self, prepared: _Prepared, row: Version, call: Call) -> _Ran:
        answer, outputs = await prepared.slot.run(
            row, rows=1, company=self._catalogue.users(row), deadline=call.deadline
        )
        return _Ran({row.outputs[number].name: values[0] for number, values in outputs.items()}, answer)


def _fits(sent: _Sent, spec: InputSpec) -> bool:
    """Whether raw pixels are few, and go into the input as they are."""
    size = (sent.image.raw.height_px, sent.image.raw.width_px)
    return len(sent.pixels) <= _FEW and size == (spec.height or size[0], spec.width or size[1])


def _end_slot(work: Future[_Prepared]) -> None:
    if work.exception() is None:
        work.result().slot.free()


def _output_bytes(row: Version, document: Document, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The (number, bytes) of the outputs for one image whose input has `size`."""
    pixels = size[0] * size[1]
    sizes = {
        metadata.PROBABILITIES: 4 * len(document.labels),
        metadata.MASK: pixels,
        metadata.CONFIDENCE: pixels,
    }
    return [(number, sizes[spec.name]) for number, spec in enumerate(row.outputs) if spec.name in sizes]


def _timings(call: Call, prepared: _Prepared, ran: _Ran) -> pb.Timings:
    timings = observe(call, prepared.marks, ran.answer.times)
    stages = {f"{stage}_seconds": seconds for stage, seconds in timings.stages.items()}
    return pb.Timings(total_seconds=timings.total, batch_size=ran.answer.batch_size, **stages)


def _describe(row: Version) -> pb.ModelInfo:
    info = pb.ModelInfo(
        model=row.model,
        version=row.version,
        state=_STATES[row.state],
        reason=row.reason,
        provider=row.provider,
        max_batch_size=row.max_batch_size,
    )
    if row.state != "READY":
        return info
    document = row.document
    info.task = _TASKS[document.task if document else None]
    if document is None:
        return info
    info.labels.extend(document.labels)
    info.palette.extend(pb.Colour(red=red, green=green, blue=blue) for red, green, blue in document.palette or ())
    if document.input is not None:
        info.input.CopyFrom(_input_size(document.input))
    if document.tensor is not None:
        info.tensor.CopyFrom(_tensor_input(document.tensor))
    if document.provenance is not None:
        info.architecture = document.provenance.architecture
        info.data = document.provenance.data
        info.metrics.update(document.provenance.metrics)
    return info


def _input_size(spec: InputSpec) -> pb.InputSize:
    return pb.InputSize(
        height_px=spec.height or 0,
        width_px=spec.width or 0,
        multiple=spec.multiple,
        colour=spec.colour,
        fit=spec.fit,
    )


def _tensor_input(tensor: TensorInput) -> pb.TensorInput:
    axes = (
        pb.TensorAxis(
            name=axis.name, size=axis.size or 0, spacing=axis.spacing or 0, unit=axis.unit, labels=axis.labels or ()
        )
        for axis in tensor.axes
    )
    return pb.TensorInput(name=tensor.name, datatype=DATATYPES[tensor.dtype], axes=axes, unit=tensor.unit)
