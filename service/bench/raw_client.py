"""A client that costs little CPU time: prepared bytes over libnghttp2, where grpcio's client would be the limit.

It behaves as grpcio's client does where a load test can see it: one connection, deadlines, reconnection.
"""

import asyncio
import base64
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import grpc

from convoy.service.bench.calls import Outcome, Refusal, Send, Workload, refusal
from convoy.service.bench.http2 import Call, Connection, Session
from convoy.service.client.results import read_error
from convoy.service.errors import BadConfig
from convoy.service.frontend.transport import nghttp2
from convoy.service.frontend.transport.nghttp2 import Headers, Library, NoLibrary, headers

SAMPLE = 16  # one answer in 16 is read with its timings
_PREPARED_BYTES = 256 << 20  # of requests
_FAILURES = 1000  # different ones that are remembered
_UNIX = "unix:"
_PREFIX = 5  # bytes before a message: a flag, and its length
_CONNECTING = 20.0  # seconds for an attempt to connect, as in gRPC
_BACKOFF, _GROWTH, _LONGEST_BACKOFF = 1.0, 1.6, 120.0  # seconds after a failed attempt to connect: those of gRPC
# The codes that gRPC prescribes for errors of HTTP/2 and for its status; others are INTERNAL and UNKNOWN.
_RESET = {
    nghttp2.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    nghttp2.CANCEL: grpc.StatusCode.CANCELLED,
    nghttp2.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_HTTP_STATUS = {
    b"400": grpc.StatusCode.INTERNAL,
    b"401": grpc.StatusCode.UNAUTHENTICATED,
    b"403": grpc.StatusCode.PERMISSION_DENIED,
    b"404": grpc.StatusCode.UNIMPLEMENTED,
    **dict.fromkeys((b"429", b"502", b"503", b"504"), grpc.StatusCode.UNAVAILABLE),
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RawClient:
    """Sends calls to a server over one connection, opened with the first call and again after it is lost.

    All calls have the same deadline. One writer: the running loop, on which it is constructed.
    """

    def __init__(self, server: str, deadline: float, session: Session | None = None) -> None:
        """`server` is HOST:PORT, [HOST]:PORT or unix:PATH, `deadline` in seconds. Raises BadConfig.

        Clients on one loop may share a session.
        """
        self.loop = asyncio.get_running_loop()
        self.session = session or Session(library())
        self._server = server
        self._address = address(server)
        self._deadline = deadline
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: list[Call] = []  # for the connection
        self._open: dict[Call, None] = {}  # unanswered, the first one expires first
        self._timer: asyncio.TimerHandle | None = None  # of the first one
        self._backoff = _BACKOFF
        self._retry_at = -math.inf  # no attempt to connect before then
        self._failure = ""  # of the last attempt

    def head(self, method: str) -> Headers:
        """The headers of all calls of a method."""
        return headers(
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", method.encode()),
            (b":authority", b"localhost" if self._server.startswith(_UNIX) else self._server.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"convoy-bench"),
            (b"grpc-timeout", timeout(self._deadline)),
            constant=True,
        )

    def call(self, head: Headers, body: bytes) -> "asyncio.Future[Call]":
        """Sends a request with its prefix (`framed`). The future never fails: its call has the status."""
        call = Call(head, body, self.loop.create_future(), time.monotonic() + self._deadline)
        self._open[call] = None
        if self._timer is None:
            self._timer = self.loop.call_later(self._deadline, self._expire)
        self._start(call)
        return call.answered

    def close(self) -> None:
        """Closes the connection. Unanswered calls fail."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()

    # From the connection.

    def on_trailers(self, call: Call, trailers: Mapping[bytes, bytes]) -> None:
        """Ends a call with the status that the server has sent."""
        if b"grpc-status" in trailers:
            status = trailers[b"grpc-status"]
            call.status = int(status) if status.isdigit() else grpc.StatusCode.UNKNOWN.value[0]
            call.message = trailers.get(b"grpc-message", b"")
            call.details = trailers.get(b"grpc-status-details-bin", b"")
            self._end(call)
        else:
            code = _HTTP_STATUS.get(call.http_status, grpc.StatusCode.UNKNOWN)
            self._fail(call, code, f"answer has HTTP status {call.http_status.decode()} and no grpc-status")

    def on_reset(self, call: Call, error: int) -> None:
        """Ends a call that the server has reset, or sends it again if the server has not accepted it."""
        if call.owner is not None and call.owner.leaving and not call.sent:
            self._start_again(call)  # nothing of it has left the client
        elif error == nghttp2.REFUSED_STREAM and not call.retried:
            call.retried = True
            self._start_again(call)
        else:
            code = _RESET.get(error, grpc.StatusCode.INTERNAL)
            self._fail(call, code, f"server reset the call with HTTP/2 error {error}")

    def on_lost(self, call: Call, reason: str) -> None:
        """Ends a call whose connection is lost."""
        self._fail(call, grpc.StatusCode.UNAVAILABLE, reason)

    def on_leaving(self, connection: Connection) -> None:
        """Uses another connection from now on."""
        if self._connection is connection:
            self._connection = None

    def _start(self, call: Call) -> None:
        if self._connection is not None:
            self._connection.start(call)
        elif time.monotonic() < self._retry_at:
            # Not at once: a caller whose call fails without a turn of the loop would never let go of it.
            self.loop.call_soon(self._fail, call, grpc.StatusCode.UNAVAILABLE, self._failure)
        else:
            self._waiting.append(call)
            if self._connecting is None:
                self._connecting = self.loop.create_task(self._connect())

    def _start_again(self, call: Call) -> None:
        call.sent, call.owner = 0, None
        call.pieces.clear()
        self._start(call)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(_CONNECTING):
                connection = await self._connected()
        except OSError as error:
            self._failure = f"failed to connect: {_reason(error)}"
            self._retry_at = time.monotonic() + self._backoff
            self._backoff = min(self._backoff * _GROWTH, _LONGEST_BACKOFF)
        else:
            self._connection = connection
            self._backoff = _BACKOFF
        self._connecting = None
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            if call in self._open:
                self._start(call)
        if self._connection is not None and self._connection.leaving:  # it was lost at once
            self._connection = None

    async def _connected(self) -> Connection:
        if isinstance(self._address, str):
            _, connection = await self.loop.create_unix_connection(lambda: Connection(self), self._address)
        else:
            _, connection = await self.loop.create_connection(lambda: Connection(self), *self._address)
        try:
            await connection.ready
        except BaseException:
            connection.close()
            raise
        return connection

    def _expire(self) -> None:
        """Ends the calls whose deadline has passed, and sets the timer for the next one."""
        self._timer = None
        now = time.monotonic()
        for call in list(self._open):
            if call.expires > now:
                self._timer = self.loop.call_later(call.expires - now, self._expire)
                return
            if call.owner is not None:
                call.owner.cancel(call)
            self._fail(call, grpc.StatusCode.DEADLINE_EXCEEDED, "deadline passed")

    def _fail(self, call: Call, code: Any, message: str) -> None:
        call.status, call.message = code.value[0], message.encode()
        self._end(call)

    def _end(self, call: Call) -> None:
        self._open.pop(call, None)
        if not call.answered.done():
            call.answered.set_result(call)


def unary(client: RawClient, workload: Workload, model: int, *, server: str, deadline: float) -> Send:
    """Sends the requests to the model with this index, one call each; reads the timings in a sample of the answers."""
    head, body = client.head(workload.method), prepared(workload)
    answers = itertools.count()
    failures: dict[tuple[int, bytes, bytes], Refusal] = {}  # what reading an error takes would limit their number

    def failure(call: Call) -> Refusal:
        key = (call.status, call.message, call.details)
        if key not in failures:
            if len(failures) >= _FAILURES:
                failures.clear()
            failures[key] = refusal(read_error(Failed(*key), server, deadline))
        return failures[key]

    async def send(number: int) -> Outcome:
        call = await client.call(head, body(number))
        if call.status:
            return Outcome(model, 0, (), (failure(call),) * workload.images(number))
        read = workload.skim if next(answers) % SAMPLE else workload.read
        return read(number, unframed(call.pieces))

    return send


def prepared(workload: Workload) -> Callable[[int], bytes]:
    """The requests with their prefixes, made in advance unless they are too large together."""
    period = workload.period
    if period * len(workload.body(0)) > _PREPARED_BYTES:
        return lambda number: framed(workload.body(number))
    bodies = [framed(workload.body(number)) for number in range(period)]
    return lambda number: bodies[number % period]


class Failed:
    """A failed call in the form of grpcio's errors, for what reads those."""

    def __init__(self, status: int, message: bytes, details: bytes) -> None:
        self._code = _CODES.get(status, grpc.StatusCode.UNKNOWN)
        self._message = unquote_to_bytes(message).decode(errors="replace")
        self._details = details

    def code(self) -> Any:
        return self._code

    def details(self) -> str:
        return self._message

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        padded = self._details + b"=" * (-len(self._details) % 4)
        return (("grpc-status-details-bin", base64.b64decode(padded)),) if self._details else ()


def library() -> Library:
    """The loaded library. Raises BadConfig."""
    try:
        return Library()
    except NoLibrary as error:
        raise BadConfig(f"--raw-client: {error}") from None


def address(server: str) -> tuple[str, int] | str:
    """Host and port of a server, or the path of its socket. Raises BadConfig."""
    if server.startswith(_UNIX):
        return server.removeprefix(_UNIX)
    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise BadConfig(f"--server {server!r}, want HOST:PORT or unix:PATH for --raw-client")
    return host.strip("[]"), int(port)


def framed(message: bytes) -> bytes:
    """A message with its prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def unframed(pieces: list[bytes]) -> bytes:
    """The message of an answer that is not compressed."""
    return (pieces[0] if len(pieces) == 1 else b"".join(pieces))[_PREFIX:]


def timeout(seconds: float) -> bytes:
    """A value of grpc-timeout, which has eight digits at most, rounded up."""
    for unit, per_second in ((b"u", 1e6), (b"m", 1e3)):
        if (count := math.ceil(seconds * per_second)) < 10**8:
            return b"%d%s" % (count, unit)
    return b"%dS" % min(math.ceil(seconds), 10**8 - 1)


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"not ready within {_CONNECTING:g} s"
    # asyncio puts the address into the text of some errors; those of a name have numbers below 0.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
