"""What the engine would refuse as too late, refused before anything is decoded or sent."""

from collections.abc import Hashable
from typing import NamedTuple

from convoy.service.errors import PredictedLate
from convoy.service.ipc.channel import NEVER

_VALID = 5_000_000  # ns for which one refusal speaks for others; then the engine is asked again
_MARGIN = 5_000_000  # ns by which work may be done earlier than was predicted
_CERTAIN = 0.01  # seconds: a smaller hint has been rounded up


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
