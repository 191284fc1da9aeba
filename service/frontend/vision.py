"""convoy.v1.Vision: images from the wire to their slots, through the engine, and back as labels or class maps.

check -> prepare (decode, fit, into a slot) -> run -> answer
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from numpy.typing import NDArray

from convoy.service import metadata, metrics
from convoy.service.config import LimitsConfig
from convoy.service.errors import BadRequest, ConvoyError, PredictedLate
from convoy.service.frontend import encoding, status
from convoy.service.frontend.admission import Outlook
from convoy.service.frontend.call import Call, count_refusal, observe
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.coalescing import Row, pays
from convoy.service.frontend.decoder import Decoder
from convoy.service.frontend.encoding import Labels
from convoy.service.frontend.engine_client import EngineClient, Lease
from convoy.service.frontend.model_info import page
from convoy.service.frontend.postprocess import Ranking, rankings, segmentation
from convoy.service.frontend.prepare import Chunk, Preparer, to_its_end
from convoy.service.frontend.threads import Threads
from convoy.service.ipc.channel import Answer
from convoy.service.metadata import Document, Task
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.repository import Table, Version

_TIMING_FIELDS = tuple(f"{stage}_seconds" for stage in (*metrics.STAGES, "total"))
_PRIORITIES = frozenset(pb.Priority.values())

_MAP_SECONDS = 2e-8  # that a pixel of a class map takes to be resized and packed

Result = TypeVar("Result", bytes, pb.SegmentResult)


class Vision:
    """The servicer. Decodes and postprocesses in `threads`, except for work shorter than the hop to a thread; all else
    runs on the loop."""

    joinable = ("Classify",)

    def __init__(
        self, catalogue: Catalogue, client: EngineClient, limits: LimitsConfig, threads: Threads, decoder: Decoder
    ) -> None:
        self._catalogue = catalogue
        self._threads = threads
        self._preparer = Preparer(client, limits, threads, decoder)
        self._labels: dict[tuple[str, int], tuple[Document, Labels]] = {}
        self._listed: tuple[Table, bytes] | None = None  # the answer of ListModels for a table
        self._outlook = Outlook()

    async def Classify(self, request: pb.ClassifyRequest, call: Call) -> bytes:
        """Returns ranked labels for each image, as an encoded ClassifyResponse."""
        row = self._check(request, call, "classification")
        with self._catalogue.using(row):
            chunks = self._preparer.chunks(request.images, call, row.batch_size)
            results = await _all(chunks, [self._classify(chunk, call, request.top_k) for chunk in chunks], call)
        return encoding.response(row.model, row.version, [_classify_result(result) for result in results])

    async def Segment(self, request: pb.SegmentRequest, call: Call) -> pb.SegmentResponse:
        """Returns a class map for each image, at the size that was sent."""
        row = self._check(request, call, "segmentation")
        _check_mask(request, row)
        with self._catalogue.using(row):
            # Postprocessing takes most of the time, so each image uses its own thread.
            chunks = self._preparer.chunks(request.images, call, 1)
            results = await _all(chunks, [self._segment(chunk, call, request) for chunk in chunks], call)
        return pb.SegmentResponse(
            model=row.model, version=row.version, results=[_segment_result(result) for result in results]
        )

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse | bytes:
        """Returns every version in the repository, of the models that the caller may call, a page at a time. Where that
        is everybody, the first page is encoded once for each table. Raises BadRequest."""
        table = self._catalogue.table
        if call.caller is not None or request.page_token:
            return page([row for row in table.versions if call.sees(row.model)], request.page_token)
        if self._listed is None or self._listed[0] is not table:
            self._listed = table, page(table.versions, "").SerializeToString()
        return self._listed[1]

    async def _classify(self, chunk: Chunk, call: Call, top_k: int) -> list[bytes | ConvoyError]:
        """Runs a chunk. Returns the encoded classification of each image, or its error."""
        self._admit(len(chunk.images), call)  # PredictedLate
        with await self._preparer.prepare(chunk, call) as lease:  # BadImage, QueueFull, DeadlinePassed
            answer, outputs = await self._run(lease, chunk, call)  # the engine's errors
            labels = len(call.document.labels)
            ranked = rankings(outputs[metadata.PROBABILITIES], labels, top_k, answer.errors())  # RunFailed
        good = sum([isinstance(one, Ranking) for one in ranked])
        timings = encoding.timings(observe(call, lease, answer, good), answer.batch_size)
        names = self._labels_of(call.row, call.document)
        return [names.result(*one, timings) if isinstance(one, Ranking) else one for one in ranked]

    async def _segment(
        self, chunk: Chunk, call: Call, request: pb.SegmentRequest
    ) -> list[pb.SegmentResult | ConvoyError]:
        """Runs a chunk of one image. Returns its class map, or its error."""
        self._admit(1, call)
        with await self._preparer.prepare(chunk, call) as lease:
            answer, outputs = await self._run(lease, chunk, call)
            confidence = outputs[metadata.CONFIDENCE][0] if request.with_confidence else None
            mask = outputs[metadata.MASK][0]
            work = partial(segmentation, mask, confidence, call.document, lease.placement, request.format)
            seconds = _MAP_SECONDS * lease.placement.height * lease.placement.width
            class_map = await to_its_end(self._threads, call.who, work, seconds)
        timings = zip(_TIMING_FIELDS, observe(call, lease, answer), strict=True)
        return [
            pb.SegmentResult(segmentation=class_map, timings=pb.Timings(batch_size=answer.batch_size, **dict(timings)))
        ]

    def row(self, request: pb.ClassifyRequest, call: Call) -> Row | None:
        """See Joinable: an image that is the network's input as it is can be a row. One that would be refused
        is refused at once."""
        if len(request.images) != 1 or not (pixels := call.payloads.get(0) or request.images[0].raw.pixels):
            return None
        version = self._check(request, call, "classification")
        self._admit(1, call)
        if not version.batched:
            return None
        document = call.document
        size = self._preparer.unchanged_size(request.images[0], pixels, call)
        if size is None:
            return None
        shape = (*size, document.image.channels)
        outputs = [
            (number, 4 * len(document.labels))
            for number, spec in enumerate(version.outputs)
            if spec.name == metadata.PROBABILITIES
        ]
        alone = call.landing is not None or not pays(version)
        return Row((size, call.low_priority), [("uint8", shape)], outputs, [pixels], size, request.top_k, alone)

    def learn(self, call: Call, rows: int, deadline: float, error: PredictedLate) -> None:
        """See Joinable."""
        self._outlook.learn(_kind(call), rows, deadline, error, time.monotonic())

    def answers(
        self,
        version: Version,
        rows: Sequence[Row],
        seconds: Sequence[Sequence[float]],
        answer: Answer,
        outputs: dict[int, NDArray[Any]],
    ) -> list[bytes | ConvoyError]:
        """See Joinable."""
        document = version.document
        assert document is not None
        ((_, probabilities),) = outputs.items()
        labels = len(document.labels)
        by_count = {
            top_k: rankings(probabilities, labels, top_k, answer.errors()) for top_k in {row.detail for row in rows}
        }
        names = self._labels_of(version, document)
        results: list[bytes | ConvoyError] = []
        for number, (row, spans) in enumerate(zip(rows, seconds, strict=True)):
            ranked = by_count[row.detail][number]
            if isinstance(ranked, Ranking):
                result = names.result(*ranked, encoding.timings(spans, answer.batch_size))
                results.append(encoding.response(version.model, version.version, [result]))
            else:
                results.append(ranked)
        return results

    def _check(self, request: pb.ClassifyRequest | pb.SegmentRequest, call: Call, task: Task) -> Version:
        """Returns the version that serves a request.

        Raises NotPermitted, UnknownModel, ModelUnavailable, BadRequest.
        """
        call.permit(request.model)
        row = self._catalogue.for_task(request.model, request.version, task, call.sees)
        call.serves(row)
        if request.priority not in _PRIORITIES:
            raise BadRequest(f"priority is {request.priority}, want one of Priority's values")
        call.low_priority = request.priority == pb.PRIORITY_LOW
        return row

    def _admit(self, rows: int, call: Call) -> None:
        """Raises PredictedLate if the engine would refuse a chunk of `rows` images."""
        if call.document.image.height is not None:  # otherwise sizes vary, and one image does not predict the next
            self._outlook.check(call.model, _kind(call), rows, call.deadline, time.monotonic())

    async def _run(self, lease: Lease, chunk: Chunk, call: Call) -> tuple[Answer, dict[str, NDArray[Any]]]:
        """Returns the engine's answer, and its outputs by name: views, (rows, ...), valid until the lease ends."""
        row, rows = call.row, len(chunk.images)
        try:
            answer, outputs = await lease.run(
                row,
                rows=rows,
                in_flight=self._catalogue.users(row),
                deadline=call.deadline,
                low_priority=call.low_priority,
            )
        except PredictedLate as error:
            self.learn(call, rows, call.deadline, error)
            raise
        return answer, {row.outputs[number].name: values for number, values in outputs.items()}

    def _labels_of(self, row: Version, document: Document) -> Labels:
        known, labels = self._labels.get((row.model, row.version), (None, None))
        if labels is None or known is not document:
            labels = Labels(document.labels)
            present = {(each.model, each.version) for each in self._catalogue.table.versions}
            self._labels = {version: of for version, of in self._labels.items() if version in present}
            self._labels[row.model, row.version] = document, labels
        return labels


async def _all(
    chunks: Sequence[Chunk], answers: Sequence[Coroutine[Any, Any, list[Result | ConvoyError]]], call: Call
) -> list[Result | ConvoyError]:
    """Returns the result of each image, or its error, in the order of the request. Raises the error of a single image,
    because it is the request's error."""
    if len(chunks) == 1:
        by_chunk = [await answers[0] if len(chunks[0].images) == 1 else await _caught(chunks[0], answers[0])]
    else:
        async with asyncio.TaskGroup() as group:
            pairs = zip(chunks, answers, strict=True)
            tasks = [group.create_task(_caught(chunk, answer)) for chunk, answer in pairs]
        by_chunk = [task.result() for task in tasks]
    results: dict[int, Result | ConvoyError] = {}
    for chunk, of_chunk in zip(chunks, by_chunk, strict=True):
        results.update(zip(chunk.numbers, of_chunk, strict=True))
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
        error.forget_origin()
        return [error] * len(chunk.images)


def _kind(call: Call) -> tuple[str, int, bool]:
    """Returns what requests have in common that wait in one queue with one priority."""
    return call.row.model, call.row.version, call.low_priority


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
