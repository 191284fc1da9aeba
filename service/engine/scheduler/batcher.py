"""The queues of one device: which requests run now, and which cannot be answered in time.

Plain code without clock, lock or I/O: time is an argument (seconds, monotonic), decisions are return values. There is
one queue per model, version and shape. Among the queues whose batch has closed, the one whose latest start time is
earliest runs first. The policy of its model (`policies.py`) decides when a batch closes and what it contains.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from convoy.service.engine.scheduler.policies import POLICIES, Traffic
from convoy.service.engine.scheduler.request_queue import Key, Limits, Place, Queue, due_time
from convoy.service.engine.scheduler.trials import longest_run
from convoy.service.errors import PredictedLate, QueueFull
from convoy.service.ipc.channel import Request

_GAP_WEIGHT = 0.1  # weight of the newest gap between arrivals in the moving average
_LONG_GAP_WEIGHT = 0.01
_MEMORY = 0.1  # seconds for which overlapping callers are remembered
_ROUNDING = 1e-9  # three shares of a third fill a device
_MOST_QUEUES = 1024  # whose run times are remembered; clients may send any number of shapes

Id = tuple[Hashable, Hashable]  # of a request: its source, and its number there


@dataclass(slots=True, eq=False)
class Batch:
    """Requests to run together, in order of due time. Should end at `ends`; uses `share` of a lane.

    seconds    what the run should not exceed; 0 if nothing is known of its shape
    trial      it has another size than the chosen one
    predicted  the expected seconds of the run; 0 if it was not predicted
    took       the seconds of the run, once it has ended; 0 if it took several
    """

    key: Key
    requests: list[Request]
    ends: float
    share: float
    seconds: float = 0.0
    trial: bool = False
    predicted: float = 0.0
    took: float = 0.0

    @property
    def rows(self) -> int:
        return sum([request.rows for request in self.requests])


class Decision(NamedTuple):
    """late   requests removed from their queue, because they would end after their deadlines
    batch  what to run now on an idle device
    again  latest time of the next call if nothing happens before; inf: none needed
    """

    late: Sequence[Request]
    batch: Batch | None
    again: float


@dataclass(slots=True)
class _Callers:
    """Arrival statistics of a model's callers."""

    following: dict[Hashable, int] = field(default_factory=dict)  # source -> requests accepted there and not yet sent
    last: float = -math.inf  # arrival time
    gap: float = math.inf  # seconds between arrivals, moving average since the last pause
    long_gap: float = math.inf  # the same over a longer time, including pauses
    overlapping_until: float = -math.inf

    def arrive(self, now: float) -> None:
        gap = max(0.0, now - self.last)
        self.last = now
        self.long_gap = gap if self.long_gap == math.inf else self.long_gap + _LONG_GAP_WEIGHT * (gap - self.long_gap)
        if gap >= _MEMORY:
            self.gap = math.inf  # a pause: neither its length nor earlier gaps predict the next one
        elif self.gap == math.inf:
            self.gap = gap
        else:
            self.gap += _GAP_WEIGHT * (gap - self.gap)

    def expected(self) -> Traffic:
        following = any(self.following.values())
        if following:
            return Traffic(self.last, self.gap if self.gap < math.inf else 0.0, following)
        # A lone caller sends its next request after the answer, so its gaps do not predict an arrival before that.
        return Traffic(self.last, self.gap if self.last < self.overlapping_until else math.inf, following)

    def within(self, seconds: float) -> float:
        """Requests expected within `seconds`, by the shorter of the two average gaps, so that bursts count in full."""
        gap = min(self.gap, self.long_gap)
        if seconds <= 0:
            return 0.0
        return seconds / gap if gap > 0 else math.inf


class _Lanes:
    """The running batches, and the part of the device that they leave free."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = float(count)
        self.running: list[Batch] = []

    def start(self, batch: Batch) -> None:
        self.running.append(batch)
        self.free -= batch.share

    def end(self, batch: Batch) -> None:
        self.running.remove(batch)
        self.free = self.count - sum(other.share for other in self.running)

    def fits(self, share: float) -> bool:
        return share <= self.free + _ROUNDING

    def free_at(self, share: float, now: float) -> float:
        """Returns when the running batches leave this share of a lane free."""
        free = self.free
        for batch in sorted(self.running, key=lambda batch: batch.ends):
            if free >= share - _ROUNDING:
                break
            free += batch.share
            now = max(now, batch.ends)
        return now


class Batcher:
    """All queues of one device, which runs batches on `lanes` lanes concurrently.

    A batch uses a whole lane, or 1/n of a lane if its model has n instances. So a model never runs more batches than it
    has instances, and a model whose only session uses every core runs alone. One writer: the holder of the dispatcher's
    lock.

    `volume` returns the size of one row of a shape. An unmeasured shape's time is scaled from the nearest measured
    shape of its model and version.
    """

    def __init__(self, lanes: int = 1, volume: Callable[[Hashable], float] | None = None) -> None:
        self._lanes = _Lanes(lanes)
        self._volume = volume
        self._queues: dict[Key, Queue] = {}
        self._active: dict[Key, Queue] = {}  # queues that are not empty
        self._places: dict[Id, tuple[Queue, Place]] = {}  # of each waiting request
        self._deadlines: list[tuple[float, int, Id]] = []  # heap; ended requests are removed lazily
        self._rows: Counter[str] = Counter()  # waiting rows, by model
        self._callers: dict[str, _Callers] = {}  # by model
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._places)

    def waiting(self, model: str) -> int:
        """Waiting rows of a model, over all its versions and shapes."""
        return self._rows[model]

    def backlog(self, model: str) -> float:
        """Seconds of the whole device for the waiting rows of a model, over all its versions and shapes."""
        return sum([queue.work(queue.rows) for queue in self._active.values() if queue.key.model == model])

    def measured(self, key: Key, limits: Limits, times: Mapping[int, float]) -> None:
        """Record the seconds of batches by size, measured before serving."""
        self._queue(key, limits).start_with(times)

    def add(self, key: Key, request: Request, limits: Limits, now: float) -> None:
        """Queue a request.

        Raises QueueFull, or PredictedLate if the answer would miss its deadline; both contain a retry hint.
        """
        queue = self._queue(key, limits)
        waiting = self._rows[key.model]
        if waiting and waiting + request.rows > limits.max_queue:
            raise QueueFull(
                f"queue of model {key.model!r} has {waiting} images, want at most {limits.max_queue}",
                retry_after=_hint(queue.work(waiting)),
            )
        callers = self._callers.setdefault(key.model, _Callers())
        callers.arrive(request.arrived)
        if not queue.times.known and self._volume is not None:
            self._guess(queue)
        due = due_time(request, limits.objective)
        if request.deadline < math.inf and queue.times.known and POLICIES[limits.policy].admits:
            self._admit(queue, request, due, callers, now)
        self._arrivals += 1
        id_ = request.source, request.id
        self._places[id_] = queue, queue.put(request, due, self._arrivals)
        self._active[key] = queue
        self._rows[key.model] += request.rows
        if request.deadline < math.inf:
            heapq.heappush(self._deadlines, (request.deadline, self._arrivals, id_))
            if len(self._deadlines) > 2 * len(self._places) + 64:
                self._deadlines = [entry for entry in self._deadlines if entry[2] in self._places]
                heapq.heapify(self._deadlines)

    def expect(self, model: str, source: Hashable, following: int, in_flight: int, now: float) -> None:
        """Record a report from `source`: it will send `following` more requests, and `in_flight` are unanswered."""
        callers = self._callers.setdefault(model, _Callers())
        callers.following[source] = following
        if in_flight > 1:
            callers.overlapping_until = now + _MEMORY

    def forget(self, source: Hashable) -> list[Request]:
        """Remove the requests of a `source` that has gone, and expect no more from it. Returns them; they never run."""
        for callers in self._callers.values():
            callers.following.pop(source, None)
        removed = [id_ for id_ in self._places if id_[0] == source]
        return [self._remove(id_) for id_ in removed]

    def drop(self, model: str, version: int) -> None:
        """Forget the run times of a version that is no longer served. Queues with waiting requests stay."""
        for key in [key for key in self._queues if key[:2] == (model, version) and key not in self._active]:
            del self._queues[key]

    def cancel(self, id_: Id) -> Request | None:
        """Remove a request from its queue and return it; None if it is not waiting."""
        return self._remove(id_) if id_ in self._places else None

    def next(self, now: float) -> Decision:
        """What to do now. A returned batch counts as running until `ended` is called with it."""
        late = self._expired(now)
        while self._lanes.free > _ROUNDING and self._active:
            queue, close_at = self._candidate(now)
            if queue is None:
                return Decision(late, None, min(close_at, self._first_deadline()))
            if not self._lanes.fits(queue.share):
                break  # it runs when others have ended: smaller ones in its place could delay it forever
            if size := self._due_trial(queue, now):
                requests = queue.pop(size)
                self._left(queue, requests)
                return Decision(late, self._start(queue, requests, now, size), self._first_deadline())
            too_late, requests = POLICIES[queue.limits.policy].select(queue, now)
            self._left(queue, (*too_late, *requests))
            late += too_late
            if requests:
                return Decision(late, self._start(queue, requests, now), self._first_deadline())
        return Decision(late, None, self._first_deadline())

    def ended(self, batch: Batch, runs: Sequence[tuple[int, float]]) -> bool:
        """Record that a batch has run, in one or several runs: (rows, seconds from gather to scatter) of each.

        Returns whether trials have now contradicted the time of a batch size, which is replaced.
        """
        self._lanes.end(batch)
        batch.took = runs[0][1] if len(runs) == 1 else 0.0
        queue = self._queues.get(batch.key)
        replaced = False
        if queue is not None:
            for rows, seconds in runs:
                if batch.trial:
                    replaced |= queue.learn_trial(rows, seconds)
                    continue
                queue.learn(rows, seconds)
                if not queue.times.known and self._volume is not None:
                    queue.guess({rows: seconds})
        return replaced

    def times(self, key: Key) -> Mapping[int, float]:
        """The current seconds of the measured batch sizes of a key."""
        return self._queues[key].times.measured if key in self._queues else {}

    def _queue(self, key: Key, limits: Limits) -> Queue:
        queue = self._queues.get(key)
        if queue is None:
            idle = (each for each in self._queues if each not in self._active)
            if len(self._queues) >= _MOST_QUEUES and (oldest := next(idle, None)) is not None:
                del self._queues[oldest]
            queue = self._queues[key] = Queue(key, limits, self._volume(key.shape) if self._volume else 1.0)
        elif queue.limits is not limits:
            queue.follow(limits)
        return queue

    def _candidate(self, now: float) -> tuple[Queue | None, float]:
        """The queue whose batch runs now, or None and the time at which the first one closes."""
        closed: Queue | None = None
        pressing: Queue | None = None  # among open batches, the one that has to start first
        starts = pressing_starts = again = math.inf
        for queue in self._active.values():
            close_at = POLICIES[queue.limits.policy].close_at(queue, self._callers[queue.key.model].expected())
            latest = queue.due - queue.times.bound(queue.rows)
            if close_at > now:
                again = min(again, close_at)
                if latest < pressing_starts:
                    pressing, pressing_starts = queue, latest
            elif closed is None or latest < starts:
                closed, starts = queue, latest
        if closed is not None and pressing_starts < min(starts, now + closed.times.bound(closed.rows)):
            return pressing, now  # it would have to wait too long for the other
        return closed, again

    def _due_trial(self, queue: Queue, now: float) -> int:
        """The rows of the trial that a queue runs now; 0 if none is due, or if it could make a request late."""
        size = queue.trials.size
        if not size:
            return 0
        if queue.rows < size:
            if queue.rows >= queue.batch_size:  # the chosen size has waited for more
                queue.trials.miss()
            return 0
        # A trial may delay whatever waits, so all of it must fit before the first deadline.
        work = sum([other.work(other.rows) for other in self._active.values()]) / self._lanes.count
        if now + longest_run(size, queue.batch_size, queue.times) + work > self._first_deadline():
            return 0
        queue.trials.start()
        return size

    def _start(self, queue: Queue, requests: list[Request], now: float, trial: int = 0) -> Batch:
        self._queues[queue.key] = self._queues.pop(queue.key)  # most recently run last
        rows = sum([request.rows for request in requests])
        if queue.key.alone:
            seconds = rows * queue.times.bound(1)
        elif trial:
            seconds = longest_run(rows, queue.batch_size, queue.times)
        else:
            seconds = queue.times.bound(rows)
        # Those that run alone have run before, with others: their shape is known.
        known = not queue.times.guessed or queue.key.alone
        predicted = 0.0 if queue.times.guessed or queue.key.alone or trial else queue.times.predict(rows)
        limit = seconds if known else 0.0
        batch = Batch(queue.key, requests, now + seconds, queue.share, limit, rows == trial, predicted)
        self._lanes.start(batch)
        return batch

    def _admit(self, queue: Queue, request: Request, due: float, callers: _Callers, now: float) -> None:
        """Raises PredictedLate."""
        others = sum(
            [other.work(other.rows) for other in self._active.values() if other is not queue and other.due < due]
        )
        start = self._lanes.free_at(queue.share, now) + others / self._lanes.count
        excess = _excess(queue, request, due, callers, now, start, self._lanes.count)
        if excess > 0 and not self._worth_trying(queue, request, now):
            raise PredictedLate(
                f"model {queue.key.model!r} would answer {1000 * excess:.1f} ms after the deadline",
                retry_after=_hint(excess),
            )

    def _guess(self, queue: Queue) -> None:
        known = [other for other in self._queues.values() if other.key[:2] == queue.key[:2] and other.times.known]
        if known:
            # Measured times take precedence over guessed ones.
            nearest = min(known, key=lambda other: (other.times.guessed, abs(math.log(other.volume / queue.volume))))
            scale = queue.volume / nearest.volume
            queue.guess({size: scale * seconds for size, seconds in nearest.times.measured.items()})

    def _worth_trying(self, queue: Queue, request: Request, now: float) -> bool:
        """Whether to admit a request that only a guess predicts to be late.

        One such request runs at a time. Otherwise a guess that is too high would keep its shape from being measured.
        """
        if not queue.times.guessed or now + queue.times.bound(request.rows) <= request.deadline:
            return False
        running = (self._queues[batch.key] for batch in self._lanes.running if batch.key in self._queues)
        return not any(other.times.guessed for other in (*self._active.values(), *running))

    def _expired(self, now: float) -> list[Request]:
        removed = []
        while self._first_deadline() <= now:
            removed.append(self._remove(self._deadlines[0][2]))
        return removed

    def _first_deadline(self) -> float:
        while self._deadlines and self._deadlines[0][2] not in self._places:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def _remove(self, id_: Id) -> Request:
        queue, place = self._places[id_]
        queue.remove(place)
        self._left(queue, (place[2],))
        return place[2]

    def _left(self, queue: Queue, requests: Sequence[Request]) -> None:
        for request in requests:
            del self._places[request.source, request.id]
        self._rows[queue.key.model] -= sum([request.rows for request in requests])
        if not queue:
            self._active.pop(queue.key, None)


def _excess(
    queue: Queue, request: Request, due: float, callers: _Callers, now: float, start: float, lanes: int
) -> float:
    """Returns the seconds by which a request, or one behind it in the queue, would end after its deadline.

    start  when the queue's first batch can start, after the work of other queues that is due earlier
    """
    size = queue.batch_size
    batches, rest = divmod(queue.rows_ahead(due), size)
    own = start + batches * queue.times.bound(size) * queue.share / lanes
    # Requests that arrive before its batch starts will share it.
    joining = callers.within(own - now)
    finish = own + queue.times.bound(max(int(min(size, rest + request.rows + joining)), request.rows))
    excess = finish - request.deadline
    last = queue.last[2] if queue and due < queue.last[0] else None
    if last is not None and last.deadline < math.inf:
        # Requests due later were admitted for their own deadlines.
        excess = max(excess, start + queue.work(queue.rows + request.rows) / lanes - last.deadline)
    return excess


def _hint(seconds: float) -> float:
    return min(10.0, max(0.01, seconds))
