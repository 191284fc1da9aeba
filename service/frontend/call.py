"""One request, from its arrival to its answer: room, deadline, status, duration, and where its time went."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Self

from convoy.service import metrics
from convoy.service.errors import BadRequest, ConvoyError, DeadlinePassed
from convoy.service.frontend import status
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.status import Code
from convoy.service.frontend.transport.interface import Received
from convoy.service.frontend.wire import NOTHING
from convoy.service.ipc.channel import NEVER, Times
from convoy.service.repository import Version

log = logging.getLogger(__name__)

_MAX_SECONDS = 10**9


class Call:
    """One request under way, from its arrival to its answer. A context manager: leaving it counts the request."""

    def __init__(self, method: str, received: Received, deadline: int, gate: Gate) -> None:
        self.method = method
        self.arrived = received.arrived  # CLOCK_MONOTONIC, ns
        self.deadline = deadline  # CLOCK_MONOTONIC, ns, or NEVER
        self.model = ""  # of a model that there is: metrics take no name a caller made up
        self.version = ""
        self.low_priority = False
        self.payloads = NOTHING  # of its request, those that are not in the message: see wire.py
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
            self._code = _count_gone(self)
        seconds = (time.monotonic_ns() - self.arrived) / 1e9
        metrics.count_request(self.model, self.version, self.method, self._code.name, seconds)
        if self._inside:
            self._gate.leave(self._nbytes)

    def enter(self) -> None:
        """Let it in. Raises ModelUnavailable, QueueFull, DeadlinePassed."""
        # Questions about the server and its models pass: liveness has an answer until the end.
        if self.method in metrics.INFERENCE:
            self._gate.enter(self._nbytes)
            self._inside = True
        self.check_deadline()

    def refuse(self, error: Exception) -> ConvoyError:
        """Why there is no answer, counted. Of a mistake of ours the caller learns no more than that it was one."""
        if isinstance(error, ConvoyError):
            count_refusal(self, error)
        else:
            log.error("request failed", exc_info=error, extra={"fields": {"method": self.method}})
            error = ConvoyError("internal error")
        self._code = status.code_of(error)
        self._refused = True
        return error

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


class Marks(NamedTuple):
    """When the front end's stages ended, CLOCK_MONOTONIC in ns. Tensors need no decoding: `decoded` is then `began`."""

    began: int
    decoded: int
    preprocessed: int


class Timings(NamedTuple):
    """Seconds by stage, in the order of metrics.STAGES, and from the request's arrival to the result."""

    stages: Sequence[float]
    total: float


def observe(call: Call, marks: Marks, times: Times, images: int = 1) -> Timings:
    """Count images that were answered together, and their stages, in the metrics; they come back for the response."""
    done = time.monotonic_ns()
    ends = (
        call.arrived,
        marks.began,  # receive: parsing, and the wait for a thread
        marks.decoded,
        marks.preprocessed,
        times.gather,  # queue: with the way to the engine
        times.run,
        times.scatter,
        times.done,
        done,  # postprocess: with the way back from the engine
    )
    stages = [(end - begin) / 1e9 for begin, end in pairwise(ends)]
    metrics.count_images(call.model, call.version, images, stages)
    return Timings(stages, (done - call.arrived) / 1e9)


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


def _count_gone(call: Call) -> Code:
    if missed_deadline(call, time.monotonic_ns()):
        metrics.DEADLINE_MISSES.labels(call.model).inc()
        return Code.DEADLINE_EXCEEDED
    metrics.CANCELLED.labels(call.model).inc()
    return Code.CANCELLED
