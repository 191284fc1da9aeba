"""A call over HTTP/2 that streams in both directions."""

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from convoy.service.frontend.status import Code
from convoy.service.frontend.transport.exchange import Exchange
from convoy.service.frontend.transport.interface import Received, Room, Streaming
from convoy.service.frontend.transport.messages import PREFIX, Assembler, Refused

if TYPE_CHECKING:
    from convoy.service.frontend.transport.connection import Connection

_ROOM = 1 << 16  # bytes of answers that wait to be sent, up to which a stream accepts another
_MOST_PARSED = 64  # messages of a stream. As objects, small ones take thirty times the memory of their bytes.
_PIECE = 1 << 14  # bytes of a stream that are kept together until they are parsed


class StreamExchange(Exchange):
    """A call that streams in both directions: a Stream."""

    __slots__ = ("_arrived", "_backlog", "_inbox", "_reader", "_unread", "_writer")

    def __init__(
        self,
        connection: "Connection",
        number: int,
        assembler: Assembler,
        deadline: float,
        encoding: bytes,
        room: Room,
        handler: Streaming,
    ) -> None:
        super().__init__(connection, number, assembler, deadline, encoding, room)
        self.silent_since = time.monotonic()
        self._inbox: deque[Received] = deque()
        self._backlog: deque[bytes] = deque()  # chunks behind those messages
        self._arrived = 0.0  # of the last chunk
        self._unread = 0  # bytes received beyond what the handler has read: they hold the sender back
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._task = self._connection.loop.create_task(self._serve(handler, self))

    def receive(self, chunk: Any) -> None:
        if self.over:
            self._acknowledge(len(chunk))
            return
        self._arrived = self.silent_since = time.monotonic()
        self._received += len(chunk)
        self._unread += len(chunk)
        if len(self._inbox) < _MOST_PARSED and not self._backlog:
            self._parse(chunk)
        else:
            self._keep(chunk)

    def half_close(self) -> None:
        self._sent_all = True
        self._wake_reader()

    def take(self, place: Any, length: int, flags: Any) -> int:
        filled = super().take(place, length, flags)
        if self._writer is not None and self.unsent < _ROOM and not self._writer.done():
            self._writer.set_result(None)
        return filled

    def close(self) -> None:
        super().close()
        self._connection.acknowledge(self._unread)
        self._unread = 0

    async def read(self) -> Received | None:
        """See Stream."""
        while not self._inbox:
            if self.over:
                return None
            if self._backlog:
                try:
                    self._parse(self._backlog.popleft())
                except Refused as refused:
                    self.fail(refused.code, refused.message)
                    return None
            elif self._sent_all:
                if self._assembler.inside:
                    self.fail(Code.INTERNAL, "stream ends inside a message")
                return None
            else:
                self._reader = self._connection.loop.create_future()
                await self._reader
        received = self._inbox.popleft()
        # The message in transit goes on: the handler will want it next.
        self._release(len(received.data) + PREFIX if self._inbox or self._backlog else self._unread)
        return received

    async def write(self, data: bytes) -> None:
        """See Stream."""
        if self.over:
            return
        self.silent_since = time.monotonic()
        if self._compresses_long(data):
            self._send_compressed(await self._compress(data), data)
        else:
            self._put(data)
        while self.unsent >= _ROOM and not self.over:
            self._writer = self._connection.loop.create_future()
            await self._writer

    def _parse(self, chunk: Any) -> None:
        assembler = self._assembler
        for message in assembler.feed(chunk, _MOST_PARSED - len(self._inbox)):
            self._inbox.append(Received(message, self._arrived, self.caller, self.trace, self._connection.source))
        if rest := assembler.rest:
            assembler.rest = b""
            if self._backlog:
                self._backlog.appendleft(rest)
            else:
                self._keep(rest)
        if not self._inbox:
            self._release(self._unread)  # a message may be longer than the window
        self._count_receiving(assembler.pending)
        self._wake_reader()

    def _keep(self, chunk: Any) -> None:
        self._backlog += [chunk[at : at + _PIECE] for at in range(0, len(chunk), _PIECE)]

    def _release(self, size: int) -> None:
        size = min(size, self._unread)  # a message may have been longer on its way, or shorter
        self._unread -= size
        self._acknowledge(size)

    def _is_owed(self) -> bool:
        reads = self._reader is not None and not self._reader.done() and not self._backlog
        return reads and self._assembler.inside

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
