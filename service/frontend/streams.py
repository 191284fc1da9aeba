"""One stream of requests: reads them while there is room, answers each when it is done, and ends with the server."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from convoy.service.frontend.transport.interface import Received, Stream


class Reply:
    """The destination of the answer to one request of a stream."""

    def __init__(self, stream: Stream, writing: asyncio.Lock, before: asyncio.Event | None) -> None:
        self._stream = stream
        self._writing = writing
        self._before = before
        self.over = asyncio.Event()

    async def send(self, data: bytes) -> None:
        """Sends the answer once those before it are sent: a transport accepts one at a time."""
        if self._before is not None:
            await self._before.wait()
        async with self._writing:
            await self._stream.write(data)


# Answers one message, given the stream's deadline.
Answer = Callable[[Received, float, Reply], Coroutine[Any, Any, None]]


class Conversation:
    """A stream in progress.

    At most `most` messages are in flight. Beyond that nothing is read, and HTTP/2's flow control applies back-pressure.
    Answers are sent as they are ready or, if `ordered`, in the order of their requests. Once `closing` is set and every
    message read is answered, the stream ends. One writer: the front end's loop.
    """

    def __init__(self, stream: Stream, closing: asyncio.Event, most: int, *, ordered: bool) -> None:
        self._stream = stream
        self._closing = closing
        self._room = asyncio.Semaphore(most)
        self._writing = asyncio.Lock()
        self._ordered = ordered
        self._last: asyncio.Event | None = None  # set once the previous answer is over; only if ordered
        self._unanswered = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def run(self, answer: Answer) -> None:
        """Runs until the caller has sent all requests and received every answer, or the server closes."""
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen(answer, group))
            leaving = group.create_task(self._leave(listening))
            listening.add_done_callback(lambda _: leaving.cancel())

    async def _listen(self, answer: Answer, group: asyncio.TaskGroup) -> None:
        while True:
            await self._room.acquire()
            message = await self._stream.read()
            if message is None:
                return
            self._unanswered += 1
            self._quiet.clear()
            group.create_task(self._answered(answer, message, self._next_reply()))

    def _next_reply(self) -> Reply:
        reply = Reply(self._stream, self._writing, self._last)
        if self._ordered:
            self._last = reply.over
        return reply

    async def _answered(self, answer: Answer, message: Received, reply: Reply) -> None:
        try:
            await answer(message, self._stream.deadline, reply)
        finally:
            reply.over.set()
            self._room.release()
            self._unanswered -= 1
            if not self._unanswered:
                self._quiet.set()

    async def _leave(self, listening: asyncio.Task[None]) -> None:
        await self._closing.wait()
        await self._quiet.wait()
        listening.cancel()
