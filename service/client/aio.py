"""The client for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from convoy.service import address
from convoy.service.client import large, tiling
from convoy.service.client.channel import ANY_REQUEST, KEEPALIVE, options
from convoy.service.client.credentials import PLAIN, Credentials
from convoy.service.client.large import LargeSegmentation, LargeSource, Progress
from convoy.service.client.requests import (
    ImageSource,
    ImageSources,
    MaskFormat,
    Priority,
    Sending,
    classify_request,
    classify_requests,
    methods,
    segment_request,
    segment_requests,
)
from convoy.service.client.results import (
    Classification,
    Model,
    Segmentation,
    ServerError,
    late,
    next_page,
    read_classifications,
    read_error,
    read_models,
    read_segmentations,
    read_streamed_classification,
    read_streamed_segmentation,
    single,
)
from convoy.service.config import DEFAULT_TARGET
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.rasters.raster import MaskSink

T = TypeVar("T")


# Calls that can share a request: model, version and number of labels.
_Kind = tuple[str, int, int]
_MAX_TOGETHER = 32  # images in a request, which the server accepts by default


class _Waiting(NamedTuple):
    """A call that waits for the result of its image. `deadline` is in seconds from its beginning."""

    image: pb.Image
    result: asyncio.Future[Classification]
    deadline: float | None


class AsyncClient:
    """`Client` for asyncio. Create it inside the running loop; one client supports any number of concurrent calls.

    Files named by path are read synchronously, so pass bytes where the loop must not block on a disk.

    coalesce  whether concurrent calls of `classify` share a request if they begin in one turn of the loop and differ
              only in their images and deadlines. That saves most of the cost of a call. Each caller still gets its own
              result or error by its own deadline; one that cancels leaves the others alone.
    The others are as of `Client`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        priority: Priority = "normal",
        coalesce: bool = False,
        retry: bool = True,
        retry_buffer_bytes: int = ANY_REQUEST,
        balance: bool = True,
        health: bool | None = None,
        keepalive: float = KEEPALIVE,
        credentials: Credentials = PLAIN,
    ) -> None:
        self._target = target = address.target(target)
        self._priority = priority
        self._coalesce = coalesce
        self._gathering: dict[_Kind, list[_Waiting]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        metadata = credentials.metadata()
        found = options(
            target,
            retry=retry,
            retry_buffer_bytes=retry_buffer_bytes,
            balance=balance,
            health=not metadata if health is None else health,
            keepalive=keepalive,
        )
        self._channel = credentials.aio_channel(target, found)
        self._methods = methods(self._channel, metadata)

    async def close(self) -> None:
        """Close the connection; pending calls are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def classify(
        self, image: ImageSource, model: str = "", *, version: int = 0, top_k: int = 5, deadline: float | None = None
    ) -> Classification:
        """As `Client.classify`."""
        if self._coalesce:
            return await self._classify_together(image, (model, version, top_k), deadline)
        return single(await self.classify_many([image], model, version=version, top_k=top_k, deadline=deadline))

    async def classify_many(
        self,
        images: Iterable[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        top_k: int = 5,
        deadline: float | None = None,
    ) -> list[Classification | ServerError]:
        """As `Client.classify_many`."""
        request = classify_request(images, model, version, top_k, self._priority)
        return read_classifications(await self._call("Classify", request, deadline))

    async def segment(
        self,
        image: ImageSource,
        model: str = "",
        *,
        version: int = 0,
        format: MaskFormat = "raw",  # noqa: A002  the field's name
        with_confidence: bool = False,
        deadline: float | None = None,
    ) -> Segmentation:
        """As `Client.segment`."""
        results = await self.segment_many(
            [image], model, version=version, format=format, with_confidence=with_confidence, deadline=deadline
        )
        return single(results)

    async def segment_many(
        self,
        images: Iterable[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        format: MaskFormat = "raw",  # noqa: A002  the field's name
        with_confidence: bool = False,
        deadline: float | None = None,
    ) -> list[Segmentation | ServerError]:
        """As `Client.segment_many`."""
        request = segment_request(images, model, version, format, with_confidence, self._priority)
        return read_segmentations(await self._call("Segment", request, deadline))

    def classify_stream(
        self, images: ImageSources, model: str = "", *, version: int = 0, top_k: int = 5, deadline: float | None = None
    ) -> AsyncIterator[tuple[int, Classification | ServerError]]:
        """As `Client.classify_stream`, for `async for`. The loop waits for each image if `images` is synchronous."""
        requests = classify_requests(images, model, version, top_k, self._priority, deadline)
        return self._stream("ClassifyStream", requests, read_streamed_classification)

    def segment_stream(
        self,
        images: ImageSources,
        model: str = "",
        *,
        version: int = 0,
        format: MaskFormat = "raw",  # noqa: A002  the field's name
        with_confidence: bool = False,
        deadline: float | None = None,
    ) -> AsyncIterator[tuple[int, Segmentation | ServerError]]:
        """As `Client.segment_stream`, for `async for`; `images` as in `classify_stream`."""
        requests = segment_requests(images, model, version, format, with_confidence, self._priority, deadline)
        return self._stream("SegmentStream", requests, read_streamed_segmentation)

    async def segment_large(
        self,
        picture: LargeSource,
        model: str = "",
        *,
        version: int = 0,
        tile: int = 0,
        halo: int | None = None,
        sink: MaskSink | None = None,
        first_row: int = 0,
        format: MaskFormat = "png",  # noqa: A002  the field's name
        progress: Callable[[Progress], None] | None = None,
        deadline: float | None = None,
    ) -> LargeSegmentation:
        """As `Client.segment_large`. The picture is read, and the mask written, in threads."""
        chosen = large.chosen(await self.models(deadline), model, version)
        with large.as_raster(picture) as raster:
            plan = tiling.plan(raster.height, raster.width, chosen, tile, halo)
            job = large.Job(raster, plan, chosen, sink, first_row, progress)

            def stream(tiles: ImageSources) -> AsyncGenerator[tuple[int, Segmentation | ServerError], None]:
                requests = segment_requests(tiles, chosen.model, chosen.version, format, plan.joined, "low", None)
                return self._stream("SegmentStream", requests, read_streamed_segmentation)

            return await large.run_async(job, stream)

    async def models(self, deadline: float | None = None) -> list[Model]:
        """As `Client.models`."""
        listed: list[Model] = []
        request: pb.ListModelsRequest | None = pb.ListModelsRequest()
        while request is not None:
            response = await self._call("ListModels", request, deadline)
            listed += read_models(response)
            request = next_page(response)
        return listed

    async def _classify_together(self, image: ImageSource, kind: _Kind, deadline: float | None) -> Classification:
        model, version, top_k = kind
        (message,) = classify_request([image], model, version, top_k, self._priority).images  # raises what is its own
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Classification] = loop.create_future()
        group = self._gathering.setdefault(kind, [])
        if not group:
            loop.call_soon(self._send_together, kind)
        group.append(_Waiting(message, result, deadline))
        if len(group) >= _MAX_TOGETHER:
            self._send_together(kind)
        try:
            return await asyncio.wait_for(result, deadline)
        except TimeoutError:
            raise late(self._target, deadline) from None

    def _send_together(self, kind: _Kind) -> None:
        """Sends the calls that have gathered."""
        waiting = [one for one in self._gathering.pop(kind, ()) if not one.result.done()]
        if waiting:
            task = asyncio.ensure_future(self._answer_together(kind, waiting))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _answer_together(self, kind: _Kind, waiting: Sequence[_Waiting]) -> None:
        model, version, top_k = kind
        request = classify_request([], model, version, top_k, self._priority)
        request.images.extend([one.image for one in waiting])
        deadlines = [one.deadline for one in waiting]
        longest = None if None in deadlines else max([each for each in deadlines if each is not None])
        results: Sequence[Classification | Exception]
        try:
            results = read_classifications(await self._call("Classify", request, longest))
        except (Exception, asyncio.CancelledError) as error:
            closed = ServerError(grpc.StatusCode.CANCELLED, "CANCELLED", "the client was closed")
            results = [error if isinstance(error, Exception) else closed] * len(waiting)
        for one, result in zip(waiting, results, strict=True):
            if one.result.done():
                continue  # the caller has cancelled, or its deadline has passed
            if isinstance(result, Exception):
                one.result.set_exception(result)
            else:
                one.result.set_result(result)

    async def _call(self, method: str, request: Message, deadline: float | None) -> Any:
        try:
            return await self._methods[method](request, timeout=deadline)
        except grpc.aio.AioRpcError as error:
            raise read_error(error, self._target, deadline) from None

    async def _stream(
        self, method: str, requests: Sending, read: Callable[[Any], T]
    ) -> AsyncGenerator[tuple[int, T], None]:
        call = self._methods[method](aiter(requests))
        answered = 0
        try:
            async for message in call:
                answered += 1
                yield message.id, read(message)
        except grpc.aio.AioRpcError as error:
            raise read_error(error, self._target, None) from None
        finally:
            call.cancel()
        requests.check_complete(answered, self._target)
