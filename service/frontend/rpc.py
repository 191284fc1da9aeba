"""Around every RPC: when it came, whether there is room, its deadline, its status, its duration, and who counts it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from service import metrics
from service.channel import NEVER
from service.errors import BadRequest, ConvoyError, DeadlinePassed, ModelUnavailable, QueueFull
from service.frontend import status
from service.repository import Version

log = logging.getLogger(__name__)


class Call:
    """One RPC under way."""

    def __init__(self, method: str, arrived: int, deadline: int) -> None:
        self.method = method
        self.arrived = arrived  # CLOCK_MONOTONIC, ns
        self.deadline = deadline  # CLOCK_MONOTONIC, ns, or NEVER
        self.model = ""  # of a model that there is: metrics take no name a caller made up
        self.version = ""

    def serves(self, row: Version) -> None:
        """The version that answers this call."""
        self.model = row.model
        self.version = str(row.version)

    def within(self, timeout: float) -> None:
        """The caller wants an answer within `timeout` seconds of its arrival."""
        self.deadline = min(self.deadline, self.arrived + round(timeout * 1e9))

    def check_deadline(self) -> None:
        """Raises DeadlinePassed."""
        if self.deadline <= time.monotonic_ns():
            raise DeadlinePassed("deadline passed before the image reached the queue")


class Gate:
    """Which requests may run a network, and how many are inside. One writer: the front end's loop."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._closed = False
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self) -> None:
        """Raises ModelUnavailable once closed, QueueFull where too many are inside."""
        if self._closed:
            raise ModelUnavailable("server is shutting down")
        if self._inside >= self._max_requests:
            raise QueueFull(
                f"{self._inside} requests are in flight, want at most {self._max_requests}", retry_after=0.1
            )
        self._inside += 1
        self._empty.clear()
        metrics.IN_FLIGHT.set(self._inside)

    def leave(self) -> None:
        """Undo `enter`."""
        self._inside -= 1
        metrics.IN_FLIGHT.set(self._inside)
        if not self._inside:
            self._empty.set()

    def close(self) -> None:
        """Nothing enters any more."""
        self._closed = True

    async def wait_empty(self) -> None:
        """Until the last has left."""
        await self._empty.wait()


class _Received(NamedTuple):
    message: Message | None  # None: not what the protocol says
    arrived: int


class _Context(Protocol):
    def time_remaining(self) -> float | None: ...

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[tuple[str, str | bytes], ...]
    ) -> None: ...


Implementation = Callable[[Any, Call], Awaitable[Message]]


def handlers(service: ServiceDescriptor, servicer: object, gate: Gate) -> grpc.GenericRpcHandler:
    """gRPC handlers for the methods of `service` that `servicer` has; the others answer UNIMPLEMENTED.

    A method is `async def Name(request, call) -> response` and raises ConvoyError.
    """
    methods = {
        method.name: _handler(method, getattr(servicer, method.name), gate)
        for method in service.methods
        if hasattr(servicer, method.name)
    }
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _handler(method: MethodDescriptor, implementation: Implementation, gate: Gate) -> grpc.RpcMethodHandler:
    request_class = GetMessageClass(method.input_type)

    def receive(data: bytes) -> _Received:
        # Parsed by hand, so that the arrival is stamped before it, and a bad message gets the usual status.
        arrived = time.monotonic_ns()
        try:
            return _Received(request_class.FromString(data), arrived)
        except Exception:  # protobuf's DecodeError, and what its C core raises on bad UTF-8
            return _Received(None, arrived)

    async def handle(received: _Received, context: _Context) -> Message:
        left = context.time_remaining()
        deadline = NEVER if left is None else time.monotonic_ns() + round(left * 1e9)
        call = Call(method.name, received.arrived, deadline)
        code = grpc.StatusCode.OK
        entered = False
        try:
            # Questions about the server and its models pass: liveness has an answer until the end.
            if method.name in metrics.INFERENCE:
                gate.enter()
                entered = True
            call.check_deadline()
            if received.message is None:
                raise BadRequest(f"request is not a {request_class.DESCRIPTOR.full_name} message")
            return await implementation(received.message, call)
        except ConvoyError as error:
            code = status.code_of(error)
            count_refusal(call, error)
            await context.abort(code, error.message, status.trailers(error))
        except asyncio.CancelledError:
            code = _count_gone(call)
            raise
        except Exception:  # a request ends here; what went wrong is ours, and stays in the log
            code = grpc.StatusCode.INTERNAL
            log.exception("request failed", extra={"fields": {"method": call.method}})
            await context.abort(code, "internal error", status.trailers(ConvoyError("internal error")))
        finally:
            seconds = (time.monotonic_ns() - received.arrived) / 1e9
            metrics.REQUEST_DURATION.labels(call.model, call.version, call.method, code.name).observe(seconds)
            if entered:
                gate.leave()
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=receive, response_serializer=lambda message: message.SerializeToString()
    )


def count_refusal(call: Call, error: ConvoyError) -> None:
    """An image, or a whole request, was not served."""
    metrics.REFUSALS.labels(call.model, error.reason).inc()
    if isinstance(error, DeadlinePassed):
        metrics.DEADLINE_MISSES.labels(call.model).inc()


def missed_deadline(call: Call, gone: int) -> bool:
    """Whether a caller that was `gone` (CLOCK_MONOTONIC, ns) had run out of time, rather than changed its mind.

    The two look the same here: gRPC cancels the handler. And the caller's clock runs out first, because its time began
    when it sent, and its going is on the way while our own timer still runs: so the last tenth of its time counts as
    over, or the last 5 ms.
    """
    return call.deadline != NEVER and gone >= call.deadline - max((call.deadline - call.arrived) // 10, 5_000_000)


def _count_gone(call: Call) -> grpc.StatusCode:
    if missed_deadline(call, time.monotonic_ns()):
        metrics.DEADLINE_MISSES.labels(call.model).inc()
        return grpc.StatusCode.DEADLINE_EXCEEDED
    metrics.CANCELLED.labels(call.model).inc()
    return grpc.StatusCode.CANCELLED
