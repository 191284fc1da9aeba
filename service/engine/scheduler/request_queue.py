"""A queue of requests that can run together, ordered by due time."""

import math
from bisect import bisect_left, insort
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from convoy.service.config import PolicyName
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.engine.scheduler.trials import Trials
from convoy.service.ipc.channel import Request

_BUDGET_WEIGHT = 0.05  # of the newest request in the moving average
_PATIENCE = 10.0  # latency objectives added to the due time of a low-priority request


class Key(NamedTuple):
    """Requests with the same key can run together."""

    model: str
    version: int
    shape: Hashable  # of the inputs, without the batch dimension
    alone: bool = False  # each runs with nothing beside it, because it may have ended an engine


@dataclass(frozen=True, slots=True)
class Limits:
    """Batching limits of one model. Times are in seconds."""

    max_batch_size: int  # rows
    max_queue_delay: float  # for further requests, while more are on their way
    max_queue: int  # rows that may wait
    objective: float = 0.1  # a request without a deadline is due this long after its arrival
    policy: PolicyName = "deferred"
    instances: int = 1  # sessions of the network: this many of its batches fill the device


# A request's place in its queue: when it is due, its sequence number among all arrivals, and the request.
Place = tuple[float, int, Request]


def due_time(request: Request, objective: float) -> float:
    """Returns when a request should be answered; `objective` is the model's latency objective in seconds.

    It determines the place in the queue, so that no request waits forever behind later ones.
    """
    due = request.deadline if request.deadline < math.inf else request.arrived + objective
    return due + _PATIENCE * objective if request.low_priority else due


class Queue:
    """Requests of one key, and the run times of their batches. One writer: the holder of the
    dispatcher's lock."""

    def __init__(self, key: Key, limits: Limits, volume: float = 1.0) -> None:
        self.key = key
        self.limits = limits
        self.volume = volume  # of a row, relative to other shapes
        self.times = RunTimes(limits.max_batch_size)
        self.rows = 0  # waiting
        self.budget = limits.objective  # seconds from arrival to due, moving average
        self.cap = 1.0  # rows; current limit of `aimd`
        # Rows of a batch when enough wait. A request that arrives just after its start can still be answered in time in
        # the next batch; a smaller batch would be less efficient.
        self.batch_size = limits.max_batch_size
        self.trials = Trials()
        self._places: list[Place] = []  # ascending

    def __len__(self) -> int:
        return len(self._places)

    @property
    def head(self) -> Request:
        """The request that is due first. The queue is not empty."""
        return self._places[0][2]

    @property
    def due(self) -> float:
        """The due time of the first request; inf if the queue is empty."""
        return self._places[0][0] if self._places else math.inf

    @property
    def share(self) -> float:
        """The share of the device that a batch uses while it runs."""
        return 1 / self.limits.instances

    def first(self, count: int) -> list[Request]:
        """The next `count` requests, which stay in the queue."""
        return [request for _, _, request in self._places[:count]]

    def put(self, request: Request, due: float, number: int) -> Place:
        """Insert a request at its place; `number` is unique and ascending."""
        place = (due, number, request)
        if self._places and due < self._places[-1][0]:
            insort(self._places, place)
        else:
            self._places.append(place)
        self.rows += request.rows
        self.budget += _BUDGET_WEIGHT * (due - request.arrived - self.budget)
        return place

    def rows_ahead(self, due: float) -> int:
        """Rows that would run before a request due at `due`; exact if all requests have equally many rows."""
        if not self._places or due >= self._places[-1][0]:
            return self.rows
        return round(self.rows * bisect_left(self._places, (due,)) / len(self._places))

    @property
    def last(self) -> Place:
        """The request that is due last. The queue is not empty."""
        return self._places[-1]

    def remove(self, place: Place) -> None:
        """Remove a request that is in the queue, at any place."""
        del self._places[bisect_left(self._places, place[:2])]
        self.rows -= place[2].rows

    def pop(self, rows: int) -> list[Request]:
        """Remove and return the next requests that fit into `rows` rows; a single larger one is returned alone."""
        if self.rows == len(self._places):  # all of one row
            count = max(1, rows)
        else:
            count = filled = 0
            for _, _, request in self._places:
                filled += request.rows
                if filled > rows and count:
                    break
                count += 1
        popped = self.first(count)
        del self._places[:count]
        self.rows -= sum(request.rows for request in popped)
        self._choose_size()
        return popped

    def learn(self, rows: int, seconds: float) -> None:
        """Record that a batch has run."""
        self.times.learn(rows, seconds)
        if self.limits.policy == "deferred" and not self.times.guessed and self.times.predict(self.batch_size) > 0:
            self.trials.ran(seconds, self.batch_size, self.times, self.budget / 2)
        self._choose_size()

    def learn_trial(self, rows: int, seconds: float) -> bool:
        """Record that a trial has run. Returns whether it changed a measured time."""
        self.trials.end(rows, seconds, self.batch_size, self.times)
        changed = self.times.learn_trial(rows, seconds)
        self._choose_size()
        return changed

    def start_with(self, times: Mapping[int, float]) -> None:
        """Record the seconds of batches by size, measured before serving."""
        self._set_times(times, guessed=False)

    def guess(self, times: Mapping[int, float]) -> None:
        """Record the estimated seconds of batches by size."""
        self._set_times(times, guessed=True)

    def _set_times(self, times: Mapping[int, float], guessed: bool) -> None:
        most = self.limits.max_batch_size
        fitting = {size: seconds for size, seconds in times.items() if size <= most}
        self.times = RunTimes(most, fitting, guessed=guessed)
        self.trials = Trials()
        self._choose_size()

    def follow(self, limits: Limits) -> None:
        """Apply limits that may have changed with the model's configuration."""
        if limits != self.limits:
            self.limits = limits
            self._set_times(self.times.measured, self.times.guessed)

    def _choose_size(self) -> None:
        most = min(self.limits.max_batch_size, self.times.largest_within(self.budget / 2))
        self.batch_size = max(1, self.times.efficient(most))

    def work(self, rows: int) -> float:
        """Seconds of the whole device for `rows` rows."""
        size = self.batch_size
        batches, rest = divmod(rows, size)
        return self.share * (batches * self.times.bound(size) + (self.times.bound(rest) if rest else 0.0))
