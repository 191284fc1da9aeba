"""Admission of requests: by capacity (`Gate`), and by time (`Outlook`, `WayBack`)."""

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import NamedTuple

from convoy.service.errors import ModelUnavailable, PredictedLate, QueueFull

# All times are in seconds.
_VALID = 0.005  # for which one refusal applies to others; then the engine decides again
_MARGIN = 0.005  # by which work may end earlier than predicted
_CERTAIN = 0.01  # smaller hints are rounded up to this

_REPLY = 0.001  # that gRPC takes for a reply, which cannot be measured here
_QUANTILE = 0.999  # so high, because in a large batch the last answer leaves many replies after the first
_STEP = 0.2


class Gate:
    """Admission of requests that run a network, and the number and bytes of those in flight. One writer: the front
    end's loop."""

    def __init__(self, max_requests: int, max_bytes: int, changed: Callable[[], None] = lambda: None) -> None:
        self.closed = asyncio.Event()
        self.requests = 0  # in flight
        self.bytes = 0  # of those requests
        self._changed = changed
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, nbytes: int) -> None:
        """Admits a request of `nbytes`. Raises ModelUnavailable once closed, QueueFull if too much is in flight."""
        if self.closed.is_set():
            raise ModelUnavailable("server is shutting down")
        if self.requests >= self._max_requests:
            raise QueueFull(
                f"{self.requests} requests are in flight, want at most {self._max_requests}", retry_after=0.1
            )
        if self.bytes + nbytes > self._max_bytes:
            raise QueueFull(
                f"request has {nbytes} bytes in addition to {self.bytes} in flight, "
                f"want at most {self._max_bytes} in total",
                retry_after=0.1,
            )
        self._empty.clear()
        self._count(1, nbytes)

    def leave(self, nbytes: int) -> None:
        """Undoes `enter`."""
        self._count(-1, -nbytes)
        if not self.requests:
            self._empty.set()

    def close(self) -> None:
        """Stops admitting requests."""
        self.closed.set()

    async def wait_empty(self) -> None:
        """Waits until the last request has left."""
        await self._empty.wait()

    def _count(self, requests: int, nbytes: int) -> None:
        self.requests += requests
        self.bytes += nbytes
        self._changed()


class _Refused(NamedTuple):
    rows: int
    deadline: float
    finish: float  # predicted time of its answer
    until: float  # end of this record's validity


class Outlook:
    """The last refusal of each kind of request for a model.

    A request with as many rows or more, and a deadline that is no earlier but still before the predicted answer, would
    be refused too: the engine's backlog only grows until it is worked off. One writer: the front end's loop.
    """

    def __init__(self) -> None:
        self._refused: dict[Hashable, _Refused] = {}

    def learn(self, kind: Hashable, rows: int, deadline: float, error: PredictedLate, now: float) -> None:
        """Records that the engine refused a request of `rows` rows. Requests of one kind share queue and priority."""
        excess = error.retry_after or 0.0
        if deadline < math.inf and excess > _CERTAIN:
            self._refused[kind] = _Refused(rows, deadline, deadline + excess, now + _VALID)

    def check(self, model: str, kind: Hashable, rows: int, deadline: float, now: float) -> None:
        """Raises PredictedLate if the engine would refuse the request."""
        last = self._refused.get(kind)
        if last is None:
            return
        if now > last.until:
            del self._refused[kind]
            return
        excess = last.finish - _MARGIN - deadline
        if rows >= last.rows and deadline >= last.deadline and excess > 0:
            raise PredictedLate(
                f"model {model!r} would answer {1000 * excess:.1f} ms after the deadline",
                retry_after=max(_CERTAIN, excess),
            )


class WayBack:
    """The time in seconds from the engine's answer to the reply, for which a deadline must leave room: 999 of 1,000
    answers do not exceed it. Estimated by stochastic steps towards that quantile: rare large ones up, small ones down.
    """

    def __init__(self) -> None:
        self.bound = _REPLY

    def learn(self, seconds: float) -> None:
        """Records the time of one answer."""
        step = _QUANTILE if seconds + _REPLY > self.bound else _QUANTILE - 1
        self.bound = max(_REPLY, self.bound * (1 + _STEP * step))

    def leave(self, deadline: float, now: float) -> float:
        """Returns the engine's own deadline for an answer by `deadline`. The engine gets at least half of the remaining
        time."""
        return deadline - min(self.bound, max(0.0, deadline - now) / 2)
