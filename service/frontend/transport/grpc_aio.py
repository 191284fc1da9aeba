"""The transport on grpcio's asyncio server, for machines without libnghttp2."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from convoy.service.access import Caller
from convoy.service.errors import ConvoyError, NotOffered, QueueFull
from convoy.service.followed import Followed
from convoy.service.frontend import status
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.quotas import peer_of
from convoy.service.frontend.trace import PARENT, REQUEST_ID, Trace, read
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
    ) -> None:
        self._server = grpc.aio.server(
            options=_options(limits),
            # Beyond its own limit gRPC refuses any call. Ours leave health checks a place.
            maximum_concurrent_rpcs=4 * limits.calls,
            compression=_COMPRESSIONS[limits.compression],
        )
        if limits.compression != "none":
            # gRPC removes grpc-accept-encoding from what a method sees, and does not look at it either.
            log.warning("grpcio sends %s to all callers, also to those that do not accept it", limits.compression)
        self._server.add_generic_rpc_handlers((_Handlers(services, Rooms(limits), doors),))
        if tls is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, _credentials(tls))

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        await self._server.stop(seconds)

    async def renew(self) -> None:
        pass  # gRPC asks for the certificates at every connection


class _Stream:
    """A gRPC call as a Stream."""

    def __init__(self, context: Any, caller: Caller | None, trace: Trace | None) -> None:
        self.deadline = _deadline(context)
        self._context = context
        self._caller = caller
        self._trace = trace

    async def read(self) -> Received | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message._replace(caller=self._caller, trace=self._trace)

    async def write(self, data: bytes) -> None:
        _leave_short(self._context, data)
        with suppress(grpc.aio.InternalError):  # the caller has gone, and gRPC is about to cancel the call
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


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The methods by their path. Unknown ones pass the doors, too."""

    def __init__(self, services: Sequence[Service], rooms: Rooms, doors: Doors | None) -> None:
        self._doors = doors
        self._streams = rooms.of(services[0], streaming=True)
        self._by_path: dict[str, grpc.RpcMethodHandler] = {}
        for service in services:
            for name, unary in service.unary.items():
                path = f"/{service.name}/{name}"
                self._by_path[path] = _unary(unary, path, rooms.of(service, streaming=False), doors)
            for name, streaming in service.streaming.items():
                path = f"/{service.name}/{name}"
                self._by_path[path] = _streaming(streaming, path, rooms.of(service, streaming=True), doors)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        path = handler_call_details.method
        found = self._by_path.get(path)
        if found is not None or self._doors is None:
            return found
        return _streaming(_unknown, path, self._streams, self._doors)


async def _unknown(stream: Stream) -> ConvoyError:
    return NotOffered("method is unknown")


def _unary(method: Unary, path: str, room: Room, doors: Doors | None) -> grpc.RpcMethodHandler:
    async def handle(received: Received, context: Any) -> bytes:
        trace = await _trace(context)
        try:
            caller = None if doors is None else _caller(context, path, doors, trace)
            with _place(room):
                answer = await method(received._replace(caller=caller, trace=trace), _deadline(context))
        except ConvoyError as error:  # of the doors
            answer = error
        if isinstance(answer, ConvoyError):
            _refuse(context, answer)
            return b""
        _leave_short(context, answer)
        return answer

    return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=_received)


def _streaming(method: Streaming, path: str, room: Room, doors: Doors | None) -> grpc.RpcMethodHandler:
    async def handle(_: object, context: Any) -> None:
        trace = await _trace(context)
        try:
            caller = None if doors is None else _caller(context, path, doors, trace)
            with _place(room):
                refusal = await method(_Stream(context, caller, trace))
        except ConvoyError as error:  # of the doors
            refusal = error
        if refusal is not None:
            _refuse(context, refusal)

    return grpc.stream_stream_rpc_method_handler(handle, request_deserializer=_received)


@contextmanager
def _place(room: Room) -> Iterator[None]:
    """Counts a call for as long as it lasts. Raises QueueFull if there is no place."""
    if room.full:
        raise QueueFull(room.refusal)
    room.calls += 1
    try:
        yield
    finally:
        room.calls -= 1


def _leave_short(context: Any, message: bytes) -> None:
    """Sends a short message as it is. Without compression this changes nothing."""
    if len(message) < LEAST_COMPRESSED:
        context.disable_next_message_compression()


async def _trace(context: Any) -> Trace | None:
    """Returns how the caller names its call, and sends the name back."""
    named = {name: value for name, value in context.invocation_metadata() if name in (REQUEST_ID, PARENT)}
    found = read(named.get(REQUEST_ID), named.get(PARENT)) if named else None
    if found is not None and found.request_id:
        await context.send_initial_metadata(((REQUEST_ID, found.request_id),))
    return found


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
    kind, _, address = context.peer().partition(":")
    peer = peer_of(unquote(address).rpartition(":")[0].strip("[]")) if kind in ("ipv4", "ipv6") else "unix"
    return doors.admit(path.encode(), authorization, names, peer, trace)


def _refuse(context: Any, error: ConvoyError) -> None:
    # Not abort: it raises through every caller above and takes twice as long.
    context.set_code(_CODES[status.code_of(error)])
    context.set_details(status.message_of(error))
    context.set_trailing_metadata(status.trailers(error))


def _received(data: bytes) -> Received:
    return Received(data, time.monotonic())


def _deadline(context: Any) -> float:
    left: float | None = context.time_remaining()
    return math.inf if left is None else time.monotonic() + left
