"""One call over HTTP/2: its request as it arrives, the task that serves it, and what of its answer is to be sent."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from convoy.service.access import Caller
from convoy.service.errors import ConvoyError
from convoy.service.frontend import status
from convoy.service.frontend.status import Code
from convoy.service.frontend.trace import REQUEST_ID, Trace
from convoy.service.frontend.transport import nghttp2
from convoy.service.frontend.transport.interface import Data, Received, Streaming
from convoy.service.frontend.transport.messages import PREFIX, Assembler, Refused, framed, status_headers
from convoy.service.frontend.transport.nghttp2 import Headers, headers, memmove

if TYPE_CHECKING:
    from convoy.service.frontend.transport.connection import Connection
    from convoy.service.frontend.transport.hub import Method

log = logging.getLogger(__name__)

_BEGINNING = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
]
_RESPONSE = headers(*_BEGINNING, constant=True)
_OK = headers((b"grpc-status", b"0"), constant=True)
_OK_ALONE = headers(*_BEGINNING, (b"grpc-status", b"0"), constant=True)
_WINDOW_STEP = 1 << 20  # bytes of a stream given back to its sender together: each step is a frame
_ROOM = 1 << 16  # bytes of answers that wait to be sent, up to which a stream accepts another
_MOST_PARSED = 64  # messages of a stream. As objects, small ones take thirty times the memory of their bytes.
_PIECE = 1 << 14  # bytes of a stream that are kept together until they are parsed


def trailers_only(
    code: Code, message: str, pairs: Iterable[tuple[str, str | bytes]] = (), trace: Trace | None = None
) -> Headers:
    """Returns the headers of an answer without a message."""
    return headers(*_beginning(trace), *status_headers(code, message, pairs))


def _beginning(trace: Trace | None) -> list[tuple[bytes, bytes]]:
    """Returns the first headers of an answer: the caller gets its name of the call back."""
    if trace is None or not trace.request_id:
        return _BEGINNING
    return [*_BEGINNING, (REQUEST_ID.encode(), trace.request_id.encode())]


class Exchange:
    """What unary calls and streams have in common. One writer: the front end's loop."""

    __slots__ = (
        "__weakref__",
        "_answering",
        "_assembler",
        "_connection",
        "_counted",
        "_deferred",
        "_number",
        "_offset",
        "_out",
        "_receiving",
        "_sent_all",
        "_started",
        "_task",
        "_timer",
        "_trailers",
        "_unacknowledged",
        "caller",
        "deadline",
        "over",
        "trace",
        "unsent",
    )

    def __init__(self, connection: "Connection", number: int, assembler: Assembler, deadline: float) -> None:
        self.deadline = deadline  # seconds of CLOCK_MONOTONIC; inf: none
        self.caller: Caller | None = None  # see Received
        self.trace: Trace | None = None
        self.over = False  # its status is decided, or the caller has gone
        self.unsent = 0  # bytes of the answer
        self._connection = connection
        self._number = number  # of the HTTP/2 stream
        self._assembler = assembler
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._started = False  # the task has
        self._counted = True  # among the calls in progress
        self._sent_all = False  # by the caller
        self._receiving = 0  # bytes of a message that is not complete, or not yet served
        self._unacknowledged = 0  # bytes of the stream's window to be given back
        self._answering = False  # the headers of the answer are submitted
        self._deferred = False  # nghttp2 waits for more of the answer
        self._out: deque[bytes] = deque()
        self._offset = 0  # in the first piece
        self._trailers: Headers | None = None

    def expire_in(self, seconds: float) -> None:
        """Ends the call with DEADLINE_EXCEEDED unless it ends before."""
        self._timer = self._connection.loop.call_later(seconds, self.fail, Code.DEADLINE_EXCEEDED, "deadline passed")

    def receive(self, chunk: Any) -> None:
        """Accepts a part of the request, a buffer that is valid only during this call. Raises Refused."""
        raise NotImplementedError

    def half_close(self) -> None:
        """Records that the request is complete. Raises Refused."""
        raise NotImplementedError

    def fail(self, code: Code, message: str) -> None:
        """Ends the call with this status, and cancels its task."""
        if not self.over:
            self._refuse(code, message)
            self._cancel()

    def close(self) -> None:
        """Records that the stream has closed: nothing more can be sent."""
        if not self.over:
            self.over = True
            self._stop_timer()
            self._cancel()
        self._count_receiving(0)
        self._connection.unsent -= self.unsent
        self.unsent = 0
        self._out.clear()

    def take(self, place: Any, length: int, flags: Any) -> int:
        """Writes the next `length` bytes of the answer at most; nghttp2's data source. Returns their number."""
        out, filled = self._out, 0
        while out and filled < length:
            piece, at = out[0], self._offset
            size = min(len(piece) - at, length - filled)
            source = piece if size == len(piece) else memoryview(piece)[at : at + size]
            memmove(place + filled if filled else place, source, size)
            filled += size
            if at + size == len(piece):
                out.popleft()
                self._offset = 0
            else:
                self._offset = at + size
        self.unsent -= filled
        self._connection.unsent -= filled
        if out:
            return filled
        if self._trailers is not None:
            flags[0] = nghttp2.EOF | nghttp2.NO_END_STREAM
            self._connection.submit_trailers(self._number, self._trailers)
        elif not filled:
            self._deferred = True
            return nghttp2.DEFERRED
        return filled

    async def _serve(self, handler: Callable[..., Awaitable[bytes | ConvoyError | None]], *arguments: object) -> None:
        """The task of the call."""
        self._started = True
        try:
            self._answer(await handler(*arguments))
        except asyncio.CancelledError:
            if not self.over:
                self._refuse(Code.CANCELLED, "call was cancelled")
        except Exception:
            log.exception("call failed", extra={"fields": {} if self.trace is None else self.trace.fields()})
            self._answer(ConvoyError("internal error"))
        finally:
            self._count_out()

    def _answer(self, answer: bytes | ConvoyError | None) -> None:
        if self.over:
            return
        if isinstance(answer, ConvoyError):
            self._refuse(status.code_of(answer), status.message_of(answer), status.trailers(answer))
            return
        if answer is not None:
            self._put(answer)
        if self._answering:
            self._end(_OK)
        else:
            self._end(_OK_ALONE if self.trace is None else trailers_only(Code.OK, "", trace=self.trace))

    def _refuse(self, code: Code, message: str, pairs: Iterable[tuple[str, str | bytes]] = ()) -> None:
        if self._answering:
            self._end(headers(*status_headers(code, message, pairs)))
        else:
            self._end(trailers_only(code, message, pairs, self.trace))

    def _end(self, trailers: Headers) -> None:
        """Ends the answer with `trailers` once its messages are sent; if it has none, they are the whole answer."""
        self.over = True
        self._stop_timer()
        if self._answering:
            self._trailers = trailers
            self._resume()
        else:
            self._connection.respond(self._number, trailers)
        if not self._sent_all:
            self._connection.reset_once_answered(self._number)

    def _put(self, message: bytes) -> None:
        pieces = framed(message)
        size = len(message) + PREFIX
        self._out += pieces
        self.unsent += size
        self._connection.add_unsent(size)
        if self._answering:
            self._resume()
        else:
            self._answering = True
            beginning = _RESPONSE if self.trace is None else headers(*_beginning(self.trace))
            self._connection.respond(self._number, beginning, with_data=True)

    def _resume(self) -> None:
        if self._deferred:
            self._deferred = False
            self._connection.resume(self._number)

    def _acknowledge(self, size: int) -> None:
        """Gives the sender `size` bytes of the windows back."""
        self._connection.acknowledge(size)
        self._unacknowledged += size
        if self._unacknowledged >= _WINDOW_STEP and not self._sent_all:
            self._connection.acknowledge_stream(self._number, self._unacknowledged)
            self._unacknowledged = 0

    def _count_receiving(self, size: int) -> None:
        hub = self._connection.hub
        hub.receiving += size - self._receiving
        self._receiving = size
        if size and hub.receiving > hub.limits.receiving_bytes:
            raise Refused(
                Code.RESOURCE_EXHAUSTED,
                f"{hub.receiving} bytes of requests are on their way, want at most {hub.limits.receiving_bytes}",
            )

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if not self._started:
            self._count_out()  # a task that is cancelled before its first step never takes one

    def _count_out(self) -> None:
        if self._counted:
            self._counted = False
            self._connection.count_out()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class UnaryExchange(Exchange):
    """A call with one request and one answer."""

    __slots__ = ("_leave", "_message", "_method")

    def __init__(
        self, connection: "Connection", number: int, assembler: Assembler, deadline: float, method: "Method"
    ) -> None:
        super().__init__(connection, number, assembler, deadline)
        self._method = method
        self._message: Data | None = None
        self._leave: Callable[[], None] | None = None  # ends the wait for an answer that comes without a task

    def receive(self, chunk: Any) -> None:
        # A request is as long as it is: holding its sender back would only delay it.
        self._acknowledge(len(chunk))
        if self.over:
            return
        for message in self._assembler.feed(chunk):
            if self._message is not None:
                raise Refused(Code.INTERNAL, "call has several messages, want 1")
            self._message = message
        self._count_receiving(self._assembler.pending if self._message is None else len(self._message))

    def half_close(self) -> None:
        self._sent_all = True
        if self.over:
            return
        if self._message is None or self._assembler.inside:
            raise Refused(Code.INTERNAL, "call ends before its message is complete")
        received = Received(self._message, time.monotonic(), self.caller, self.trace)
        self._message = None
        self._count_receiving(0)  # from here on the methods bound what is in flight
        prompt, unary = self._method.prompt, self._method.unary
        if prompt is not None and (leave := prompt(received, self.deadline, self._reply)) is not None:
            self._started = True
            self._leave = leave
            return
        assert unary is not None
        # A step by hand would spare the task of a call that never waits. Those of models wait for the engine, and code
        # that asks for its task (asyncio.timeout) finds it only inside of one. Making one takes 1 us.
        self._task = self._connection.loop.create_task(self._serve(unary, received, self.deadline))

    def _reply(self, answer: bytes | ConvoyError) -> None:
        """Ends a call that has no task."""
        self._leave = None
        self._answer(answer)
        self._count_out()

    def _cancel(self) -> None:
        if self._leave is not None:
            leave, self._leave = self._leave, None
            leave()
            self._count_out()
        else:
            super()._cancel()


class StreamExchange(Exchange):
    """A call that streams in both directions: a Stream."""

    __slots__ = ("_arrived", "_backlog", "_inbox", "_reader", "_unread", "_writer")

    def __init__(
        self, connection: "Connection", number: int, assembler: Assembler, deadline: float, handler: Streaming
    ) -> None:
        super().__init__(connection, number, assembler, deadline)
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
        self._arrived = time.monotonic()
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
        self._put(data)
        while self.unsent >= _ROOM and not self.over:
            self._writer = self._connection.loop.create_future()
            await self._writer

    def _parse(self, chunk: Any) -> None:
        assembler = self._assembler
        for message in assembler.feed(chunk, _MOST_PARSED - len(self._inbox)):
            self._inbox.append(Received(message, self._arrived, self.caller, self.trace))
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

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
