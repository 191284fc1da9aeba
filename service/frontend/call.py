"""One request, from its arrival to its answer: admission, deadline, status, duration, and stage times."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from types import TracebackType
from typing import Self

from convoy.service import metrics
from convoy.service.access import Caller
from convoy.service.errors import BadRequest, ConvoyError, DeadlinePassed
from convoy.service.frontend import status
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.engine_client import Lease
from convoy.service.frontend.landing import Landing
from convoy.service.frontend.request_log import REQUESTS
from convoy.service.frontend.spans import SPANS, Span
from convoy.service.frontend.status import Code
from convoy.service.frontend.threads import Who
from convoy.service.frontend.trace import of_request
from convoy.service.frontend.tracing import TRACES
from convoy.service.frontend.transport.interface import Received
from convoy.service.frontend.wire import NOTHING
from convoy.service.ipc.channel import Answer, Times
from convoy.service.metadata import Document
from convoy.service.repository import Version

log = logging.getLogger(__name__)

_MAX_SECONDS = 10**9
_NO_VERSION = Version(model="", version=0, state="UNAVAILABLE")


class Call:
    """One request in flight, from its arrival to its answer. A context manager: leaving it counts the request."""

    def __init__(self, method: str, received: Received, deadline: float, gate: Gate, *, streamed: bool = False) -> None:
        self.method = method
        self.arrived = received.arrived
        self.deadline = deadline  # inf: none
        self.caller = received.caller
        self._source = received.source
        self.trace = of_request(received.trace) if streamed else received.trace
        self.span = None if self.trace is None else self.trace.span  # None: it is not sampled
        self.row = _NO_VERSION  # the version that answers
        self.model = ""  # set only if the model exists: metrics accept no names made up by callers
        self.version = ""
        self.low_priority = False
        self.every_output = False  # it wants all that the network answers, not only what Vision's answers are made of
        self.streamed = streamed  # it is one of several in a call
        self.payloads = NOTHING  # of the request; those outside the message: see wire.py
        self.landing = received.data if isinstance(received.data, Landing) else None
        self._nbytes = len(received.data)
        self._gate = gate
        self._inside = False
        self._code = Code.OK
        self._refused = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError) and not self._refused:
            self._code = _count_cancelled(self)
        seconds = time.monotonic() - self.arrived
        metrics.count_request(self.model, self.version, self.method, self._code.name, seconds)
        if self._code is Code.OK and self.method in metrics.INFERENCE:
            if not self.low_priority:
                metrics.count_answer(self.model, self.version, self.row.latency_objective, seconds)
            if REQUESTS.all:
                REQUESTS.answered(self)
        if self.span is not None:
            SPANS.end(self, self._code.name)
        if self._inside:
            self._gate.leave(self._nbytes)

    def enter(self) -> None:
        """Admits the request. Raises UnknownCaller, QuotaExceeded, ModelUnavailable, QueueFull, DeadlinePassed."""
        if self.caller is not None:
            self._enter_as(self.caller)
        # Queries about the server and its models always pass: liveness is answered until the end.
        if self.method in metrics.INFERENCE:
            self._gate.enter(self._nbytes)
            self._inside = True
        self.check_deadline()

    def _enter_as(self, caller: Caller) -> None:
        caller.check()
        if caller.account is not None:
            if self.streamed:  # the call itself has been counted when it began
                caller.account.admit()
            caller.account.spend(self._nbytes)

    def leave(self) -> None:
        """Ends a request that is counted elsewhere, together with others."""
        if self.span is not None:
            SPANS.end(self, self._code.name)
        if self._inside:
            self._gate.leave(self._nbytes)

    def refuse(self, error: Exception) -> ConvoyError:
        """Counts a refusal and returns the error for the caller. Details of an internal error go only to the log."""
        if isinstance(error, ConvoyError):
            error.forget_origin()
            count_refusal(self, error)
            # Only on request: whoever is refused could fill the log.
            if log.isEnabledFor(logging.DEBUG) and not REQUESTS.failed:
                fields = {**self._fields(), "reason": error.reason, "detail": error.message}
                log.debug("request refused", extra={"fields": fields})
        else:
            log.error("request failed", exc_info=error, extra={"fields": self._fields()})
            error = ConvoyError("internal error")
            if self.span is not None:
                self.span.refused(error.reason, error.message)
        self._code = status.code_of(error)
        self._refused = True
        return error

    def permit(self, model: str) -> None:
        """Raises NotPermitted if the caller may not call a model, whether or not it exists; "": it is not named yet.

        Raises UnknownCaller if the caller is known no longer: a stream may last longer than that.
        """
        if self.caller is not None:
            self.caller.check()
            if model:
                self.caller.permit(model)

    def sees(self, model: str) -> bool:
        """Returns whether the caller may know that a model exists."""
        return self.caller is None or self.caller.sees(model)

    def _fields(self) -> dict[str, str]:
        """Returns what a log record says of the request."""
        fields = {"method": self.method}
        if self.caller is not None:
            fields["caller"] = self.caller.name
        return fields if self.trace is None else fields | self.trace.fields()

    @property
    def peer(self) -> str:
        """Where the caller is."""
        return self._source.caller

    @property
    def provider(self) -> str:
        """What the version that answers runs on; "": none does."""
        return self.row.provider

    @property
    def request_id(self) -> str:
        """Its name in the log; "": it has none."""
        return "" if self.trace is None else self.trace.request_id

    @property
    def who(self) -> Who:
        """Whose turn it is when its work comes to run: that of the caller's name, or else of its address."""
        caller = self.caller
        return self._source if caller is None or caller.public else self._source._replace(caller=caller.name)

    def serves(self, row: Version) -> None:
        """Records the version that answers this call. Raises NotPermitted."""
        self.permit(row.model)
        self.row = row
        self.model = row.model
        self.version = str(row.version)

    @property
    def document(self) -> Document:
        """The metadata of the version, which has some if it serves images."""
        assert self.row.document is not None
        return self.row.document

    def within(self, timeout: float) -> None:
        """Limits the deadline to `timeout` seconds after the arrival."""
        self.deadline = min(self.deadline, self.arrived + timeout)

    def limit(self, seconds: float) -> None:
        """Limits the deadline as `at_most` does. Raises BadRequest if `seconds` is out of range."""
        if not 0 <= seconds <= _MAX_SECONDS:
            raise BadRequest(f"deadline_seconds is {seconds:g}, want 0 to {_MAX_SECONDS}")
        if seconds:
            self.within(seconds)

    def at_deadline(self, act: Callable[[], None]) -> asyncio.TimerHandle:
        """Calls a function at the deadline, which is not inf, unless the timer is cancelled."""
        return asyncio.get_running_loop().call_later(max(0.0, self.deadline - time.monotonic()), act)

    @asynccontextmanager
    async def at_most(self, seconds: float) -> AsyncIterator[None]:
        """Ends the enclosed work at the latest `seconds` after the arrival; 0: when the call ends.

        For requests that share a call: gRPC enforces the call's own deadline. Raises DeadlinePassed, and BadRequest if
        `seconds` is out of range.
        """
        self.limit(seconds)
        if not seconds:
            yield
            return
        self.check_deadline()
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                yield
        except TimeoutError:
            raise DeadlinePassed("deadline passed before the answer was there") from None

    def check_deadline(self) -> None:
        """Raises DeadlinePassed if the deadline has passed."""
        if self.deadline <= time.monotonic():
            raise DeadlinePassed("deadline passed before the image reached the queue")


def stage_seconds(call: Call, prepared: Sequence[float], times: Times, done: float) -> list[float]:
    """Returns the seconds per stage, in the order of metrics.STAGES, and in total from the request's arrival to `done`.

    prepared  when preparation began, when images were decoded, and when they were in their slot
    """
    ends = (
        call.arrived,
        *prepared,  # the first ends `receive`: parsing, and the wait for a thread
        times.gather,  # queue: including the transfer to the engine
        times.run,
        times.scatter,
        times.done,
        done,  # postprocess: including the transfer from the engine
    )
    return [*(end - begin for begin, end in pairwise(ends)), done - call.arrived]


def observe(call: Call, lease: Lease, answer: Answer, images: int = 1) -> list[float]:
    """Records images that were answered together, and their stages, in the metrics. Returns their times: see
    stage_seconds."""
    seconds = stage_seconds(call, lease.prepared, answer.times, time.monotonic())
    metrics.count_images(call.model, call.version, images, seconds[:-1])
    if TRACES.on:
        TRACES.record(call, seconds, images)
    if call.span is not None:
        record_stages(call.span, seconds, lease, answer, images)
    return seconds


def record_stages(span: Span, seconds: Sequence[float], lease: Lease, answer: Answer, images: int = 1) -> None:
    """Records the stages of images that were answered together in the span of their request."""
    span.answered(seconds, images, answer.batch_size, None if lease.engine is None else lease.engine.device)


def count_refusal(call: Call, error: ConvoyError) -> None:
    """Counts an image, or a whole request, that was not served, and logs it where that is on."""
    metrics.REFUSALS.labels(call.model, error.reason).inc()
    if REQUESTS.failed:
        REQUESTS.refused(call, error.reason, error.message)
    if call.span is not None:
        call.span.refused(error.reason, error.message)
    if isinstance(error, DeadlinePassed):
        metrics.DEADLINE_MISSES.labels(call.model).inc()


def missed_deadline(call: Call, left: float) -> bool:
    """Returns whether a caller that left at `left` had run out of time, rather than cancelled.

    The two look the same here: gRPC cancels the handler. The caller's timer expires first: it started when the request
    was sent, and the caller's cancellation travels while our own timer still runs. So the last tenth of the time, or
    the last 5 ms if longer, counts as past the deadline.
    """
    return call.deadline < math.inf and left >= call.deadline - max(0.1 * (call.deadline - call.arrived), 0.005)


def _count_cancelled(call: Call) -> Code:
    late = missed_deadline(call, time.monotonic())
    (metrics.DEADLINE_MISSES if late else metrics.CANCELLED).labels(call.model).inc()
    code = Code.DEADLINE_EXCEEDED if late else Code.CANCELLED
    if REQUESTS.failed:
        REQUESTS.refused(call, DeadlinePassed.reason if late else code.name, "the caller has left")
    return code
