"""One stream of requests: reads them while there is room, answers each when it is done, and ends with the server."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from convoy.service.frontend.transport.interface import Received, Stream


class Reply:
    """The answer to one request of a stream, from the request's arrival until it is sent."""

    __slots__ = ("_conversation", "data", "given", "leave", "over", "sent")

    def __init__(self, conversation: "Conversation") -> None:
        self._conversation = conversation
        self.leave: Callable[[], None] | None = None  # ends the wait of a request without a task
        self.over = False  # it is answered, or never will be
        self.data: bytes | None = None
        self.given = False  # the transport has it
        self.sent: asyncio.Future[None] | None = None

    def put(self, data: bytes | None) -> None:
        """Sends the answer once there is room, after those that must be sent before; None: there is none. A second call
        does nothing."""
        if not self.over:
            self.over = True
            self.leave = None
            self.data = data
            self._conversation.send(self)

    async def send(self, data: bytes) -> None:
        """Returns once the answer is sent: see `put`. Raises CancelledError if the caller leaves before the transport
        has it. One who has read it may leave before this task goes on, and has been answered all the same."""
        self.sent = asyncio.get_running_loop().create_future()
        self.put(data)
        try:
            await self.sent
        except asyncio.CancelledError:
            if not self.given:
                raise


Work = Callable[[], Coroutine[Any, Any, None]]
# Answers one message, given the stream's deadline: with the work for a task, or without one (None).
Answer = Callable[[Received, float, Reply], Work | None]


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
        self._ordered = ordered
        self._unanswered: dict[Reply, None] = {}  # in the order of their requests
        self._ready: deque[Reply] = deque()  # to be sent
        self._writer: asyncio.Future[None] | None = None  # waits for the next
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def run(self, answer: Answer) -> None:
        """Runs until the caller has sent all requests and received every answer, or the server closes."""
        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write())
                listening = group.create_task(self._listen(answer, group))
                leaving = group.create_task(self._leave(listening))
                await asyncio.wait([listening])
                leaving.cancel()
                await self._quiet.wait()
                writing.cancel()
        finally:
            for reply in list(self._unanswered):
                if reply.leave is not None:
                    reply.leave()

    def send(self, reply: Reply) -> None:
        """See Reply.put, which calls it once."""
        if self._ordered:
            for each in self._unanswered:
                if not each.over:
                    break
                self._ready.append(each)
            for each in self._ready:
                self._unanswered.pop(each, None)
        else:
            self._ready.append(reply)
            del self._unanswered[reply]
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    async def _listen(self, answer: Answer, group: asyncio.TaskGroup) -> None:
        while True:
            await self._room.acquire()
            message = await self._stream.read()
            if message is None:
                return
            self._quiet.clear()
            reply = Reply(self)
            self._unanswered[reply] = None
            work = answer(message, self._stream.deadline, reply)
            if work is not None:
                group.create_task(self._answered(work, reply))

    async def _answered(self, work: Work, reply: Reply) -> None:
        # The coroutine is made here: a task that is cancelled before its first step would never await one it was given.
        try:
            await work()
        finally:
            reply.put(None)

    async def _write(self) -> None:
        while True:
            while self._ready:
                reply = self._ready.popleft()
                reply.given = True
                if reply.data is not None:
                    await self._stream.write(reply.data)
                self._room.release()
                if reply.sent is not None and not reply.sent.done():
                    reply.sent.set_result(None)
            if not self._unanswered:
                self._quiet.set()
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    async def _leave(self, listening: asyncio.Task[None]) -> None:
        await self._closing.wait()
        await self._quiet.wait()
        listening.cancel()
