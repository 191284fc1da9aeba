"""The transport on grpcio's asyncio server, for machines without libnghttp2."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import grpc.aio

from convoy.service.errors import ConvoyError
from convoy.service.frontend import status
from convoy.service.frontend.transport.interface import (
    LEAST_COMPRESSED,
    Limits,
    Received,
    Room,
    Rooms,
    Service,
    Streaming,
    Unary,
)

log = logging.getLogger(__name__)

_COMPRESSIONS = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcAio:
    """See Transport."""

    def __init__(self, address: str, services: Sequence[Service], limits: Limits) -> None:
        self._server = grpc.aio.server(
            options=_options(limits),
            # Beyond its own limit gRPC refuses any call. Ours leave health checks a place.
            maximum_concurrent_rpcs=4 * limits.calls,
            compression=_COMPRESSIONS[limits.compression],
        )
        if limits.compression != "none":
            # gRPC removes grpc-accept-encoding from what a method sees, and does not look at it either.
            log.warning("grpcio sends %s to all callers, also to those that do not accept it", limits.compression)
        rooms = Rooms(limits)
        self._server.add_generic_rpc_handlers(tuple(_handlers(service, rooms) for service in services))
        self._server.add_insecure_port(address)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        await self._server.stop(seconds)


class _Stream:
    """A gRPC call as a Stream."""

    def __init__(self, context: Any) -> None:
        self.deadline = _deadline(context)
        self._context = context

    async def read(self) -> Received | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    async def write(self, data: bytes) -> None:
        _leave_short(self._context, data)
        with suppress(grpc.aio.InternalError):  # the caller has gone, and gRPC is about to cancel the call
            await self._context.write(data)


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


def _handlers(service: Service, rooms: Rooms) -> grpc.GenericRpcHandler:
    room, streams = rooms.of(service, streaming=False), rooms.of(service, streaming=True)
    unary = {name: _unary(method, room) for name, method in service.unary.items()}
    streaming = {name: _streaming(method, streams) for name, method in service.streaming.items()}
    return grpc.method_handlers_generic_handler(service.name, unary | streaming)


def _unary(method: Unary, room: Room) -> grpc.RpcMethodHandler:
    async def handle(received: Received, context: Any) -> bytes:
        with _place(room, context) as admitted:
            answer = await method(received, _deadline(context)) if admitted else b""
        if isinstance(answer, ConvoyError):
            _refuse(context, answer)
            return b""
        _leave_short(context, answer)
        return answer

    return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=_received)


def _streaming(method: Streaming, room: Room) -> grpc.RpcMethodHandler:
    async def handle(_: object, context: Any) -> None:
        with _place(room, context) as admitted:
            refusal = await method(_Stream(context)) if admitted else None
        if refusal is not None:
            _refuse(context, refusal)

    return grpc.stream_stream_rpc_method_handler(handle, request_deserializer=_received)


@contextmanager
def _place(room: Room, context: Any) -> Iterator[bool]:
    """Counts a call for as long as it lasts. Yields whether it may begin; if not, it is refused."""
    if room.full:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details(room.refusal)
        yield False
        return
    room.calls += 1
    try:
        yield True
    finally:
        room.calls -= 1


def _leave_short(context: Any, message: bytes) -> None:
    """Sends a short message as it is. Without compression this changes nothing."""
    if len(message) < LEAST_COMPRESSED:
        context.disable_next_message_compression()


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
