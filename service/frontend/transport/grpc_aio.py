"""The transport on grpcio's asyncio server, with the health and reflection services of grpcio's packages."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf import text_format
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from convoy.service.errors import ConvoyError
from convoy.service.frontend import status
from convoy.service.frontend.transport.interface import Limits, Received, Service, Streaming, Unary
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_DESCRIBED = (
    vision_pb2.DESCRIPTOR.services_by_name["Vision"],
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    _HEALTH,
    _REFLECTION,
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcAio:
    """See Transport."""

    def __init__(self, address: str, services: Sequence[Service], limits: Limits) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", limits.message_bytes),
                ("grpc.max_send_message_length", -1),
                # Between these two sizes gRPC refuses at random, larger metadata more often. Equal sizes prevent that.
                ("grpc.max_metadata_size", limits.metadata_bytes),
                ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
                # Clients, idle or in a call, may ping this often without being disconnected.
                ("grpc.http2.min_ping_interval_without_data_ms", round(limits.min_ping_seconds * 1000)),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
            maximum_concurrent_rpcs=limits.calls,
        )
        self._health = health.HealthServicer()
        self._server.add_generic_rpc_handlers(tuple(_handlers(service) for service in services))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_reflection(self._server)
        self._server.add_insecure_port(address)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        await self._server.stop(seconds)

    async def set_health(self, service: str, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        await self._health.set(service, states.SERVING if serving else states.NOT_SERVING)


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


def _handlers(service: Service) -> grpc.GenericRpcHandler:
    unary = {name: _unary(method) for name, method in service.unary.items()}
    streaming = {name: _streaming(method) for name, method in service.streaming.items()}
    return grpc.method_handlers_generic_handler(service.name, unary | streaming)


def _unary(method: Unary) -> grpc.RpcMethodHandler:
    async def handle(received: Received, context: Any) -> bytes:
        answer = await method(received, _deadline(context))
        if isinstance(answer, ConvoyError):
            # Not abort: it raises through every caller above and takes twice as long.
            context.set_code(_CODES[status.code_of(answer)])
            context.set_details(status.message_of(answer))
            context.set_trailing_metadata(status.trailers(answer))
            return b""
        return answer

    return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=_received)


def _streaming(method: Streaming) -> grpc.RpcMethodHandler:
    async def handle(_: object, context: Any) -> None:
        await method(_Stream(context))

    return grpc.stream_stream_rpc_method_handler(handle, request_deserializer=_received)


def _received(data: bytes) -> Received:
    return Received(data, time.monotonic())


def _deadline(context: Any) -> float:
    left: float | None = context.time_remaining()
    return math.inf if left is None else time.monotonic() + left


def _add_reflection(server: grpc.aio.Server) -> None:
    names = [*(service.full_name for service in _DESCRIBED), _REFLECTION_V1]
    servicer = reflection.aio.ReflectionServicer(names, pool=_described(_DESCRIBED))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    # The messages of both versions are the same on the wire.
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    v1 = grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": handler})
    server.add_generic_rpc_handlers((v1,))


def _described(services: Sequence[ServiceDescriptor]) -> DescriptorPool:
    """Returns one pool with all services, because the Open Inference Protocol's messages are in their own pool."""
    pool = DescriptorPool()
    for service in services:
        file = FileDescriptorProto()
        service.file.CopyToProto(file)
        pool.Add(file)
    # The library contains only version 1alpha; version 1 differs from it only in name.
    alpha = FileDescriptorProto()
    _REFLECTION.file.CopyToProto(alpha)
    pool.Add(text_format.Parse(text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto()))
    return pool
