"""Sends requests to a model over one stream: requests are numbered, answers arrive in any order."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc.aio

from convoy.service.bench.asking import Question, refusal
from convoy.service.bench.drive import Outcome, Refusal
from convoy.service.client.results import (
    ServerError,
    read_error,
    read_streamed_classification,
    read_streamed_segmentation,
    stream_ended,
)
from convoy.service.pb.convoy.v1 import vision_pb2 as pb


class _Kind(NamedTuple):
    request: Any  # the message classes
    inner: Any
    response: Any
    read: Any  # a response's first result, or the ServerError of its request


_KINDS = {
    "Classify": _Kind(
        pb.ClassifyStreamRequest, pb.ClassifyRequest, pb.ClassifyStreamResponse, read_streamed_classification
    ),
    "Segment": _Kind(pb.SegmentStreamRequest, pb.SegmentRequest, pb.SegmentStreamResponse, read_streamed_segmentation),
}


class Streamed:
    """One stream of a connection, opened with the first request and reopened when the server has ended it.

    One writer: the running loop. When the server stops reading, due requests wait here, and their latency includes it.
    """

    def __init__(
        self, channel: grpc.aio.Channel, question: Question, model: int, *, server: str, deadline: float
    ) -> None:
        self._kind = _KINDS[question.method.rpartition("/")[2]]
        self._open = channel.stream_stream(
            f"{question.method}Stream",
            request_serializer=self._kind.request.SerializeToString,
            response_deserializer=self._kind.response.FromString,
        )
        self._question, self._model, self._server, self._deadline = question, model, server, deadline
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._unsent: asyncio.Queue[Any] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None

    async def ask(self, number: int) -> Outcome:
        """Send the request with this number and wait for its answer. Never raises."""
        if self._reader is None or self._reader.done():
            self._unsent = asyncio.Queue()
            self._reader = asyncio.get_running_loop().create_task(self._read(self._open(self._requests(self._unsent))))
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        inner = self._kind.inner.FromString(self._question.body(number))
        self._unsent.put_nowait(self._kind.request(id=number, request=inner, deadline_seconds=self._deadline))
        try:
            message = await asyncio.wait_for(answer, self._deadline)
        except TimeoutError:
            return self._refused(number, Refusal("DEADLINE_EXCEEDED", f"no answer within {self._deadline:g} s"))
        except ServerError as error:
            return self._refused(number, refusal(error))
        finally:
            self._waiting.pop(number, None)
        if message.HasField("error"):
            return self._refused(number, refusal(self._kind.read(message)))
        return self._question.read(number, message.response.SerializeToString())

    def _refused(self, number: int, why: Refusal) -> Outcome:
        return Outcome(self._model, 0, (), (why,) * self._question.images(number))

    async def _requests(self, unsent: asyncio.Queue[Any]) -> AsyncIterator[Any]:
        while True:
            yield await unsent.get()

    async def _read(self, call: Any) -> None:
        """Read until the stream ends, then fail all unanswered requests."""
        try:
            async for message in call:
                if (answer := self._waiting.get(message.id)) is not None and not answer.done():
                    answer.set_result(message)
            error = stream_ended(self._server, len(self._waiting))
        except grpc.aio.AioRpcError as broken:
            error = read_error(broken, self._server, self._deadline)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
