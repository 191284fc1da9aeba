"""The methods of a service as a transport calls them: unary methods, and streams of their requests."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from convoy.service import metrics
from convoy.service.errors import ConvoyError, DeadlinePassed
from convoy.service.frontend import status
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.call import Call
from convoy.service.frontend.coalescing import LARGEST, Coalescer, Joinable, PromptMethod
from convoy.service.frontend.landing import Landings
from convoy.service.frontend.streams import Conversation, Reply, Work
from convoy.service.frontend.transport.interface import Land, Prompt, Received, Service, Stream
from convoy.service.frontend.wire import LENGTH, Parser, block, tag
from convoy.service.pb import inference_pb2 as pb

Response = Message | bytes  # bytes: an encoded message
Implementation = Callable[[Any, Call], Awaitable[Response]]

# Paths of the fields that may be large in the methods' requests.
_PAYLOADS = {
    "Classify": "images.raw.pixels",
    "Segment": "images.raw.pixels",
    "ClassifyStream": "request.images.raw.pixels",
    "SegmentStream": "request.images.raw.pixels",
    "ModelInfer": "raw_input_contents",
    "ModelStreamInfer": "raw_input_contents",
}


def service_of(
    descriptor: ServiceDescriptor,
    servicer: object,
    gate: Gate,
    max_stream_requests: int,
    coalescer: Coalescer | None = None,
    landings: Landings | None = None,
) -> Service:
    """Returns the methods of a service that `servicer` implements.

    A method is `async def Name(request, call) -> response` and raises ConvoyError. It serves the unary `Name` and its
    stream. The stream is `NameStream`, whose messages each contain a request of `Name`, or ModelStreamInfer, whose
    messages are requests of ModelInfer. Requests of `servicer.joinable` may travel together. Large payloads of unary
    requests land if there are `landings`.
    """
    prompt: dict[str, Prompt] = {}
    land: dict[str, Land] = {}
    service = Service(descriptor.full_name, {}, {}, prompt, land)
    for method in descriptor.methods:
        name = method.name.replace("Stream", "")
        implementation = getattr(servicer, name, None)
        if implementation is None:
            continue
        joinable: Any = servicer if coalescer is not None and name in getattr(servicer, "joinable", ()) else None
        if method.client_streaming:
            form = Tensors(method) if method.name == "ModelStreamInfer" else Envelopes(method)
            joint = Joint(joinable, coalescer) if coalescer is not None and joinable else None
            service.streaming[method.name] = StreamMethod(
                method, implementation, gate, form, max_stream_requests, joint
            )
        else:
            unary = service.unary[method.name] = UnaryMethod(method, implementation, gate)
            if landings is not None and (accept := landings.land(unary.parser)) is not None:
                land[method.name] = accept
            if coalescer is not None and joinable:
                prompt[method.name] = PromptMethod(method.name, unary.parser, joinable, gate, coalescer)
    return service


def joined(one: Service, other: Service) -> Service:
    """Returns a service with the methods of two servicers."""
    return one._replace(unary={**one.unary, **other.unary}, streaming={**one.streaming, **other.streaming})


class UnaryMethod:
    """A method with one request and one answer."""

    def __init__(self, method: MethodDescriptor, implementation: Implementation, gate: Gate) -> None:
        self._name = method.name
        self.parser = Parser(method.input_type, _PAYLOADS.get(method.name))
        self._implementation = implementation
        self._gate = gate

    async def __call__(self, received: Received, deadline: float) -> bytes | ConvoyError:
        with Call(self._name, received, deadline, self._gate) as call:
            try:
                call.enter()
                request, call.payloads = self.parser.parse(received.data)
                response = await self._implementation(request, call)
                return response if isinstance(response, bytes) else response.SerializeToString()
            except Exception as error:
                return call.refuse(error)


class Joint(NamedTuple):
    """Where requests travel together."""

    method: Joinable
    coalescer: Coalescer


class StreamMethod:
    """A method with many requests in one call, each with its own answer, deadline and status."""

    def __init__(
        self,
        method: MethodDescriptor,
        implementation: Implementation,
        gate: Gate,
        form: "Envelopes | Tensors",
        max_requests: int,
        joint: Joint | None = None,
    ) -> None:
        self._name = method.name
        self._empty = GetMessageClass(method.input_type)
        self._parser = Parser(method.input_type, _PAYLOADS.get(method.name))
        self._implementation = implementation
        self._gate = gate
        self._form = form
        self._max_requests = max_requests
        self._joint = joint

    async def __call__(self, stream: Stream) -> None:
        conversation = Conversation(stream, self._gate.closed, self._max_requests, ordered=self._form.ordered)
        await conversation.run(self._answer)

    def _answer(self, received: Received, deadline: float, reply: Reply) -> Work | None:
        """See Answer: a request that can travel with others has no task."""
        call = Call(self._name, received, deadline, self._gate, streamed=True)
        message = self._empty()
        try:
            message, call.payloads = self._parser.parse(received.data)  # first, because a refusal repeats the id
            seconds = self._form.seconds(message)
            call.limit(seconds)
            row = None
            if self._joint is not None and len(received.data) <= LARGEST:
                row = self._joint.method.row(self._form.request(message), call)
            if row is None:
                return partial(self._alone, call, message, reply)
            call.enter()
        except Exception as error:  # ends this request
            refusal = call.refuse(error)
            call.__exit__(None, None, None)
            reply.put(self._form.response(message, refusal))
            return None
        assert self._joint is not None
        timer = call.at_deadline(lambda: _expire(call, reply, self._form, message)) if seconds else None

        def answer(result: bytes | ConvoyError) -> None:
            if timer is not None:
                timer.cancel()
            reply.put(self._form.response(message, result))

        reply.leave = self._joint.coalescer.join(row, call, answer, self._joint.method)
        return None

    async def _alone(self, call: Call, message: Any, reply: Reply) -> None:
        result: Response | ConvoyError
        with call:
            try:
                call.enter()
                async with call.at_most(self._form.seconds(message)):
                    result = await self._implementation(self._form.request(message), call)
            except Exception as error:
                result = call.refuse(error)
            # The request counts as in flight until its answer is sent.
            await reply.send(self._form.response(message, result))


def _expire(call: Call, reply: Reply, form: "Envelopes | Tensors", message: Any) -> None:
    """Ends a request without a task whose own deadline has passed."""
    if reply.leave is not None:
        reply.leave()
        error = DeadlinePassed("deadline passed before the answer was there")
        metrics.REFUSALS.labels(call.model, error.reason).inc()
        reply.put(form.response(message, error))


class Envelopes:
    """Messages of the Vision service's streams: an id, a request and its deadline; an id, and a response or an error.

    Answers are sent in the order of completion.
    """

    ordered = False

    def __init__(self, method: MethodDescriptor) -> None:
        self._class = GetMessageClass(method.output_type)
        self._inside = tag(method.output_type, "response", LENGTH)

    def request(self, message: Any) -> Any:
        """Returns the request that the method accepts."""
        return message.request

    def seconds(self, message: Any) -> float:
        """Returns the request's own time limit in seconds; 0: none."""
        seconds: float = message.deadline_seconds
        return seconds

    def response(self, message: Any, result: Response | ConvoyError) -> bytes:
        """Returns the encoded answer to `message`."""
        head: Message = self._class(id=message.id)
        if isinstance(result, ConvoyError):
            head = self._class(id=message.id, error=status.request_error(result))
            return head.SerializeToString()
        inside = result if isinstance(result, bytes) else result.SerializeToString()
        return head.SerializeToString() + block(self._inside, inside)


def _final() -> bytes:
    response = pb.ModelInferResponse()
    response.parameters["triton_final_response"].bool_param = True
    return response.SerializeToString()


_FINAL = _final()  # as a map's entry it can follow any response


class Tensors:
    """Messages of ModelStreamInfer: plain requests; a response, or an error and the id of its request.

    Clients match responses to requests by their order. Each request has one response, which is therefore the final one:
    clients that ask for an empty final response check the parameter.
    """

    ordered = True

    def __init__(self, method: MethodDescriptor) -> None:
        self._inside = tag(method.output_type, "infer_response", LENGTH)

    def request(self, message: Any) -> Any:
        """See Envelopes."""
        return message

    def seconds(self, message: Any) -> float:
        """Returns 0: the timeout is a parameter, which ModelInfer reads."""
        return 0.0

    def response(self, message: Any, result: Response | ConvoyError) -> bytes:
        """See Envelopes."""
        if not isinstance(result, ConvoyError):
            encoded = result if isinstance(result, bytes) else result.SerializeToString()
            return block(self._inside, encoded + _FINAL)
        inside = pb.ModelInferResponse(id=message.id)
        inside.parameters["triton_final_response"].bool_param = True
        inside.parameters["convoy_status"].string_param = status.code_of(result).name
        inside.parameters["convoy_reason"].string_param = result.reason
        failed = pb.ModelStreamInferResponse(error_message=status.message_of(result), infer_response=inside)
        return failed.SerializeToString()
