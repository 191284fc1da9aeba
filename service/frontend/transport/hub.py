"""What the connections of one transport share: its methods and limits, nghttp2's options, and nghttp2's callbacks."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from convoy.service.frontend.doors import Doors
from convoy.service.frontend.status import Code
from convoy.service.frontend.transport import nghttp2
from convoy.service.frontend.transport.interface import Land, Limits, Prompt, Room, Rooms, Service, Streaming, Unary
from convoy.service.frontend.transport.nghttp2 import Library, buffer, ffi, from_handle, unpack
from convoy.service.frontend.transport.penalties import Penalties

if TYPE_CHECKING:
    from convoy.service.frontend.transport.connection import Connection

log = logging.getLogger(__name__)

_INCOMING_BYTES = 1 << 18  # read from a socket at once
_FRAME_BYTES = 1 << 20  # of a caller's longest frame: a picture is one
_STREAM_WINDOW = 4 << 20  # bytes that a caller may send ahead of what its call has read
_CONNECTION_WINDOW = 32 << 20  # the same of all calls of a connection
_RESETS, _RESETS_PER_SECOND = 1000, 200  # calls that a caller may break off: at once, and for long
_SETTINGS = 32  # in one frame
_ACKNOWLEDGEMENTS = 1000  # that wait for a caller that does not read
_SILENT_SECONDS = 60.0  # after which a stream may lose its place to another
_CONTINUATIONS = 8  # beside those that have at least 16 kB
# The headers that matter here. The names of others are hardly ever copied.
_NAMES = frozenset(
    (
        b":path",
        b":method",
        b"content-type",
        b"grpc-timeout",
        b"grpc-encoding",
        b"grpc-accept-encoding",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
    )
)
_NAMES_WITH_DOORS = _NAMES | {b"authorization"}


class Method(NamedTuple):
    """A method of a service, unary or streaming, and the room of its calls."""

    room: Room
    unary: Unary | None
    streaming: Streaming | None
    prompt: Prompt | None = None
    land: Land | None = None
    path: bytes = b""


class Hub:
    """What the connections of one transport share. One writer: the front end's loop."""

    def __init__(
        self, library: Library, services: Sequence[Service], limits: Limits, doors: Doors | None = None
    ) -> None:
        self.library = library
        self.rooms = Rooms(limits)
        self.methods = _by_path(services, self.rooms)  # such as /convoy.v1.Vision/Classify
        self.limits = limits
        self.doors = doors
        self.client_ca = b""  # of the authorities that sign the certificates of callers; empty: none is needed
        self.receiving = 0  # bytes of messages that are not complete, or not yet served
        self.connections: set[Connection] = set()
        self.emptied = asyncio.Event()  # set whenever there is no connection
        self.emptied.set()
        self.incoming = ffi.new("char[]", _INCOMING_BYTES)
        self.view = memoryview(buffer(self.incoming))
        self.outgoing = ffi.new("const char *[1]")
        self.provider = ffi.new("nghttp2_data_provider *")
        self.provider.read_callback = _READ
        self.penalties = Penalties()
        self._waiting: list[Connection] = []  # with something to send
        self._searched = False  # for a silent stream, since the last check
        self.loop = asyncio.get_running_loop()
        self.compressing = ThreadPoolExecutor(1, "compress")  # the thread starts with the first long answer
        self._callbacks = _made(library.session_callbacks_new, "nghttp2_session_callbacks")
        for name, callback in (_CALLBACKS if doors is None else _CALLBACKS_WITH_DOORS).items():
            getattr(library, f"session_callbacks_set_on_{name}_callback")(self._callbacks, callback)
        self._options = _made(library.option_new, "nghttp2_option")
        library.option_set_no_auto_window_update(self._options, 1)
        library.option_set_no_closed_streams(self._options, 1)
        library.option_set_max_outbound_ack(self._options, _ACKNOWLEDGEMENTS)
        library.option_set_max_settings(self._options, _SETTINGS)
        library.option_set_max_continuations(self._options, _CONTINUATIONS + limits.metadata_bytes // (1 << 14))
        library.option_set_stream_reset_rate_limit(self._options, _RESETS, _RESETS_PER_SECOND)
        settings = (
            (nghttp2.MAX_CONCURRENT_STREAMS, limits.connection_calls or limits.calls),
            (nghttp2.INITIAL_WINDOW_SIZE, _STREAM_WINDOW),
            (nghttp2.MAX_FRAME_SIZE, _FRAME_BYTES),
            (nghttp2.MAX_HEADER_LIST_SIZE, limits.metadata_bytes),
        )
        self._settings = ffi.new("nghttp2_settings_entry[]", settings)

    def session(self, handle: Any) -> Any:
        """Returns a new session, with its first frames ready to be sent. Its caller must delete it."""
        library, place = self.library, ffi.new("nghttp2_session **")
        if library.session_server_new2(place, self._callbacks, handle, self._options):
            raise MemoryError("no memory for a session")
        session = place[0]
        library.submit_settings(session, 0, self._settings, len(self._settings))
        library.session_set_local_window_size(session, 0, 0, _CONNECTION_WINDOW)
        return session

    def send_soon(self, connection: "Connection") -> None:
        """Sends what the connection has at the end of this turn of the loop, all in one write."""
        if not self._waiting:
            self.loop.call_soon(self._send)
        self._waiting.append(connection)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.send()

    def check_connections(self) -> None:
        """Ends what has lasted too long. To be called about once a second."""
        now = self.loop.time()
        self._searched = False
        for connection in list(self.connections):
            connection.lifetime.check(now)
            if self.limits.stall_seconds:
                connection.end_stalled(now)

    def free_place(self, room: Room) -> None:
        """Ends the stream that has been silent for longest, if any has for a while, as others want its place.

        Looks for one at most once between two checks.
        """
        if self._searched:
            return
        now = self.loop.time()
        silent = [
            (exchange.silent_since, exchange)
            for connection in self.connections
            for exchange in connection.exchanges.values()
            if exchange.room is room and exchange.silent_since < now - _SILENT_SECONDS
        ]
        self._searched = not silent
        if silent:
            since, exchange = min(silent, key=itemgetter(0))
            exchange.fail(Code.UNAVAILABLE, f"stream was silent for {now - since:.0f} s, and others wait for its place")
            exchange.leave_room()

    def make_room(self, connection: "Connection") -> None:
        """Ends the largest message that is on its way on the connection with most of them, if that is not this one."""
        heaviest = max(self.connections, key=attrgetter("receiving"))
        if heaviest.receiving > connection.receiving:
            largest = max(heaviest.exchanges.values(), key=attrgetter("receiving"))
            largest.fail(Code.RESOURCE_EXHAUSTED, f"{self.receiving} bytes of requests are on their way: too many")


def _by_path(services: Sequence[Service], rooms: Rooms) -> dict[bytes, Method]:
    found = {}
    for service in services:
        for name, unary in service.unary.items():
            room = rooms.of(service, streaming=False)
            path = f"/{service.name}/{name}".encode()
            found[path] = Method(room, unary, None, service.prompt.get(name), service.land.get(name), path)
        for name, streaming in service.streaming.items():
            found[f"/{service.name}/{name}".encode()] = Method(rooms.of(service, streaming=True), None, streaming)
    return found


def _made(new: Callable[[Any], int], kind: str) -> Any:
    place = ffi.new(f"{kind} **")
    if new(place):
        raise MemoryError(f"no memory for {kind}")
    return place[0]


# The callbacks. An exception in one of them is logged and ends the connection: the callback reports a failed session.


def _log(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    log.error("connection failed", exc_info=(kind, error, trace))


def _on_begin_headers(_: Any, frame: Any, handle: Any) -> int:
    connection = from_handle(handle)
    connection.block = {}
    connection.block_bytes = 0
    return 0


def _on_header(names: frozenset[bytes]) -> Callable[..., int]:
    lengths = frozenset(map(len, names))

    def on_header(_: Any, frame: Any, name: Any, length: int, value: Any, size: int, flags: int, handle: Any) -> int:
        connection = from_handle(handle)
        connection.block_bytes += length + size + 32  # RFC 9113, section 6.5.2
        if connection.block_bytes > connection.most_block_bytes:
            return nghttp2.CALLBACK_FAILURE
        if length in lengths and (known := unpack(name, length)) in names:
            connection.block[known] = unpack(value, size)
        return 0

    return on_header


def _on_data_chunk(_: Any, flags: int, number: int, data: Any, length: int, handle: Any) -> int:
    from_handle(handle).on_data(number, buffer(data, length))
    return 0


def _on_frame(_: Any, frame: Any, handle: Any) -> int:
    connection, kind = from_handle(handle), frame.type
    if kind == nghttp2.HEADERS:
        connection.on_headers(frame.stream_id, frame.flags & nghttp2.END_STREAM)
    elif kind != nghttp2.DATA:
        connection.on_idle_frame(kind, frame.flags & nghttp2.ACK)
    elif frame.flags & nghttp2.END_STREAM:
        connection.on_request_end(frame.stream_id)
    elif not frame.length:
        connection.on_idle_frame(kind, False)
    return 0


def _on_stream_close(_: Any, number: int, code: int, handle: Any) -> int:
    from_handle(handle).on_close(number)
    return 0


def _on_read(_: Any, number: int, place: Any, length: int, flags: Any, source: Any, handle: Any) -> int:
    taken: int = from_handle(handle).exchanges[number].take(place, length, flags)
    return taken


def _callback(kind: str, function: Callable[..., int]) -> Any:
    return ffi.callback(kind, function, error=nghttp2.CALLBACK_FAILURE, onerror=_log)


_READ = _callback("nghttp2_read", _on_read)
_CALLBACKS = {
    "begin_headers": _callback("nghttp2_begin", _on_begin_headers),
    "header": _callback("nghttp2_header", _on_header(_NAMES)),
    "data_chunk_recv": _callback("nghttp2_chunk", _on_data_chunk),
    "frame_recv": _callback("nghttp2_received", _on_frame),
    "stream_close": _callback("nghttp2_closed", _on_stream_close),
}
_CALLBACKS_WITH_DOORS = _CALLBACKS | {"header": _callback("nghttp2_header", _on_header(_NAMES_WITH_DOORS))}
