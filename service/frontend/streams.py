"""One stream: requests come in while there is room, each is answered when it is done, and it ends with the server."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

import grpc.aio

In = TypeVar("In")
Out = TypeVar("Out")


class Conversation(Generic[In, Out]):
    """A stream under way. `read` gives the next message, or gRPC's EOF; `write` sends one.

    At most `most` messages are under way: beyond that nothing is read, and HTTP/2's flow control holds the caller
    back. Once `closing` is set and all that was read is answered, the stream ends. One writer: the front end's loop.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[In]],
        write: Callable[[Out], Awaitable[None]],
        closing: asyncio.Event,
        most: int,
    ) -> None:
        self._read = read
        self._write = write
        self._closing = closing
        self._room = asyncio.Semaphore(most)
        self._writing = asyncio.Lock()
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def hold(self, answer: Callable[[In], Coroutine[Any, Any, None]]) -> None:
        """Until the caller has said all and has every answer, or the server closes. `answer` says what there is."""
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen(answer, group))
            leaving = group.create_task(self._leave(listening))
            listening.add_done_callback(lambda _: leaving.cancel())

    async def say(self, message: Out) -> None:
        """Send a message, once those before it are sent: gRPC takes one at a time."""
        async with self._writing:
            with suppress(grpc.aio.InternalError):  # the caller has gone, and gRPC is about to cancel all of this
                await self._write(message)

    async def _listen(self, answer: Callable[[In], Coroutine[Any, Any, None]], group: asyncio.TaskGroup) -> None:
        while True:
            await self._room.acquire()
            message = await self._read()
            if message is grpc.aio.EOF:
                return
            self._under_way += 1
            self._quiet.clear()
            group.create_task(answer(message)).add_done_callback(self._answered)

    def _answered(self, _: asyncio.Task[None]) -> None:
        self._room.release()
        self._under_way -= 1
        if not self._under_way:
            self._quiet.set()

    async def _leave(self, listening: asyncio.Task[None]) -> None:
        await self._closing.wait()
        await self._quiet.wait()
        listening.cancel()
