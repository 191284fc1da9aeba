"""The transport on grpcio's asyncio server, for machines without libnghttp2."""

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

import grpc
import grpc.aio

from convoy.service.access import Caller
from convoy.service.errors import ConvoyError, ModelUnavailable, NotOffered, QueueFull
from convoy.service.followed import Followed
from convoy.service.frontend import early, status
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.quotas import peer_of
from convoy.service.frontend.threads import Who
from convoy.service.frontend.trace import PARENT, REQUEST_ID, STATE, Trace, names_all, read
from convoy.service.frontend.transport.interface import (
    LEAST_COMPRESSED,
    Limits,
    Received,
    Room,
    Rooms,
    Service,
    Stream,
    Streaming,
    Unary,
)
from convoy.service.tls import Tls

log = logging.getLogger(__name__)

_COMPRESSIONS = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
_GOODBYE_SECONDS = 3.0  # after which callers that are refused must find another server: they give up after 7.5
_FOR_EVER = 1e9  # seconds: who says goodbye sets no limit
_UNIX = "unix:"
_Metadata = tuple[tuple[str, str | bytes], ...]
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcAio:
    """See Transport."""

    def __init__(
        self,
        address: str,
        services: Sequence[Service],
        limits: Limits,
        tls: Followed[Tls] | None = None,
        doors: Doors | None = None,
        kept: int | None = None,
    ) -> None:
        if kept is not None:
            os.close(kept)  # gRPC takes no socket that is there already
        self._address = address
        self._limits = limits
        self._tls = tls
        self._handlers = _Handlers(services, Rooms(limits), doors)
        self._server = self._made()
        self._watching: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None  # from the moment on when the server begins to stop
        for name in ("asyncio", "grpc._cython.cygrpc"):
            logging.getLogger(name).addFilter(_is_ours)
        if limits.compression != "none":
            # gRPC removes grpc-accept-encoding from what a method sees, and does not look at it either.
            log.warning("grpcio sends %s to all callers, also to those that do not accept it", limits.compression)

    async def start(self) -> None:
        await self._server.start()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def leave(self, notice: float, patience: float) -> None:
        """See Transport. gRPC's server says goodbye only as it stops, and then cancels calls that it has not begun. No
        client repeats those. So calls are refused first, which are repeated; and goodbye is said if others take long.
        """
        self._handlers.closing.closed = True
        asyncio.get_running_loop().call_later(_GOODBYE_SECONDS, self._say_goodbye)

    async def stop(self, seconds: float) -> None:
        """See Transport."""
        loop = asyncio.get_running_loop()
        closing = self._handlers.closing
        until = loop.time() + seconds
        with suppress(TimeoutError):
            if closing.closed:
                await asyncio.wait_for(closing.none.wait(), seconds)
                # A call that has not begun ends with its connection, as UNAVAILABLE: it is repeated.
                _close_connections(self._address)
        self._say_goodbye()
        await self._server.stop(max(0.0, until - loop.time()))

    def _say_goodbye(self) -> None:
        if self._ending is None:
            # The task that watches ends with the server. To cancel it would cancel gRPC's own wait for the calls.
            self._ending = asyncio.get_running_loop().create_task(self._server.stop(_FOR_EVER))

    def _made(self) -> grpc.aio.Server:
        limits = self._limits
        server = grpc.aio.server(
            options=_options(limits),
            # Beyond its own limit gRPC refuses any call. Ours leave health checks a place.
            maximum_concurrent_rpcs=4 * limits.calls,
            compression=_COMPRESSIONS[limits.compression],
        )
        server.add_generic_rpc_handlers((self._handlers,))
        mask = os.umask(0o177) if self._address.startswith(_UNIX) else None  # nobody else may connect
        try:
            if self._tls is None:
                port = server.add_insecure_port(self._address)
            else:
                port = server.add_secure_port(self._address, _credentials(self._tls))
        finally:
            if mask is not None:
                os.umask(mask)
        if self._address.endswith(":0"):  # another server takes the same port
            self._address = f"{self._address.removesuffix('0')}{port}"
        return server

    async def _watch(self) -> None:
        """Replaces a server that has ended by itself: gRPC's does so, for good, at a path that is not UTF-8."""
        while True:
            with suppress(UnicodeDecodeError):
                await self._server.wait_for_termination()
            if self._ending is not None:
                return
            log.warning("grpcio has ended its server, as it does at a path that is not UTF-8; another takes its place")
            self._server = self._made()
            await self._server.start()

    async def renew(self) -> None:
        pass  # gRPC asks for the certificates at every connection


def _close_connections(address: str) -> None:
    """Closes the connections to an address of this process: what is sent arrives, and nothing more is read."""
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208  numbers, of which there may be thousands
        with suppress(OSError), socket.socket(fileno=os.dup(int(descriptor))) as found:  # others are no sockets
            if _is_at(found, address) and not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.shutdown(socket.SHUT_RDWR)


def _is_at(found: socket.socket, address: str) -> bool:
    own = found.getsockname()
    if found.type != socket.SOCK_STREAM or not own:
        return False
    return f"{_UNIX}{own}" == address if isinstance(own, str) else str(own[1]) == address.rpartition(":")[2]


def _is_ours(record: logging.LogRecord) -> bool:
    """Returns whether a record is about no fault of a caller: gRPC logs tracebacks of paths that are not UTF-8, and of
    callers that have gone."""
    error = record.exc_info[1] if record.exc_info else None
    return not any(isinstance(each, UnicodeDecodeError | grpc.aio.InternalError) for each in (error, record.msg))


class _Stream:
    """A gRPC call as a Stream."""

    def __init__(self, context: Any, trace: Trace | None) -> None:
        self.deadline = _deadline(context)
        self.caller: Caller | None = None
        self.names: _Metadata = tuple(trace.headers()) if trace else ()  # that were not sent yet
        self._context = context
        self._trace = trace
        self._source = _source(context)

    async def read(self) -> Received | None:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            return None
        found: Received = message._replace(caller=self.caller, trace=self._trace, source=self._source)
        return found

    async def write(self, data: bytes) -> None:
        _leave_short(self._context, data)
        names, self.names = self.names, ()
        with suppress(grpc.aio.InternalError):  # the caller has gone, and gRPC is about to cancel the call
            if names:
                await self._context.send_initial_metadata(names)
            await self._context.write(data)


def _credentials(tls: Followed[Tls]) -> grpc.ServerCredentials:
    """gRPC's own TLS: at least version 1.2."""
    known = tls.value

    def fetch() -> Any:
        nonlocal known
        if tls.value is known:
            return None
        known = tls.value
        return _certificates(known)

    return grpc.dynamic_ssl_server_credentials(_certificates(known), fetch, bool(known.client_ca))


def _certificates(tls: Tls) -> Any:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], tls.client_ca or None)


def _options(limits: Limits) -> list[tuple[str, int]]:
    options = {
        "grpc.so_reuseport": 1,
        "grpc.max_allowed_incoming_connections": limits.connections,  # further ones are refused
        "grpc.max_receive_message_length": limits.message_bytes,
        "grpc.max_send_message_length": -1,
        # Between these two sizes gRPC refuses at random, larger metadata more often. Equal sizes prevent that.
        "grpc.max_metadata_size": limits.metadata_bytes,
        "grpc.absolute_max_metadata_size": limits.metadata_bytes,
        # Clients, idle or in a call, may ping this often without being disconnected.
        "grpc.http2.min_ping_interval_without_data_ms": round(limits.min_ping_seconds * 1000),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.max_concurrent_streams": limits.connection_calls,
        "grpc.max_connection_age_ms": round(limits.connection_age * 1000),
        "grpc.max_connection_age_grace_ms": round(limits.connection_grace * 1000),
        "grpc.max_connection_idle_ms": round(limits.connection_idle * 1000),
    }
    # Of these, 0 would mean at once.
    unset = {name for name, value in options.items() if not value and name.startswith("grpc.max_c")}
    return [(name, value) for name, value in options.items() if name not in unset]


class _Closing:
    """Whether new calls are refused because the server is about to stop, and whether earlier ones have ended."""

    def __init__(self) -> None:
        self.closed = False
        self.none = asyncio.Event()  # all that have begun have their answers
        self.none.set()
        self._begun = 0

    def begin(self, context: Any) -> None:
        """Counts a call until its answer is sent."""
        self._begun += 1
        self.none.clear()
        context.add_done_callback(self._end)

    def _end(self, _: object) -> None:
        self._begun -= 1
        if not self._begun:
            self.none.set()


class _Entrance(NamedTuple):
    """What stands before a method.

    known    whether there is a method with this path
    closing  None: it is open until the server ends
    """

    path: str
    known: bool
    room: Room
    doors: Doors | None
    closing: _Closing | None

    @contextmanager
    def entered(self, context: Any, trace: Trace | None) -> Iterator[Caller | None]:
        """Returns who calls, and counts the call for as long as it lasts. Raises what the doors raise, QueueFull if
        there is no place, and ModelUnavailable if the server is about to stop."""
        if self.closing is not None:
            self.closing.begin(context)
        called = (self.path.encode(), self.known, _peer(context.peer()))
        try:
            caller = None if self.doors is None else _caller(context, self.path, self.doors, trace)
        except ConvoyError as error:
            early.turned_away(trace, *called, status.code_of(error).name, error.reason, error.message)
            raise
        try:
            if self.room.full:
                raise QueueFull(self.room.refusal)
            if self.closing is not None and self.closing.closed:
                raise ModelUnavailable("server is shutting down")
        except ConvoyError as error:
            early.refused(trace, *called, status.code_of(error).name, error.reason, error.message)
            raise
        self.room.calls += 1
        try:
            yield caller
        finally:
            self.room.calls -= 1


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The methods by their path. Unknown ones pass the doors, too."""

    def __init__(self, services: Sequence[Service], rooms: Rooms, doors: Doors | None) -> None:
        self.closing = _Closing()
        self._doors = doors
        self._streams = rooms.of(services[0], streaming=True)
        self._by_path: dict[str, grpc.RpcMethodHandler] = {}
        for service in services:
            closing = None if service.vital else self.closing
            for name, unary in service.unary.items():
                path = f"/{service.name}/{name}"
                entrance = _Entrance(path, True, rooms.of(service, streaming=False), doors, closing)
                self._by_path[path] = _unary(unary, entrance)
            for name, streaming in service.streaming.items():
                path = f"/{service.name}/{name}"
                entrance = _Entrance(path, True, rooms.of(service, streaming=True), doors, closing)
                self._by_path[path] = _streaming(streaming, entrance)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        path = handler_call_details.method
        found = self._by_path.get(path)
        if found is not None or self._doors is None:
            return found
        return _streaming(_unknown, _Entrance(path, False, self._streams, self._doors, self.closing))


async def _unknown(stream: Stream) -> ConvoyError:
    return NotOffered("method is unknown")


def _unary(method: Unary, entrance: _Entrance) -> grpc.RpcMethodHandler:
    async def handle(received: Received, context: Any) -> bytes:
        trace = _trace(context)
        names: _Metadata = tuple(trace.headers()) if trace else ()
        try:
            with entrance.entered(context, trace) as caller:
                received = received._replace(caller=caller, trace=trace, source=_source(context))
                answer = await method(received, _deadline(context))
        except ConvoyError as error:
            answer = error
        except Exception:
            context.set_trailing_metadata(names)
            raise
        if isinstance(answer, ConvoyError):
            await _abort(context, answer, names)
        if names:
            await context.send_initial_metadata(names)
        _leave_short(context, answer)
        return answer

    return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=_received)


def _streaming(method: Streaming, entrance: _Entrance) -> grpc.RpcMethodHandler:
    async def handle(_: object, context: Any) -> None:
        trace = _trace(context)
        stream = _Stream(context, trace and trace.unsampled())
        try:
            with entrance.entered(context, trace) as stream.caller:
                refusal = await method(stream)
        except ConvoyError as error:
            refusal = error
        except Exception:
            context.set_trailing_metadata(stream.names)
            raise
        if refusal is not None:
            code, details, metadata = _told(refusal, stream.names)
            context.set_code(code)
            context.set_details(details)
            context.set_trailing_metadata(metadata)
        else:
            context.set_trailing_metadata(stream.names)

    return grpc.stream_stream_rpc_method_handler(handle, request_deserializer=_received)


def _leave_short(context: Any, message: bytes) -> None:
    """Sends a short message as it is. Without compression this changes nothing."""
    if len(message) < LEAST_COMPRESSED:
        context.disable_next_message_compression()


def _trace(context: Any) -> Trace | None:
    """Returns how the caller names its call, and whether it is sampled."""
    named = {name: value for name, value in context.invocation_metadata() if name in (REQUEST_ID, PARENT, STATE)}
    return read(named.get(REQUEST_ID), named.get(PARENT), named.get(STATE)) if named or names_all() else None


def _caller(context: Any, path: str, doors: Doors, trace: Trace | None) -> Caller:
    """Returns who calls. Raises what the doors raise."""
    authorization = None
    for name, value in context.invocation_metadata():
        if name == "authorization":
            authorization = value if isinstance(value, bytes) else value.encode()
    properties = context.auth_context()
    names = [
        name.decode("utf-8", "replace")
        for kind in ("peer_uri", "peer_dns", "x509_common_name")
        for name in properties.get(kind, ())
    ]
    return doors.admit(path.encode(), authorization, names, _peer(context.peer()), trace)


def _source(context: Any) -> Who:
    peer = context.peer()
    return Who(_peer(peer), peer)  # gRPC's text contains the port, which no other connection has


@lru_cache(4096)
def _peer(text: str) -> str:
    kind, _, address = text.partition(":")
    return peer_of(unquote(address).rpartition(":")[0].strip("[]")) if kind in ("ipv4", "ipv6") else "unix"


async def _abort(context: Any, error: ConvoyError, names: _Metadata) -> NoReturn:
    """Ends a unary call. `set_code` would have gRPC send an empty message first, after which no client repeats it."""
    await context.abort(*_told(error, names))
    raise AssertionError("abort returned")


def _told(error: ConvoyError, names: _Metadata) -> tuple[grpc.StatusCode, str, _Metadata]:
    """Returns the code, the message and the trailing metadata of a refusal that is all there is to the answer: then the
    names of the call are in it, too."""
    return _CODES[status.code_of(error)], status.message_of(error), (*status.trailers(error), *names)


def _received(data: bytes) -> Received:
    return Received(data, time.monotonic())


def _deadline(context: Any) -> float:
    left: float | None = context.time_remaining()
    return math.inf if left is None else time.monotonic() + left
