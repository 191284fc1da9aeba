"""One connection of the raw client: an nghttp2 session between a socket and the calls on it."""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convoy.service.frontend.transport import nghttp2
from convoy.service.frontend.transport.nghttp2 import Headers, Library, buffer, ffi, from_handle, memmove, unpack

if TYPE_CHECKING:
    from convoy.service.bench.raw_client import RawClient

log = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 18  # read from a socket at once, and handed to it at once
_FRAME_BYTES = 1 << 20  # the longest frame in each direction, unless the server allows less
_STREAM_WINDOW = 64 << 20  # bytes of an answer that the server may send ahead: answers are read as they arrive
_CONNECTION_WINDOW = 1 << 30
# The headers that matter here. The others are never copied.
_NAMES = frozenset((b":status", b"grpc-status", b"grpc-message", b"grpc-status-details-bin"))
_LENGTHS = frozenset(map(len, _NAMES))

_NULL = ffi.NULL


class Call:
    """One unary call. `answered` becomes the call itself once its status is known.

    head   the headers of the request
    body   the request with its prefix
    """

    __slots__ = (
        "answered",
        "body",
        "details",
        "expires",
        "head",
        "http_status",
        "message",
        "number",
        "owner",
        "pieces",
        "retried",
        "sent",
        "status",
    )

    def __init__(self, head: Headers, body: bytes, answered: "asyncio.Future[Call]", expires: float) -> None:
        self.head = head
        self.body = body
        self.answered = answered
        self.expires = expires  # seconds of CLOCK_MONOTONIC
        self.owner: Connection | None = None  # on which it is sent
        self.number = 0  # of the HTTP/2 stream
        self.sent = 0  # bytes of the body
        self.retried = False
        self.pieces: list[bytes] = []  # of the answer with its prefix
        self.http_status = b"200"
        self.status = 0  # gRPC's
        self.message = b""  # as on the wire
        self.details = b""


class Session:
    """What all connections of a client share: nghttp2's callbacks and options, and the buffers. Built once."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.incoming = ffi.new("char[]", _BUFFER_BYTES)
        self.view = memoryview(buffer(self.incoming))
        self.outgoing = ffi.new("const char *[1]")
        self.provider = ffi.new("nghttp2_data_provider *")
        self.provider.read_callback = _READ
        place = ffi.new("nghttp2_session_callbacks **")
        library.session_callbacks_new(place)
        self._callbacks = place[0]
        for name, callback in _CALLBACKS.items():
            getattr(library, f"session_callbacks_set_{name}_callback")(self._callbacks, callback)
        options = ffi.new("nghttp2_option **")
        library.option_new(options)
        self._options = options[0]
        library.option_set_no_closed_streams(self._options, 1)
        settings = (
            (nghttp2.ENABLE_PUSH, 0),
            (nghttp2.INITIAL_WINDOW_SIZE, _STREAM_WINDOW),
            (nghttp2.MAX_FRAME_SIZE, _FRAME_BYTES),
        )
        self._settings = ffi.new("nghttp2_settings_entry[]", settings)

    def new(self, handle: Any) -> Any:
        """Returns a session with its first frames ready to be sent. Its caller must delete it."""
        library, place = self.library, ffi.new("nghttp2_session **")
        if library.session_client_new2(place, self._callbacks, handle, self._options):
            raise MemoryError("no memory for a session")
        library.submit_settings(place[0], 0, self._settings, len(self._settings))
        library.session_set_local_window_size(place[0], 0, 0, _CONNECTION_WINDOW)
        return place[0]


class Connection(asyncio.BufferedProtocol):
    """A connection to the server. One writer: the running loop."""

    def __init__(self, client: "RawClient") -> None:
        self.client = client
        self.calls: dict[int, Call] = {}
        self.block: dict[bytes, bytes] = {}  # headers of the frame that is being received
        self.leaving = False  # the server accepts no more calls here
        self.ready = client.loop.create_future()  # once the server has said how many calls it allows at once
        self._shared = client.session
        self._library = self._shared.library
        self._handle = ffi.new_handle(self)  # lives as long as the session
        self._session: Any = None
        self._transport: Any = None
        self._waiting = False  # to send
        self._paused = False  # the socket accepts no more

    # From the socket.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(_BUFFER_BYTES)
        self._session = self._shared.new(self._handle)
        self._send_soon()

    def get_buffer(self, sizehint: int) -> memoryview:
        # One buffer for all connections: what has arrived is processed before another one reads.
        return self._shared.view

    def buffer_updated(self, nbytes: int) -> None:
        if self._session is None:
            return
        used = self._library.session_mem_recv(self._session, self._shared.incoming, nbytes)
        if used < 0:
            self._end(used)
        else:
            self._send_soon()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send_soon()

    def connection_lost(self, error: Exception | None) -> None:
        self._free()
        self.leaving = True
        self._handle = None  # it refers to this object, which nothing else would free
        if not self.ready.done():
            self.ready.set_exception(error or ConnectionResetError("connection closed"))
        self.client.on_leaving(self)
        calls, self.calls = self.calls, {}
        for call in calls.values():
            self.client.on_lost(call, str(error or "connection closed"))

    # For calls.

    def start(self, call: Call) -> None:
        """Sends a call. nghttp2 keeps it where the server allows no more calls at once."""
        if self._session is None:
            self.client.on_lost(call, "connection closed")
            return
        number = self._library.submit_request(
            self._session, _NULL, call.head.array, call.head.count, self._shared.provider, _NULL
        )
        if number < 0:
            self.client.on_lost(call, self._text(number))
            return
        call.owner, call.number = self, number
        self.calls[number] = call
        self._send_soon()

    def cancel(self, call: Call) -> None:
        """Lets the server know that nobody waits for the answer any more."""
        if self.calls.pop(call.number, None) is not None and self._session is not None:
            self._library.submit_rst_stream(self._session, 0, call.number, nghttp2.CANCEL)
            self._send_soon()

    def close(self) -> None:
        """Closes the connection at once."""
        self._transport.close()

    # From nghttp2.

    def on_headers(self, number: int, ends: bool) -> None:
        """Notes the headers of an answer, or its trailers, with which it ends."""
        block, self.block = self.block, {}
        call = self.calls.get(number)
        if call is None:
            return
        call.http_status = block.get(b":status", call.http_status)
        if not ends:
            return
        if call.sent < len(call.body):  # a refusal may come before the request is complete
            self._library.submit_rst_stream(self._session, 0, number, nghttp2.NO_ERROR)
        del self.calls[number]
        self.client.on_trailers(call, block)

    def on_close(self, number: int, code: int) -> None:
        """Ends a call whose stream has closed without trailers."""
        call = self.calls.pop(number, None)
        if call is not None:
            self.client.on_reset(call, code)

    def on_settings(self) -> None:
        """Lets calls begin: before the server's settings, nghttp2 might send more than it allows."""
        if not self.ready.done():
            self.ready.set_result(None)

    def on_goaway(self) -> None:
        """Sends no more calls here. Those that the server has not accepted are reset by nghttp2."""
        self.leaving = True
        self.client.on_leaving(self)

    # To the socket.

    def _send_soon(self) -> None:
        if not self._waiting:
            self._waiting = True
            self.client.loop.call_soon(self._send)

    def _send(self) -> None:
        """Writes all frames that are ready, as far as the socket has room."""
        self._waiting = False
        if self._session is None:
            return
        library, session, place = self._library, self._session, self._shared.outgoing
        pieces: list[bytes] = []
        size = 0
        while not self._paused:
            length = library.session_mem_send(session, place)
            if length > 0:
                pieces.append(buffer(place[0], length)[:])
                size += length
                if size < _BUFFER_BYTES:
                    continue
            elif length < 0:
                self._end(length)
                return
            if pieces:
                self._transport.write(b"".join(pieces))
                pieces, size = [], 0
            if length == 0:
                break
        if self.leaving and not self.calls:
            self.close()

    def _end(self, code: int) -> None:
        log.debug("connection ended", extra={"fields": {"reason": self._text(code)}})
        self._free()
        self._transport.abort()

    def _free(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._library.session_del(session)

    def _text(self, code: int) -> str:
        return str(ffi.string(self._library.strerror(code)).decode())


# The callbacks. An exception in one of them is logged and ends the connection: the callback reports a failed session.


def _log(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    log.error("connection failed", exc_info=(kind, error, trace))


def _on_header(_: Any, frame: Any, name: Any, length: int, value: Any, size: int, flags: int, handle: Any) -> int:
    if length in _LENGTHS and (known := unpack(name, length)) in _NAMES:
        from_handle(handle).block[known] = unpack(value, size)
    return 0


def _on_data_chunk(_: Any, flags: int, number: int, data: Any, length: int, handle: Any) -> int:
    call = from_handle(handle).calls.get(number)
    if call is not None:
        call.pieces.append(unpack(data, length))
    return 0


def _on_frame(_: Any, frame: Any, handle: Any) -> int:
    kind = frame.type
    if kind == nghttp2.HEADERS:
        from_handle(handle).on_headers(frame.stream_id, frame.flags & nghttp2.END_STREAM)
    elif kind == nghttp2.SETTINGS:
        from_handle(handle).on_settings()
    elif kind == nghttp2.GOAWAY:
        from_handle(handle).on_goaway()
    return 0


def _on_stream_close(_: Any, number: int, code: int, handle: Any) -> int:
    from_handle(handle).on_close(number, code)
    return 0


def _on_read(_: Any, number: int, place: Any, length: int, flags: Any, source: Any, handle: Any) -> int:
    call = from_handle(handle).calls.get(number)
    if call is None:
        return nghttp2.STREAM_FAILURE
    body, at = call.body, call.sent
    size = min(len(body) - at, length)
    memmove(place, body if size == len(body) else memoryview(body)[at : at + size], size)
    call.sent = at + size
    if call.sent == len(body):
        flags[0] = nghttp2.EOF
    return int(size)


def _length(_: Any, kind: int, number: int, window: int, own_window: int, longest: int, handle: Any) -> int:
    """Returns how long a frame may be. By default they have 16 kB, where grpcio fills the server's longest frame."""
    return min(window, own_window, longest, _FRAME_BYTES)


def _callback(kind: str, function: Callable[..., int]) -> Any:
    return ffi.callback(kind, function, error=nghttp2.CALLBACK_FAILURE, onerror=_log)


_READ = _callback("nghttp2_read", _on_read)
_CALLBACKS = {
    "on_header": _callback("nghttp2_header", _on_header),
    "on_data_chunk_recv": _callback("nghttp2_chunk", _on_data_chunk),
    "on_frame_recv": _callback("nghttp2_received", _on_frame),
    "on_stream_close": _callback("nghttp2_closed", _on_stream_close),
    "data_source_read_length": _callback("nghttp2_length", _length),
}
