"""The transport on grpcio's asyncio server, for machines without libnghttp2."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from convoy.service.errors import ConvoyError
from convoy.service.followed import Followed
from convoy.service.frontend import status
from convoy.service.frontend.transport.interface import Limits, Received, Service, Streaming, Unary
from convoy.service.tls import Tls

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcAio:
    """See Transport."""

    def __init__(
        self, address: str, services: Sequence[Service], limits: Limits, tls: Followed[Tls] | None = None
    ) -> None:
        self._server = grpc.aio.server(options=_options(limits), maximum_concurrent_rpcs=limits.calls)
        self._server.add_generic_rpc_handlers(tuple(_handlers(service) for service in services))
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

    def __init__(self, context: Any) -> None:
        self.deadline = _deadline(context)
        self._context = context

    async def read(self) -> Received | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    async def write(self, data: bytes) -> None:
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


def _handlers(service: Service) -> grpc.GenericRpcHandler:
    unary = {name: _unary(method) for name, method in service.unary.items()}
    streaming = {name: _streaming(method) for name, method in service.streaming.items()}
    return grpc.method_handlers_generic_handler(service.name, unary | streaming)


def _unary(method: Unary) -> grpc.RpcMethodHandler:
    async def handle(received: Received, context: Any) -> bytes:
        answer = await method(received, _deadline(context))
        if isinstance(answer, ConvoyError):
            _refuse(context, answer)
            return b""
        return answer

    return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=_received)


def _streaming(method: Streaming) -> grpc.RpcMethodHandler:
    async def handle(_: object, context: Any) -> None:
        refusal = await method(_Stream(context))
        if refusal is not None:
            _refuse(context, refusal)

    return grpc.stream_stream_rpc_method_handler(handle, request_deserializer=_received)


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
