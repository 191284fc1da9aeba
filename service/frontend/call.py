"""Around every request: when it came, whether there is room, its deadline, status and duration, and who counts it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from convoy.service import metrics
from convoy.service.errors import BadRequest, ConvoyError, DeadlinePassed, ModelUnavailable, QueueFull
from convoy.service.frontend import status
from convoy.service.frontend.wire import NOTHING
from convoy.service.ipc.channel import NEVER
from convoy.service.repository import Version

log = logging.getLogger(__name__)

Reply = TypeVar("Reply")

_MAX_SECONDS = 10**9


class Call:
    """One RPC under way."""

    def __init__(self, method: str, arrived: int, deadline: int) -> None:
        self.method = method
        self.arrived = arrived  # CLOCK_MONOTONIC, ns
        self.deadline = deadline  # CLOCK_MONOTONIC, ns, or NEVER
        self.model = ""  # of a model that there is: metrics take no name a caller made up
        self.version = ""
        self.low_priority = False
        self.payloads = NOTHING  # of its request, those that are not in the message: see wire.py

    def serves(self, row: Version) -> None:
        """The version that answers this call."""
        self.model = row.model
        self.version = str(row.version)

    def within(self, timeout: float) -> None:
        """The caller wants an answer within `timeout` seconds of its arrival."""
        self.deadline = min(self.deadline, self.arrived + round(timeout * 1e9))

    @asynccontextmanager
    async def at_most(self, seconds: float) -> AsyncIterator[None]:
        """What is done inside ends at the latest `seconds` after the arrival; 0: when the call ends.

        For requests that share a call: of the call's own deadline gRPC takes care. Raises DeadlinePassed, and
        BadRequest where that is no time.
        """
        if not 0 <= seconds <= _MAX_SECONDS:
            raise BadRequest(f"deadline_seconds is {seconds:g}, want 0 to {_MAX_SECONDS}")
        if not seconds:
            yield
            return
        self.within(seconds)
        self.check_deadline()
        try:
            async with asyncio.timeout((self.deadline - time.monotonic_ns()) / 1e9):
                yield
        except TimeoutError:
            raise DeadlinePassed("deadline passed before the answer was there") from None

    def check_deadline(self) -> None:
        """Raises DeadlinePassed."""
        if self.deadline <= time.monotonic_ns():
            raise DeadlinePassed("deadline passed before the image reached the queue")


class Gate:
    """Which requests may run a network, and how many are inside with how many bytes. One writer: the front end's
    loop."""

    def __init__(self, max_requests: int, max_bytes: int, changed: Callable[[], None] = lambda: None) -> None:
        self.closed = asyncio.Event()
        self.requests = 0  # inside
        self.bytes = 0  # of them
        self._changed = changed
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, nbytes: int) -> None:
        """A request of `nbytes` comes in. Raises ModelUnavailable once closed, QueueFull where too much is inside."""
        if self.closed.is_set():
            raise ModelUnavailable("server is shutting down")
        if self.requests >= self._max_requests:
            raise QueueFull(
                f"{self.requests} requests are in flight, want at most {self._max_requests}", retry_after=0.1
            )
        if self.bytes + nbytes > self._max_bytes:
            raise QueueFull(
                f"request has {nbytes} bytes beside {self.bytes} in flight, want at most {self._max_bytes} in all",
                retry_after=0.1,
            )
        self._empty.clear()
        self._count(1, nbytes)

    def leave(self, nbytes: int) -> None:
        """Undo `enter`."""
        self._count(-1, -nbytes)
        if not self.requests:
            self._empty.set()

    def close(self) -> None:
        """Nothing enters any more."""
        self.closed.set()

    async def wait_empty(self) -> None:
        """Until the last has left."""
        await self._empty.wait()

    def _count(self, requests: int, nbytes: int) -> None:
        self.requests += requests
        self.bytes += nbytes
        self._changed()


async def serve(
    call: Call,
    nbytes: int,
    gate: Gate,
    act: Callable[[], Awaitable[Message | bytes]],
    reply: Callable[[Message | bytes | ConvoyError], Awaitable[Reply]],
) -> Reply:
    """One request of `nbytes` from the gate to its reply, counted on the way.

    `reply` is given what `act` answers, or why there is no answer; the request is inside until it has returned.
    """
    code = grpc.StatusCode.OK
    entered = False
    result: Message | bytes | ConvoyError
    try:
        try:
            # Questions about the server and its models pass: liveness has an answer until the end.
            if call.method in metrics.INFERENCE:
                gate.enter(nbytes)
                entered = True
            call.check_deadline()
            result = await act()
        except ConvoyError as error:
            count_refusal(call, error)
            result = error
        except asyncio.CancelledError:
            code = _count_gone(call)
            raise
        except Exception:  # a request ends here; what went wrong is ours, and stays in the log
            log.exception("request failed", extra={"fields": {"method": call.method}})
            result = ConvoyError("internal error")
        if isinstance(result, ConvoyError):
            code = status.code_of(result)
        return await reply(result)
    finally:
        seconds = (time.monotonic_ns() - call.arrived) / 1e9
        metrics.count_request(call.model, call.version, call.method, code.name, seconds)
        if entered:
            gate.leave(nbytes)


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
