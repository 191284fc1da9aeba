"""Which requests run now: one queue per model, version and shape, and when the batch at its head closes.

Plain code. Time comes in as an argument (seconds, monotonic), decisions go out: no clock, lock or I/O.

A batch closes when it is full; when its oldest request has waited `max_queue_delay`; when waiting longer would make a
request miss its deadline; or as soon as nothing more is on its way, because then waiting gains nothing. More is on its
way while a front end has accepted requests that it has not sent yet, and, where callers overlap, while requests keep
coming at their pace: a lone caller, who sends the next request after the answer, never waits.
"""

import heapq
import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from service.errors import QueueFull

_RUN_TIME_WEIGHT = 0.2  # of the newest measurement in the moving average
_GAP_WEIGHT = 0.1  # of the newest gap between arrivals in the moving average
_GAPS = 2.0  # average gaps without an arrival after which no more is expected
_MEMORY = 0.1  # seconds for which overlapping callers are remembered
_RUN_TIME_KEYS = 1024  # shapes whose run times are remembered; clients may send any number of sizes


class Key(NamedTuple):
    """Requests with the same key can run together."""

    model: str
    version: int
    shape: Hashable  # of the inputs, without the batch dimension


@dataclass(frozen=True, slots=True)
class Limits:
    """How one model's requests are put together."""

    max_batch_size: int  # rows
    max_queue_delay: float
    max_queue: int  # rows that may wait


@dataclass(frozen=True, slots=True)
class Request:
    """One request in a queue. `id` is the caller's own and unique; `payload` is not looked at."""

    id: Hashable
    source: Hashable  # the front end it came from
    rows: int
    arrived: float
    deadline: float  # math.inf where there is none
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests to run together, oldest first."""

    key: Key
    requests: list[Request]

    @property
    def rows(self) -> int:
        return sum(request.rows for request in self.requests)


@dataclass(slots=True)
class _Queue:
    limits: Limits
    waiting: dict[Hashable, Request] = field(default_factory=dict)  # in the order of arrival
    deadlines: list[tuple[float, int, Hashable]] = field(default_factory=list)  # heap; ended requests leave lazily
    rows: int = 0

    def oldest(self) -> Request:
        return next(iter(self.waiting.values()))

    def prune(self) -> None:
        """Keep the ended requests in the heap fewer than those that wait, but for a handful."""
        if len(self.deadlines) > 2 * len(self.waiting) + 64:
            self.deadlines = [entry for entry in self.deadlines if entry[2] in self.waiting]
            heapq.heapify(self.deadlines)

    def earliest_deadline(self) -> float:
        while self.deadlines and self.deadlines[0][2] not in self.waiting:
            heapq.heappop(self.deadlines)
        return self.deadlines[0][0] if self.deadlines else math.inf


@dataclass(slots=True)
class _Traffic:
    """What is known of a model's callers."""

    following: dict[Hashable, int] = field(default_factory=dict)  # source -> requests accepted there and not yet sent
    last: float = -math.inf  # arrival
    gap: float = math.inf  # seconds between arrivals, moving average
    overlapping_until: float = -math.inf

    def arrive(self, now: float) -> None:
        gap = max(0.0, now - self.last)
        self.last = now
        if gap >= _MEMORY:
            self.gap = math.inf  # a pause: what came before says nothing about now, nor does its length
        elif self.gap == math.inf:
            self.gap = gap
        else:
            self.gap += _GAP_WEIGHT * (gap - self.gap)

    def expected_until(self) -> float:
        """How long it makes sense to wait for the next request, as things stand; -inf: not at all."""
        if any(self.following.values()):
            return math.inf
        known = self.last < self.overlapping_until and self.gap < math.inf
        return self.last + _GAPS * self.gap if known else -math.inf


class Batcher:
    """All queues of one device. One writer: the engine's loop."""

    def __init__(self) -> None:
        self._queues: dict[Key, _Queue] = {}  # none of them empty
        self._homes: dict[Hashable, Key] = {}  # of each waiting request, by its id
        self._rows: Counter[str] = Counter()  # that wait, by model
        self._traffic: dict[str, _Traffic] = {}  # by model
        self._run_times: dict[Key, dict[int, float]] = {}  # seconds, moving average, by rows
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._homes)

    def waiting(self, model: str) -> int:
        """Rows of a model that wait, over all its versions and shapes."""
        return self._rows[model]

    def add(self, key: Key, request: Request, limits: Limits) -> None:
        """Queue a request. Raises QueueFull, with the time after which there should be room."""
        waiting = self._rows[key.model]
        if waiting and waiting + request.rows > limits.max_queue:
            batches = math.ceil(waiting / limits.max_batch_size)
            hint = min(10.0, max(0.01, batches * self.run_time(key, limits.max_batch_size)))
            raise QueueFull(
                f"queue of model {key.model!r} holds {waiting} images, want at most {limits.max_queue}",
                retry_after=hint,
            )
        self._traffic.setdefault(key.model, _Traffic()).arrive(request.arrived)
        queue = self._queues.setdefault(key, _Queue(limits))
        queue.waiting[request.id] = request
        queue.rows += request.rows
        self._homes[request.id] = key
        self._rows[key.model] += request.rows
        self._arrivals += 1
        if request.deadline < math.inf:
            heapq.heappush(queue.deadlines, (request.deadline, self._arrivals, request.id))
            queue.prune()

    def expect(self, model: str, source: Hashable, following: int, company: int, now: float) -> None:
        """What `source` has said of `model`: it will send `following` more; it has not answered `company` requests."""
        traffic = self._traffic.setdefault(model, _Traffic())
        traffic.following[source] = following
        if company > 1:
            traffic.overlapping_until = now + _MEMORY

    def forget(self, source: Hashable) -> list[Request]:
        """`source` has gone: nothing more is expected from it. Takes out what it sent: it is never run."""
        for traffic in self._traffic.values():
            traffic.following.pop(source, None)
        gone = [request for queue in self._queues.values() for request in queue.waiting.values()]
        return [self._remove(self._homes[request.id], request.id) for request in gone if request.source == source]

    def cancel(self, request_id: Hashable) -> Request | None:
        """Take a request out of its queue; None where it does not wait (any more)."""
        key = self._homes.get(request_id)
        return None if key is None else self._remove(key, request_id)

    def expired(self, now: float) -> list[Request]:
        """Take out the requests whose deadline has passed: they are never run."""
        gone = []
        for key, queue in list(self._queues.items()):
            while queue.earliest_deadline() <= now:
                gone.append(self._remove(key, queue.deadlines[0][2]))
        return gone

    def next(self, now: float) -> Batch | float | None:
        """The batch to run on an idle device now; or the time at which to ask again; or None where nothing waits.

        Among the queues that are ready, the one whose oldest request has waited longest goes first.
        """
        ready: Key | None = None
        oldest = again = math.inf
        for key, queue in self._queues.items():
            close_at = self._close_at(key, queue)
            if close_at > now:
                again = min(again, close_at)
            elif queue.oldest().arrived < oldest:
                ready, oldest = key, queue.oldest().arrived
        if ready is not None:
            return self._take(ready)
        return again if self._queues else None

    def ran(self, key: Key, rows: int, seconds: float) -> None:
        """A batch of `rows` took `seconds`, gather to scatter."""
        times = self._run_times.pop(key, {})
        before = times.get(rows, seconds)
        times[rows] = before + _RUN_TIME_WEIGHT * (seconds - before)
        self._run_times[key] = times  # the newest stands last
        if len(self._run_times) > _RUN_TIME_KEYS:
            del self._run_times[next(iter(self._run_times))]

    def run_time(self, key: Key, rows: int) -> float:
        """What a batch of `rows` should take, in seconds: as the nearest size that was measured; 0 before any was."""
        times = self._run_times.get(key)
        return times[min(times, key=lambda measured: (abs(measured - rows), measured))] if times else 0.0

    def _close_at(self, key: Key, queue: _Queue) -> float:
        if queue.rows >= queue.limits.max_batch_size:
            return -math.inf
        return min(
            queue.oldest().arrived + queue.limits.max_queue_delay,
            queue.earliest_deadline() - self.run_time(key, queue.rows),
            self._traffic[key.model].expected_until(),
        )

    def _take(self, key: Key) -> Batch:
        queue = self._queues[key]
        taken: list[Request] = []
        rows = 0
        for request in queue.waiting.values():
            if taken and rows + request.rows > queue.limits.max_batch_size:
                break
            taken.append(request)
            rows += request.rows
        for request in taken:
            self._remove(key, request.id)
        return Batch(key, taken)

    def _remove(self, key: Key, request_id: Hashable) -> Request:
        queue = self._queues[key]
        request = queue.waiting.pop(request_id)
        queue.rows -= request.rows
        self._rows[key.model] -= request.rows
        del self._homes[request_id]
        if not queue.waiting:
            del self._queues[key]
        return request
