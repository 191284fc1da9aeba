"""Finds runs that never end. Plain code: batches and times in, a decision out."""

from collections.abc import Sequence

from convoy.service.engine.scheduler.batcher import Batch

_FACTOR = 10.0  # times its predicted time is what a run may take, on a machine that others use as well
_LONGEST_STEP = 1.0  # seconds between two looks that count: in a longer time this process was paused itself


class RunWatch:
    """The runs that were there at the last look, and for how long. One writer: the engine's loop.

    limit, first_limit  the least seconds that a run may take, if its shape has been measured and if not; 0: no limit
    """

    def __init__(self, limit: float, first_limit: float) -> None:
        self._limit = limit
        self._first_limit = first_limit
        self._seconds: dict[int, tuple[Batch, float]] = {}  # by identity
        self._last = 0.0

    def hung(self, running: Sequence[Batch], now: float) -> tuple[Batch, float] | None:
        """Returns a batch that runs for too long, and for how many seconds it has been seen to run."""
        step = min(now - self._last, _LONGEST_STEP)
        self._last = now
        before = self._seconds
        self._seconds = {}
        for batch in running:
            seconds = before[id(batch)][1] + step if id(batch) in before else 0.0
            self._seconds[id(batch)] = batch, seconds
            if 0 < self._allowed(batch) < seconds:
                return batch, seconds
        return None

    def _allowed(self, batch: Batch) -> float:
        least = self._limit if batch.seconds else self._first_limit
        return max(least, _FACTOR * batch.seconds) if least else 0.0
