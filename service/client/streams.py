"""The requests that a client sends over a stream: one per image, numbered in order."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Generic, TypeVar

from google.protobuf.message import Message

from convoy.service.errors import BadRequest

Source = TypeVar("Source")


class Sending(Generic[Source]):
    """The requests of one stream, created by `request(number, image)` when there is room for them.

    gRPC iterates over them, in its own thread or task. So an error in an image ends the requests and is stored in
    `failure`, for the caller that reads the answers.
    """

    def __init__(
        self, images: Iterable[Source] | AsyncIterable[Source], request: Callable[[int, Source], Message]
    ) -> None:
        self._images = images
        self._request = request
        self.sent = 0
        self.complete = False  # all images are sent
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Message]:
        try:
            if not isinstance(self._images, Iterable):
                raise BadRequest(f"images are {type(self._images).__name__}, want something to iterate over")
            for image in self._images:
                yield self._next(image)
            self.complete = True
        except Exception as error:
            self.failure = error

    async def __aiter__(self) -> AsyncIterator[Message]:
        if not isinstance(self._images, AsyncIterable):
            for message in self:
                yield message
            return
        try:
            async for image in self._images:
                yield self._next(image)
            self.complete = True
        except Exception as error:
            self.failure = error

    def _next(self, image: Source) -> Message:
        message = self._request(self.sent, image)
        self.sent += 1
        return message
