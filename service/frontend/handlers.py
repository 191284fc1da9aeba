"""From gRPC's calls, unary and streams, to the servicers' methods."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from convoy.service.errors import BadRequest, ConvoyError
from convoy.service.frontend import status
from convoy.service.frontend.call import Call, Gate, serve
from convoy.service.frontend.streams import Conversation
from convoy.service.frontend.wire import LENGTH, Parser, block, tag
from convoy.service.ipc.channel import NEVER
from convoy.service.pb import inference_pb2 as pb

Response = Message | bytes  # bytes: a message that is written already
Implementation = Callable[[Any, Call], Awaitable[Response]]

# Where in their requests the methods have what may be large.
_PAYLOADS = {
    "Classify": "images.raw.pixels",
    "Segment": "images.raw.pixels",
    "ClassifyStream": "request.images.raw.pixels",
    "SegmentStream": "request.images.raw.pixels",
    "ModelInfer": "raw_input_contents",
    "ModelStreamInfer": "raw_input_contents",
}


class _Received(NamedTuple):
    """A message before it is parsed, so that its arrival is stamped first, and a bad one gets the usual status."""

    data: bytes
    arrived: int  # CLOCK_MONOTONIC, ns


class _Context(Protocol):
    def time_remaining(self) -> float | None: ...

    async def read(self) -> Any: ...

    async def write(self, message: Response) -> None: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str | bytes], ...]) -> None: ...


def handlers(
    service: ServiceDescriptor, servicer: object, gate: Gate, max_stream_requests: int
) -> grpc.GenericRpcHandler:
    """gRPC handlers for the methods of `service` that `servicer` has; the others answer UNIMPLEMENTED.

    A method is `async def Name(request, call) -> response` and raises ConvoyError. It serves the unary `Name`, and the
    stream: `NameStream`, each of whose messages has a request of `Name` in it, or ModelStreamInfer, whose messages are
    requests of ModelInfer.
    """
    methods = {}
    for method in service.methods:
        implementation = getattr(servicer, method.name.replace("Stream", ""), None)
        if implementation is None:
            continue
        if method.client_streaming:
            methods[method.name] = _streaming(method, implementation, gate, max_stream_requests)
        else:
            methods[method.name] = _unary(method, implementation, gate)
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _unary(method: MethodDescriptor, implementation: Implementation, gate: Gate) -> grpc.RpcMethodHandler:
    parser = Parser(method.input_type, _PAYLOADS.get(method.name))

    async def handle(received: _Received, context: _Context) -> Response:
        call = Call(method.name, received.arrived, _deadline(context))

        async def act() -> Response:
            request, call.payloads = parser.parse(received.data)
            return await implementation(request, call)

        async def reply(result: Response | ConvoyError) -> Response:
            if isinstance(result, ConvoyError):
                # Not abort: it raises, through all that stands above, and takes twice as long.
                context.set_code(status.code_of(result))
                context.set_details(status.message_of(result))
                context.set_trailing_metadata(status.trailers(result))
                return b""
            return result

        return await serve(call, len(received.data), gate, act, reply)

    return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=_received, response_serializer=_serialised)


def _streaming(
    method: MethodDescriptor, implementation: Implementation, gate: Gate, max_requests: int
) -> grpc.RpcMethodHandler:
    parser = Parser(method.input_type, _PAYLOADS.get(method.name))
    request_class = GetMessageClass(method.input_type)
    form = _Tensors(method) if method.name == "ModelStreamInfer" else _Envelopes(method)

    async def handle(_: object, context: _Context) -> None:
        deadline = _deadline(context)
        conversation = Conversation(context.read, context.write, gate.closed, max_requests)
        turns = _Turns() if form.ordered else None

        async def answer(received: _Received) -> None:
            turn = turns.take() if turns is not None else None  # tasks start in the order of their messages
            try:
                await answer_in(turn, received)
            finally:
                if turn is not None:
                    turn.over.set()

        async def answer_in(turn: _Turn | None, received: _Received) -> None:
            call = Call(method.name, received.arrived, deadline)
            fault = None
            try:
                message, call.payloads = parser.parse(received.data)
            except BadRequest as error:
                message, fault = request_class(), error

            async def act() -> Response:
                if fault is not None:
                    raise fault
                async with call.at_most(form.seconds(message)):
                    return await implementation(form.request(message), call)

            async def reply(result: Response | ConvoyError) -> None:
                if turn is not None:
                    await turn.before.wait()
                await conversation.say(form.response(message, result))

            await serve(call, len(received.data), gate, act, reply)

        await conversation.hold(answer)

    return grpc.stream_stream_rpc_method_handler(
        handle, request_deserializer=_received, response_serializer=_serialised
    )


class _Envelopes:
    """Messages of the Vision service's streams: an id, a request and its deadline; an id, and a response or an error.

    What is done first is answered first.
    """

    ordered = False

    def __init__(self, method: MethodDescriptor) -> None:
        self._class = GetMessageClass(method.output_type)
        self._inside = tag(method.output_type, "response", LENGTH)

    def request(self, message: Any) -> Any:
        return message.request

    def seconds(self, message: Any) -> float:
        seconds: float = message.deadline_seconds
        return seconds

    def response(self, message: Any, result: Response | ConvoyError) -> Response:
        if isinstance(result, ConvoyError):
            return self._class(id=message.id, error=status.request_error(result))
        if isinstance(result, bytes):
            return self._class(id=message.id).SerializeToString() + block(self._inside, result)
        return self._class(id=message.id, response=result)


class _Tensors:
    """Messages of ModelStreamInfer: requests as they are; a response, or an error and whose it is.

    Clients tell responses apart by their order. Each request has one response, which is thereby the final one: those
    who ask for an empty final response look for the parameter.
    """

    ordered = True

    def __init__(self, method: MethodDescriptor) -> None:
        self._inside = tag(method.output_type, "infer_response", LENGTH)

    def request(self, message: Any) -> Any:
        return message

    def seconds(self, message: Any) -> float:
        return 0.0  # the timeout is a parameter, and ModelInfer reads it

    def response(self, message: Any, result: Response | ConvoyError) -> Response:
        if not isinstance(result, ConvoyError):
            assert isinstance(result, pb.ModelInferResponse)
            result.parameters["triton_final_response"].bool_param = True
            return block(self._inside, result.SerializeToString())
        inside = pb.ModelInferResponse(id=message.id)
        inside.parameters["triton_final_response"].bool_param = True
        inside.parameters["convoy_status"].string_param = status.code_of(result).name
        inside.parameters["convoy_reason"].string_param = result.reason
        return pb.ModelStreamInferResponse(error_message=status.message_of(result), infer_response=inside)


class _Turn(NamedTuple):
    """When an answer may be sent: once the one before it is over."""

    before: asyncio.Event
    over: asyncio.Event


class _Turns:
    """The order in which a stream's requests came."""

    def __init__(self) -> None:
        self._last = asyncio.Event()
        self._last.set()

    def take(self) -> _Turn:
        """The turn of the request that comes next."""
        turn = _Turn(self._last, asyncio.Event())
        self._last = turn.over
        return turn


def _received(data: bytes) -> _Received:
    return _Received(data, time.monotonic_ns())


def _serialised(message: Response) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _deadline(context: _Context) -> int:
    left = context.time_remaining()
    return NEVER if left is None else time.monotonic_ns() + round(left * 1e9)
