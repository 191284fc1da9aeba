"""convoy.v1.Vision: images from the wire to their slots, through the engine, and back as labels or class maps.

check -> prepare (decode, fit, into a slot) -> run -> answer
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from numpy.typing import NDArray

from convoy.service import metadata, metrics
from convoy.service.config import LimitsConfig
from convoy.service.errors import BadRequest, ConvoyError, PredictedLate
from convoy.service.frontend import encoding, status
from convoy.service.frontend.admission import Outlook
from convoy.service.frontend.call import Call, Timings, count_refusal, observe
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.chunks import Chunk, chunks
from convoy.service.frontend.encoding import Labels
from convoy.service.frontend.engine_client import EngineClient
from convoy.service.frontend.model_info import describe
from convoy.service.frontend.postprocess import Ranking, rankings, segmentation
from convoy.service.frontend.prepare import Prepared, Preparer, Served, to_its_end
from convoy.service.ipc.channel import Answer
from convoy.service.metadata import Document, Task
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.preprocess import input_size
from convoy.service.repository import Version

_STAGE_FIELDS = tuple(f"{stage}_seconds" for stage in metrics.STAGES)
_PRIORITIES = frozenset(pb.Priority.values())

Result = TypeVar("Result", bytes, pb.SegmentResult)


class Vision:
    """The servicer. Decodes and postprocesses in `threads`, except for work shorter than the hop to a thread; all else
    runs on the loop."""

    def __init__(
        self, catalogue: Catalogue, client: EngineClient, limits: LimitsConfig, threads: ThreadPoolExecutor
    ) -> None:
        self._catalogue = catalogue
        self._limits = limits
        self._threads = threads
        self._preparer = Preparer(client, limits, threads)
        self._labels: dict[tuple[str, int], tuple[Document, Labels]] = {}
        self._outlook = Outlook()

    async def Classify(self, request: pb.ClassifyRequest, call: Call) -> bytes:
        """Returns ranked labels for each image, as an encoded ClassifyResponse."""
        served = self._check(request, call, "classification")
        row = served.row
        with self._catalogue.using(row):
            found = self._chunks(request.images, served, row.batch_size)
            results = await _each(found, [self._classify(chunk, served, request.top_k) for chunk in found], call)
        return encoding.response(row.model, row.version, [_classify_result(result) for result in results])

    async def Segment(self, request: pb.SegmentRequest, call: Call) -> pb.SegmentResponse:
        """Returns a class map for each image, at the size that was sent."""
        served = self._check(request, call, "segmentation")
        row = served.row
        _check_mask(request, row)
        with self._catalogue.using(row):
            # Postprocessing takes most of the time, so each image uses its own thread.
            found = self._chunks(request.images, served, 1)
            results = await _each(found, [self._segment(chunk, served, request) for chunk in found], call)
        return pb.SegmentResponse(
            model=row.model, version=row.version, results=[_segment_result(result) for result in results]
        )

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """Returns every version in the repository."""
        return pb.ListModelsResponse(models=[describe(row) for row in self._catalogue.table.versions])

    async def _classify(self, chunk: Chunk, served: Served, top_k: int) -> list[bytes | ConvoyError]:
        """Runs a chunk. Returns the encoded classification of each image, or its error."""
        row, document, call = served
        self._admit(chunk, served)
        prepared = await self._preparer.prepare(chunk, served)
        with prepared.lease:
            answer, outputs = await self._run(prepared, len(chunk.sent), served)
            found = rankings(outputs[metadata.PROBABILITIES], len(document.labels), top_k, answer.failed)
        good = sum(isinstance(one, Ranking) for one in found)
        taken = observe(call, prepared.marks, answer.times, good)
        labels, timings = self._labels_of(row, document), encoding.timings(taken.stages, taken.total, answer.batch_size)
        return [labels.result(*one, timings) if isinstance(one, Ranking) else one for one in found]

    async def _segment(
        self, chunk: Chunk, served: Served, request: pb.SegmentRequest
    ) -> list[pb.SegmentResult | ConvoyError]:
        """Runs a chunk of one image. Returns its class map, or its error."""
        document, call = served.document, served.call
        self._admit(chunk, served)
        prepared = await self._preparer.prepare(chunk, served)
        with prepared.lease:
            answer, outputs = await self._run(prepared, 1, served)
            confidence = outputs[metadata.CONFIDENCE][0] if request.with_confidence else None
            work = partial(
                segmentation, outputs[metadata.MASK][0], confidence, document, prepared.placement, request.format
            )
            class_map = await to_its_end(self._threads, work)
        taken = observe(call, prepared.marks, answer.times)
        return [pb.SegmentResult(segmentation=class_map, timings=_timings(taken, answer))]

    def _check(self, request: pb.ClassifyRequest | pb.SegmentRequest, call: Call, task: Task) -> Served:
        """Returns the version that serves a request. Raises UnknownModel, ModelUnavailable, BadRequest."""
        row, document = self._catalogue.for_task(request.model, request.version, task)
        call.serves(row)
        if request.priority not in _PRIORITIES:
            raise BadRequest(f"priority is {request.priority}, want one of Priority's values")
        call.low_priority = request.priority == pb.PRIORITY_LOW
        return Served(row, document, call)

    def _chunks(self, images: Sequence[pb.Image], served: Served, batch_size: int) -> list[Chunk]:
        row, spec = served.row, served.document.image
        if not 1 <= len(images) <= self._limits.max_images:
            raise BadRequest(f"request has {len(images)} images, want 1 to {self._limits.max_images}")
        fitted = partial(input_size, spec, buckets=row.buckets)
        max_pixels = self._preparer.max_pixels(spec)
        return chunks(images, served.call.payloads, spec.channels, fitted, max_pixels, batch_size)

    def _admit(self, chunk: Chunk, served: Served) -> None:
        """Raises PredictedLate if the engine would refuse the chunk."""
        row, call = served.row, served.call
        if served.document.image.height is not None:  # otherwise sizes vary, and one image does not predict the next
            kind = (row.model, row.version, call.low_priority)
            self._outlook.check(row.model, kind, len(chunk.sent), call.deadline, time.monotonic_ns())

    async def _run(self, prepared: Prepared, rows: int, served: Served) -> tuple[Answer, dict[str, NDArray[Any]]]:
        """Returns the engine's answer, and its outputs by name: views, (rows, ...), valid until the lease ends."""
        row, call, placed = served.row, served.call, prepared.placement
        try:
            answer, outputs = await prepared.lease.run(
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
        return answer, {row.outputs[number].name: values for number, values in outputs.items()}

    def _labels_of(self, row: Version, document: Document) -> Labels:
        known, labels = self._labels.get((row.model, row.version), (None, None))
        if labels is None or known is not document:
            labels = Labels(document.labels)
            there = {(each.model, each.version) for each in self._catalogue.table.versions}
            self._labels = {version: of for version, of in self._labels.items() if version in there}
            self._labels[row.model, row.version] = document, labels
        return labels


async def _each(
    found: Sequence[Chunk], answers: Sequence[Coroutine[Any, Any, list[Result | ConvoyError]]], call: Call
) -> list[Result | ConvoyError]:
    """Returns the result of each image, or its error, in the order of the request. Raises the error of a single image,
    because it is the request's error."""
    if len(found) == 1:
        outcomes = [await answers[0] if len(found[0].sent) == 1 else await _caught(found[0], answers[0])]
    else:
        async with asyncio.TaskGroup() as group:
            pairs = zip(found, answers, strict=True)
            tasks = [group.create_task(_caught(chunk, answer)) for chunk, answer in pairs]
        outcomes = [task.result() for task in tasks]
    results: dict[int, Result | ConvoyError] = {}
    for chunk, outcome in zip(found, outcomes, strict=True):
        results.update(zip(chunk.numbers, outcome, strict=True))
    if len(results) == 1 and isinstance(results[0], ConvoyError):
        raise results[0]
    for result in results.values():
        if isinstance(result, ConvoyError):
            count_refusal(call, result)
    return [results[number] for number in range(len(results))]


async def _caught(chunk: Chunk, answer: Coroutine[Any, Any, list[Result | ConvoyError]]) -> list[Result | ConvoyError]:
    """Returns a chunk's results. An error of the chunk applies to each of its images, and to no other."""
    try:
        return await answer
    except ConvoyError as error:
        return [error] * len(chunk.sent)


def _check_mask(request: pb.SegmentRequest, row: Version) -> None:
    if request.format not in pb.MaskFormat.values():
        raise BadRequest(f"format is {request.format}, want one of MaskFormat's values")
    if request.with_confidence and metadata.CONFIDENCE not in [spec.name for spec in row.outputs]:
        raise BadRequest(f"with_confidence: model {row.model!r} version {row.version} answers masks alone: want false")


def _classify_result(result: bytes | ConvoyError) -> bytes:
    if isinstance(result, ConvoyError):
        return pb.ClassifyResult(error=_image_error(result)).SerializeToString()
    return result


def _segment_result(result: pb.SegmentResult | ConvoyError) -> pb.SegmentResult:
    return pb.SegmentResult(error=_image_error(result)) if isinstance(result, ConvoyError) else result


def _image_error(error: ConvoyError) -> pb.ImageError:
    return pb.ImageError(code=status.code_of(error), reason=error.reason, message=status.message_of(error))


def _timings(taken: Timings, answer: Answer) -> pb.Timings:
    stages = dict(zip(_STAGE_FIELDS, taken.stages, strict=True))
    return pb.Timings(total_seconds=taken.total, batch_size=answer.batch_size, **stages)
