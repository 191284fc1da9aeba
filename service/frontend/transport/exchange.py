"""One call over HTTP/2: its request as it arrives, the task that serves it, and what of its answer is to be sent."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from convoy.service.access import Caller
from convoy.service.errors import ConvoyError
from convoy.service.frontend import early, status
from convoy.service.frontend.status import Code
from convoy.service.frontend.trace import Trace
from convoy.service.frontend.transport import nghttp2
from convoy.service.frontend.transport.answers import OK, OK_ALONE, first_headers, trailers_only
from convoy.service.frontend.transport.interface import Data, Landing, Received, Room
from convoy.service.frontend.transport.messages import Assembler, Refused, framed_for, status_headers
from convoy.service.frontend.transport.nghttp2 import Headers, headers, memmove

if TYPE_CHECKING:
    from convoy.service.frontend.transport.connection import Connection
    from convoy.service.frontend.transport.hub import Method

log = logging.getLogger(__name__)

_WINDOW_STEP = 1 << 20  # bytes of a stream given back to its sender together: each step is a frame
_LEAST_RATE = 1000  # bytes a second of a message that a caller has begun
# Bytes of an answer that are compressed on the loop, in 0.1 ms (a class map) to 1.5 ms (scores, which hardly shrink).
# Longer ones are compressed in a thread, so that they do not delay other calls.
_COMPRESSED_ON_LOOP = 1 << 16


class Exchange:
    """What unary calls and streams have in common. One writer: the front end's loop."""

    __slots__ = (
        "__weakref__",
        "_answering",
        "_assembler",
        "_connection",
        "_counted",
        "_deferred",
        "_encoding",
        "_number",
        "_offset",
        "_out",
        "_received",
        "_received_before",
        "_sent_all",
        "_task",
        "_timer",
        "_trailers",
        "_unacknowledged",
        "_watched_since",
        "caller",
        "deadline",
        "over",
        "receiving",
        "room",
        "silent_since",
        "started",
        "trace",
        "unsent",
    )

    def __init__(
        self,
        connection: "Connection",
        number: int,
        assembler: Assembler,
        deadline: float,
        encoding: bytes,
        room: Room,
    ) -> None:
        self.room = room  # where it counts
        self.deadline = deadline  # seconds of CLOCK_MONOTONIC; inf: none
        self.caller: Caller | None = None  # see Received
        self.trace: Trace | None = None
        self.silent_since = math.inf  # of a stream: when it last sent or received something
        self.receiving = 0  # bytes of a message that is not complete, or not yet served
        self.over = False  # its status is decided, or the caller has gone
        self.unsent = 0  # bytes of the answer
        self._connection = connection
        self._number = number  # of the HTTP/2 stream
        self._assembler = assembler
        self._encoding = encoding  # of the answers
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.started = False  # the task has
        self._counted = True  # among the calls in progress
        self._sent_all = False  # by the caller
        self._received = 0  # bytes, in total
        self._received_before = 0  # until `_watched_since`
        self._watched_since = 0.0
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
            self._assembler.drop()
            self._count_receiving(0)

    def stalls(self, now: float, seconds: float) -> bool:
        """Returns whether the caller has begun a message, and sent next to nothing of it for so long.

        To be called again and again.
        """
        if self.over or not self._is_owed() or not self._watched_since:
            self._watched_since = now
            self._received_before = self._received
            return False
        if now < self._watched_since + seconds:
            return False
        slow = self._received - self._received_before < seconds * _LEAST_RATE
        self._watched_since = now
        self._received_before = self._received
        return slow

    def _is_owed(self) -> bool:
        """Returns whether only the caller can go on with a message."""
        return not self._sent_all

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
        self.started = True
        try:
            self._answer(await handler(*arguments))
        except asyncio.CancelledError:
            if not self.over:
                self._refuse(Code.CANCELLED, "call was cancelled")
        except Exception:
            log.exception("call failed", extra={"fields": self._fields()})
            self._answer(ConvoyError("internal error"))
        finally:
            self.leave_room()

    def _answer(self, answer: bytes | ConvoyError | None) -> None:
        if self.over:
            return
        if isinstance(answer, ConvoyError):
            self._refuse(status.code_of(answer), status.message_of(answer), status.trailers(answer))
            return
        if answer is not None:
            if self._compresses_long(answer):
                self._end_compressed(answer)
                return
            self._put(answer)
        if self._answering:
            self._end(OK)
        else:
            self._end(OK_ALONE if self.trace is None else trailers_only(Code.OK, "", trace=self.trace))

    def _fields(self) -> dict[str, str]:
        return {} if self.trace is None else self.trace.fields()

    def _compresses_long(self, message: bytes) -> bool:
        return self._encoding != b"identity" and len(message) > _COMPRESSED_ON_LOOP

    def _compress(self, message: bytes) -> "asyncio.Future[list[bytes]]":
        """Compresses a long message in a thread. Until then it counts as unsent in full."""
        self._count_unsent(len(message))
        connection = self._connection
        return connection.loop.run_in_executor(connection.hub.compressing, framed_for, message, self._encoding)

    def _end_compressed(self, answer: bytes) -> None:
        """Ends a call once its answer is compressed. Until then it can still be cancelled, or pass its deadline."""

        def end(done: "asyncio.Future[list[bytes]]") -> None:
            if (error := done.exception()) is not None:
                log.error("an answer was not compressed", exc_info=error, extra={"fields": self._fields()})
                self._answer(ConvoyError("internal error"))
            elif not self.over:
                self._send_compressed(done.result(), answer)
                self._end(OK)

        self._compress(answer).add_done_callback(end)

    def _send_compressed(self, pieces: list[bytes], message: bytes) -> None:
        if not self.over:
            self._count_unsent(-len(message))
            self._send(pieces)

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
        self._send(framed_for(message, self._encoding))

    def _send(self, pieces: list[bytes]) -> None:
        self._out += pieces
        self._count_unsent(sum([len(piece) for piece in pieces]))
        if self._answering:
            self._resume()
        else:
            self._answering = True
            self._connection.respond(self._number, first_headers(self.trace, self._encoding), with_data=True)

    def _count_unsent(self, size: int) -> None:
        self.unsent += size
        self._connection.add_unsent(size)

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
        connection, more = self._connection, size - self.receiving
        hub = connection.hub
        hub.receiving += more
        connection.receiving += more
        self.receiving = size
        if more > 0 and hub.receiving > hub.limits.receiving_bytes:
            hub.make_room(connection)
        if more > 0 and hub.receiving > hub.limits.receiving_bytes:
            raise Refused(
                Code.RESOURCE_EXHAUSTED,
                f"{hub.receiving} bytes of requests are on their way, want at most {hub.limits.receiving_bytes}",
            )

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if not self.started:
            self.leave_room()  # a task that is cancelled before its first step never takes one

    def leave_room(self) -> None:
        """Gives its place to another call. A second call does nothing."""
        if self._counted:
            self._counted = False
            self._assembler.release()
            self.room.calls -= 1

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class UnaryExchange(Exchange):
    """A call with one request and one answer."""

    __slots__ = ("_leave", "_message", "_method")

    def __init__(
        self,
        connection: "Connection",
        number: int,
        assembler: Assembler,
        deadline: float,
        encoding: bytes,
        method: "Method",
    ) -> None:
        super().__init__(connection, number, assembler, deadline, encoding, method.room)
        self._method = method
        self._message: Data | Landing | None = None
        self._leave: Callable[[], None] | None = None  # ends the wait for an answer that comes without a task

    def fail(self, code: Code, message: str) -> None:
        """See Exchange."""
        if not self.over and not self.started:  # no method knows of it
            caller = self._connection.source.caller
            early.refused(self.trace, self._method.path, True, caller, code.name, code.name, message)
        super().fail(code, message)

    def receive(self, chunk: Any) -> None:
        # A request is as long as it is: holding its sender back would only delay it.
        self._acknowledge(len(chunk))
        self._received += len(chunk)
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
        received = Received(self._message, time.monotonic(), self.caller, self.trace, self._connection.source)
        self._message = None
        self._count_receiving(0)  # from here on the methods bound what is in flight
        prompt, unary = self._method.prompt, self._method.unary
        if prompt is not None and (leave := prompt(received, self.deadline, self._reply)) is not None:
            self.started = True
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
        self.leave_room()

    def _cancel(self) -> None:
        if self._leave is not None:
            leave, self._leave = self._leave, None
            leave()
            self.leave_room()
        else:
            super()._cancel()
