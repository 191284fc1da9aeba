"""Who is let in: by room (`Gate`), and by time (`Outlook`, `WayBack`)."""

import asyncio
from collections.abc import Callable, Hashable
from typing import NamedTuple

from convoy.service.errors import ModelUnavailable, PredictedLate, QueueFull
from convoy.service.ipc.channel import NEVER

_VALID = 5_000_000  # ns for which one refusal speaks for others; then the engine is asked again
_MARGIN = 5_000_000  # ns by which work may be done earlier than was predicted
_CERTAIN = 0.01  # seconds: a smaller hint has been rounded up

_REPLY = 0.001  # seconds that gRPC takes for a reply, which nobody here sees
_QUANTILE = 0.999  # of a large batch's answers the last leaves many replies behind the first
_STEP = 0.2


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


class _Refused(NamedTuple):
    rows: int
    deadline: int  # CLOCK_MONOTONIC, ns
    finish: int  # when it would have been answered
    until: int  # how long this holds


class Outlook:
    """The last refusal of each kind of requests of a model. Whoever asks for as much, later, and for an answer before
    that time, would be refused, too: what the engine has taken in only grows until it is done. One writer: the front
    end's loop."""

    def __init__(self) -> None:
        self._refused: dict[Hashable, _Refused] = {}

    def learn(self, kind: Hashable, rows: int, deadline: int, error: PredictedLate, now: int) -> None:
        """The engine has refused a request of so many rows. What is of one kind shares queue and priority."""
        excess = error.retry_after or 0.0
        if deadline != NEVER and excess > _CERTAIN:
            self._refused[kind] = _Refused(rows, deadline, deadline + round(1e9 * excess), now + _VALID)

    def check(self, model: str, kind: Hashable, rows: int, deadline: int, now: int) -> None:
        """Raises PredictedLate."""
        last = self._refused.get(kind)
        if last is None:
            return
        if now > last.until:
            del self._refused[kind]
            return
        excess = last.finish - _MARGIN - deadline
        if rows >= last.rows and deadline >= last.deadline and excess > 0:
            raise PredictedLate(
                f"model {model!r} would answer {1e-6 * excess:.1f} ms after the deadline",
                retry_after=max(_CERTAIN, 1e-9 * excess),
            )


class WayBack:
    """How long answers take from the engine's last word to the reply, as 999 in 1,000 do not exceed it: what a deadline
    has to leave for that. Seconds; the usual stochastic step towards a quantile, rare large steps up, small ones down.
    """

    def __init__(self) -> None:
        self.bound = _REPLY

    def learn(self, seconds: float) -> None:
        """One answer took so long."""
        step = _QUANTILE if seconds + _REPLY > self.bound else _QUANTILE - 1
        self.bound = max(_REPLY, self.bound * (1 + _STEP * step))

    def leave(self, deadline: int, now: int) -> int:
        """When the engine has to be done, CLOCK_MONOTONIC in ns, for an answer by `deadline`: at the latest in half of
        the time that is left."""
        if deadline == NEVER:
            return NEVER
        return deadline - min(round(self.bound * 1e9), max(0, deadline - now) // 2)
