"""Sends serialised requests over one connection, as calls or over a stream; a request's number selects its model."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
import grpc.aio
import numpy as np

from convoy.service.client.credentials import PLAIN, Credentials
from convoy.service.client.results import ServerError, Timings, read_error, read_message_error, stream_ended
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

_CHOICES = 65_521  # a prime: the sequence of models has this period, which never aligns with that of the images
_STREAMS: dict[
    str, Any
] = {  # the messages of the streams of a method: of a request, of the request in it, of an answer
    "Classify": (pb.ClassifyStreamRequest, pb.ClassifyRequest, pb.ClassifyStreamResponse),
    "Segment": (pb.SegmentStreamRequest, pb.SegmentRequest, pb.SegmentStreamResponse),
}


class Refusal(NamedTuple):
    """Why an image was not answered: `name` is the error's code and reason, `message` its details."""

    name: str
    message: str


class Outcome(NamedTuple):
    """The outcome of one request. `timings` are those of answered images, if the server reports them."""

    model: int  # index in the plan's models
    answered: int  # images
    timings: tuple[Timings, ...]
    refused: tuple[Refusal, ...]  # one per image that was not answered


Send = Callable[[int], Awaitable[Outcome]]  # sends the request with this number; never raises


class Workload(NamedTuple):
    """The requests to one model. All functions accept the request's number; `body` repeats after `period` numbers."""

    method: str  # gRPC method path
    body: Callable[[int], bytes]  # the request, serialised
    read: Callable[[int, bytes], Outcome]  # the outcome of its answer
    images: Callable[[int], int]  # images in the request
    skim: Callable[[int, bytes], Outcome]  # as `read`, without timings: takes a fraction of the time
    period: int


def connect(server: str, credentials: Credentials = PLAIN) -> grpc.aio.Channel:
    """A connection for a load test, on the running loop."""
    return credentials.aio_channel(server)


def unary(
    channel: grpc.aio.Channel,
    workload: Workload,
    model: int,
    *,
    server: str,
    deadline: float,
    metadata: Sequence[tuple[str, str]] = (),
) -> Send:
    """Sends the requests to the model with this index, one call each."""
    call = channel.unary_unary(workload.method)  # no serialisers: bytes in, bytes out

    async def send(number: int) -> Outcome:
        try:
            answer: bytes = await call(workload.body(number), timeout=deadline, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            reason = refusal(read_error(error, server, deadline))
            return Outcome(model, 0, (), (reason,) * workload.images(number))
        return workload.read(number, answer)

    return send


def weighted(sends: Sequence[Send], weights: Sequence[float], seed: int) -> Send:
    """Sends each request to one of the models, drawn by weight: the same one in every process."""
    shares = np.array(weights) / sum(weights)
    choice = np.random.default_rng((seed, 1)).choice(len(sends), _CHOICES, p=shares).tolist()
    return lambda number: sends[choice[number % _CHOICES]](number)


def refusal(error: ServerError) -> Refusal:
    """An error as it appears in a report."""
    code: str = error.code.name
    return Refusal(code if error.reason == code else f"{code} {error.reason}", error.message)


class Streamed:
    """One stream of a connection, opened with the first request and reopened when the server has ended it.

    Requests are numbered, answers arrive in any order. One writer: the running loop. When the server stops reading, due
    requests wait here, and their latency includes it.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        workload: Workload,
        model: int,
        *,
        server: str,
        deadline: float,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._request, self._inner, response = _STREAMS[workload.method.rpartition("/")[2]]
        call = channel.stream_stream(
            f"{workload.method}Stream",
            request_serializer=self._request.SerializeToString,
            response_deserializer=response.FromString,
        )
        self._open = partial(call, metadata=metadata)
        self._workload, self._model, self._server, self._deadline = workload, model, server, deadline
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._unsent: asyncio.Queue[Any] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None

    async def send(self, number: int) -> Outcome:
        """Send the request with this number and wait for its answer. Never raises."""
        if self._reader is None or self._reader.done():
            self._unsent = asyncio.Queue()
            self._reader = asyncio.get_running_loop().create_task(self._read(self._open(self._requests(self._unsent))))
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        inner = self._inner.FromString(self._workload.body(number))
        self._unsent.put_nowait(self._request(id=number, request=inner, deadline_seconds=self._deadline))
        try:
            message = await asyncio.wait_for(answer, self._deadline)
        except TimeoutError:
            return self._refused(number, Refusal("DEADLINE_EXCEEDED", f"no answer within {self._deadline:g} s"))
        except ServerError as error:
            return self._refused(number, refusal(error))
        finally:
            self._waiting.pop(number, None)
        if message.HasField("error"):
            return self._refused(number, refusal(read_message_error(message.error)))
        return self._workload.read(number, message.response.SerializeToString())

    def _refused(self, number: int, reason: Refusal) -> Outcome:
        return Outcome(self._model, 0, (), (reason,) * self._workload.images(number))

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
