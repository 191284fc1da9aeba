"""One connection: an nghttp2 session between a socket and the calls on it."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from convoy.service.errors import ConvoyError
from convoy.service.frontend import early, status
from convoy.service.frontend.quotas import peer_of
from convoy.service.frontend.status import Code
from convoy.service.frontend.threads import NOBODY, Who
from convoy.service.frontend.transport import nghttp2
from convoy.service.frontend.transport.answers import trailers_only
from convoy.service.frontend.transport.exchange import Exchange
from convoy.service.frontend.transport.hub import Hub
from convoy.service.frontend.transport.lifetime import Lifetime
from convoy.service.frontend.transport.messages import Refused
from convoy.service.frontend.transport.nghttp2 import Headers, buffer, ffi
from convoy.service.frontend.transport.opening import NotGrpc, opened, trace_of
from convoy.service.tls import names

log = logging.getLogger(__name__)

_MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # with which every client of HTTP/2 begins
_WINDOW_STEP = 1 << 20  # bytes of that window given back together
_OUTGOING_BYTES = 1 << 18  # handed to the socket at once; as many wait there before no more are made
_MOST_UNSENT = 256 << 20  # bytes of answers
_MOST_QUEUED = 10_000  # frames that wait for a caller that does not read

_NULL = ffi.NULL


class Connection(asyncio.BufferedProtocol):
    """A caller's connection. One writer: the front end's loop.

    `block` has the headers of the frame that is being received, and `block_bytes` the size of all of its headers.
    """

    def __init__(self, hub: Hub, client_ca: bytes = b"", on_end: Callable[[], None] = lambda: None) -> None:
        """`client_ca` is the one that the handshake uses. `on_end` is called once the connection is closed."""
        self._on_end = on_end
        self.hub = hub
        self._client_ca = client_ca
        self.loop = hub.loop
        self.exchanges: dict[int, Exchange] = {}
        self.block: dict[bytes, bytes] = {}
        self.block_bytes = 0
        # More is refused, and four times as much ends the connection: a header of one byte may stand for thousands.
        self.most_block_bytes = 4 * hub.limits.metadata_bytes
        self.unsent = 0  # bytes of answers
        self.receiving = 0  # bytes of messages that are not complete, or not yet served
        self.library = hub.library
        self.names: tuple[str, ...] = ()  # in the certificate of the caller
        self.source = NOBODY  # where the caller is, and this connection
        self.asked = False  # it has ever begun a call
        self._transport: Any = None
        self.session: Any = None
        self._handle = ffi.new_handle(self)  # lives as long as the session
        self._waiting = False  # to send
        self._paused = False  # the socket accepts no more
        self._speaks_http2 = False  # the caller has begun in HTTP/2
        self._unacknowledged = 0  # bytes of the window to be given back
        self._answered_early: set[int] = set()  # streams to be reset once their answer is sent
        self._held: bytes | None = None  # what has arrived while it waits to begin
        self._address = ""  # of the caller's host; empty: a Unix socket
        self.lifetime = Lifetime(self)

    # From the socket.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(_OUTGOING_BYTES)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and (tls.selected_alpn_protocol() != "h2" or self._client_ca != self.hub.client_ca):
            transport.close()
            return
        name = transport.get_extra_info("peername")
        self._address = name[0] if isinstance(name, tuple) else ""
        self.source = Who(peer_of(self._address) if self._address else "unix", id(self))
        if self.hub.doors is not None:
            self.names = () if tls is None else names(tls.getpeercert())
        self.session = self.hub.session(self._handle)
        if delay := self.hub.penalties.delay(self._address, self.loop.time()):
            self._held = b""
            self.loop.call_later(delay, self._begin)
        self.hub.connections.add(self)
        self.hub.emptied.clear()
        self.lifetime.start()
        # Nothing is sent before the caller has begun: it may not speak HTTP/2.

    def _begin(self) -> None:
        """Begins with a connection that had to wait."""
        held, self._held = self._held, None
        if held and self.session is not None and not self._transport.is_closing():
            self.hub.view[: len(held)] = held
            self.buffer_updated(len(held))
            if self.session is not None:
                self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        # One buffer for all connections: what has arrived is processed before another one reads.
        return self.hub.view

    def buffer_updated(self, nbytes: int) -> None:
        if self._held is not None:
            self._held = bytes(self.hub.view[:nbytes])
            self._transport.pause_reading()
            return
        if self.session is None or not (self._speaks_http2 or self._check_preface(nbytes)):
            return
        used = self.library.session_mem_recv(self.session, self.hub.incoming, nbytes)
        if used < 0:
            self.end(ffi.string(self.library.strerror(used)).decode(), abuse=True)
        else:
            self.send_soon()

    def eof_received(self) -> None:
        return  # the connection closes: nobody is left to whom an answer could go

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.send_soon()

    def connection_lost(self, error: Exception | None) -> None:
        self._on_end()
        self._free()
        exchanges, self.exchanges = self.exchanges, {}
        for exchange in exchanges.values():
            exchange.close()
        self._handle = None  # it refers to this object, which nothing else would free
        self.hub.connections.discard(self)
        if not self.hub.connections:
            self.hub.emptied.set()

    # To the socket.

    def send_soon(self) -> None:
        if not self._waiting:
            self._waiting = True
            self.hub.send_soon(self)

    def send(self) -> None:
        """Writes all frames that are ready, as far as the socket has room."""
        self._waiting = False
        if self.session is None or self._paused:
            self._check_queue()
            return
        library, session, place = self.library, self.session, self.hub.outgoing
        mem_send, write = library.session_mem_send, self._transport.write
        pieces: list[bytes] = []
        size = 0
        while not self._paused:
            length = mem_send(session, place)
            if length > 0:
                pieces.append(buffer(place[0], length)[:])
                size += length
                if size < _OUTGOING_BYTES:
                    continue
            elif length < 0:
                self.end(ffi.string(library.strerror(length)).decode())
                return
            elif self._answered_early and self._reset_answered():
                continue
            if pieces:
                write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
                pieces, size = [], 0
            if length == 0:
                break
        if self.lifetime.over:
            self.close()
        elif not (library.session_want_read(session) or library.session_want_write(session)):
            if not self.lifetime.caller_leaves:
                self.strike()
            self.close()

    def _reset_answered(self) -> bool:
        """Resets streams whose answer is sent while the caller still sends: it need not go on. Returns whether any."""
        session, library = self.session, self.library
        closed = {number: library.session_get_stream_local_close(session, number) for number in self._answered_early}
        for number, state in closed.items():
            if state:  # 1: the answer is sent; -1: the stream has closed
                self._answered_early.discard(number)
            if state == 1:
                library.submit_rst_stream(session, 0, number, nghttp2.NO_ERROR)
        return 1 in closed.values()

    def _check_queue(self) -> None:
        if self.session is not None and (
            self.library.session_get_outbound_queue_size(self.session) > _MOST_QUEUED or self.unsent > _MOST_UNSENT
        ):
            self.end("caller does not read", abuse=True)

    @property
    def busy(self) -> bool:
        """Whether a call is in progress."""
        return bool(self.exchanges)

    def abort(self) -> bool:
        """Closes the connection at once, as others want its place; returns False if it is not made yet."""
        if self._transport is None:
            return False
        self.end("others want its place")
        return True

    def strike(self) -> None:
        """Lets further connections of this caller wait: it has misused this one."""
        self.hub.penalties.strike(self._address, self.loop.time())

    def close(self) -> None:
        """Closes the connection once all is written."""
        if not self._transport.is_closing():
            self.lifetime.limit_closing()
            self._transport.close()

    def end(self, reason: str, *, abuse: bool = False) -> None:
        """Ends the connection and the session. Never called by a callback: nghttp2 still uses the session then."""
        log.debug("connection ended", extra={"fields": {"reason": reason}})
        if abuse:
            self.strike()
        self._free()
        self._transport.abort()

    def _free(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            self.library.session_del(session)

    def _check_preface(self, nbytes: int) -> bool:
        """Returns whether the caller begins in HTTP/2; refuses it otherwise."""
        beginning = bytes(self.hub.view[: min(nbytes, len(_MAGIC))])
        self._speaks_http2 = _MAGIC.startswith(beginning)
        if not self._speaks_http2:
            if beginning[:1].isalpha() and b"\r\n" in bytes(self.hub.view[:nbytes]):
                self._transport.write(_REFUSAL)
            self.close()
        return self._speaks_http2

    # For calls.

    def respond(self, number: int, beginning: Headers, *, with_data: bool = False) -> None:
        """Sends the headers of an answer; without data they are all of it."""
        if self.session is None:
            return
        provider = self.hub.provider if with_data else _NULL
        self.library.submit_response(self.session, number, beginning.array, beginning.count, provider)
        self.lifetime.forgive_pings()
        self.send_soon()

    def submit_trailers(self, number: int, trailers: Headers) -> None:
        """Ends an answer. Called where nghttp2 asks for the last of its data."""
        self.library.submit_trailer(self.session, number, trailers.array, trailers.count)

    def resume(self, number: int) -> None:
        """Lets nghttp2 ask for data again."""
        if self.session is not None:
            self.lifetime.forgive_pings()
            self.library.session_resume_data(self.session, number)
            self.send_soon()

    def reset_once_answered(self, number: int) -> None:
        """Lets a caller that still sends know that nobody listens any more, once its answer is sent."""
        self._answered_early.add(number)

    def add_unsent(self, size: int) -> None:
        """Counts bytes of an answer. Ends the connection of a caller that does not fetch its answers."""
        self.unsent += size
        if self.unsent > _MOST_UNSENT:
            self.end("caller does not fetch its answers", abuse=True)

    def acknowledge(self, size: int) -> None:
        """Gives bytes of the connection's window back."""
        self._unacknowledged += size
        if self._unacknowledged >= _WINDOW_STEP and self.session is not None:
            self.library.session_consume_connection(self.session, self._unacknowledged)
            self._unacknowledged = 0
            self.send_soon()

    def acknowledge_stream(self, number: int, size: int) -> None:
        """Gives bytes of a stream's window back."""
        if self.session is not None:
            self.library.session_consume_stream(self.session, number, size)
            self.send_soon()

    def end_stalled(self, now: float) -> None:
        """Ends the calls whose callers do not go on with a message that they have begun."""
        seconds = self.hub.limits.stall_seconds
        for exchange in list(self.exchanges.values()):
            # Of a caller that does not read, there are many that are over.
            if not exchange.over and exchange.stalls(now, seconds):
                exchange.fail(Code.UNAVAILABLE, f"request is not complete, and hardly any of it came for {seconds:g} s")

    # From nghttp2.

    def on_headers(self, number: int, complete: bool) -> None:
        """Opens the call that the headers ask for, or refuses it."""
        if number in self.exchanges:  # the trailers of a request
            if complete:
                self.on_request_end(number)
            return
        self.lifetime.idle_frames = 0
        trace = trace_of(self.block)
        try:
            self.exchanges[number] = opened(self, number, trace)
        except Refused as refused:
            early.refused(trace, *self._called(), refused.code.name, refused.code.name, refused.message)
            self._refuse(number, trailers_only(refused.code, refused.message, trace=trace), complete)
        except ConvoyError as error:
            code, message, pairs = status.code_of(error), status.message_of(error), status.trailers(error)
            early.turned_away(trace, *self._called(), code.name, error.reason, message)
            self._refuse(number, trailers_only(code, message, pairs, trace), complete)
        except NotGrpc as other:
            self._refuse(number, other.answer, complete)
        else:
            self.asked = True
            if complete:
                self.on_request_end(number)

    def _called(self) -> tuple[bytes, bool, str]:
        """Returns what early.py wants to know of a call: its path, whether a method has it, and where its caller is."""
        path = self.block.get(b":path", b"")
        return path, path in self.hub.methods, self.source.caller

    def _refuse(self, number: int, answer: Headers, complete: bool) -> None:
        self.respond(number, answer)
        if not complete:
            self.reset_once_answered(number)

    def on_data(self, number: int, chunk: Any) -> None:
        """Hands a part of a request to its call."""
        self.lifetime.idle_frames = 0
        exchange = self.exchanges.get(number)
        if exchange is None:
            self.acknowledge(len(chunk))
            return
        try:
            exchange.receive(chunk)
        except Refused as refused:
            exchange.fail(refused.code, refused.message)

    def on_request_end(self, number: int) -> None:
        """Hands the end of a request to its call."""
        exchange = self.exchanges.get(number)
        if exchange is not None:
            try:
                exchange.half_close()
            except Refused as refused:
                exchange.fail(refused.code, refused.message)

    def on_idle_frame(self, kind: int, acknowledges: bool) -> None:
        """Counts a frame without a part of a call."""
        self.lifetime.idle_frame(kind, acknowledges)

    def on_close(self, number: int) -> None:
        """Ends a call whose stream has closed."""
        exchange = self.exchanges.pop(number, None)
        if exchange is not None:
            exchange.close()
            self.lifetime.idle_frames = 0
            if not self.exchanges:
                self.lifetime.calls_ended()


_TEXT = b"this port speaks gRPC, which needs HTTP/2: call it with a gRPC client, or with HTTP/2 from the start\n"
_REFUSAL = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
) % (len(_TEXT), _TEXT)
