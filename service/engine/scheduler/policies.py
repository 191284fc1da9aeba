"""Batching policies: when a batch closes and what it contains.

Plain functions on one queue. `deferred` is Convoy's; the others are for comparison. `eager` runs whatever is waiting;
`timeout` is the usual maximum delay; `aimd` grows the batch until it takes longer than the objective (Crankshaw et al.:
Clipper, NSDI 2017, section 4.3.1); `nexus` drops what is too late for an efficient batch (Shen et al.: Nexus, SOSP
2019, section 6.3).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from convoy.service.config import PolicyName
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.engine.scheduler.request_queue import Queue
from convoy.service.ipc.channel import Request

_GAPS = 2.0  # average gaps without an arrival after which no more is expected
_DISPATCH = 0.0005  # seconds of CPU time per batch, which the front ends could use
_POOR = 0.5  # of the full batch's throughput: below this, the requests that limit the batch are dropped
_AIMD_STEP, _AIMD_FACTOR = 1.0, 0.9


class Traffic(NamedTuple):
    """The traffic expected from a model's callers."""

    last: float  # arrival of the latest request
    gap: float  # seconds between requests; inf: none is expected
    following: bool  # a front end has accepted a request and is about to send it


# What leaves a queue: requests that cannot be answered in time and must not run, and those that run together.
Leaving = tuple[list[Request], list[Request]]


class Policy(NamedTuple):
    """close_at  when the batch at the head of a queue should run on an idle device: now, or a time to ask again
    select    which requests run, and which are too late
    admits    whether requests predicted to be late are refused on arrival
    """

    close_at: Callable[[Queue, Traffic], float]
    select: Callable[[Queue, float], Leaving]
    admits: bool = False


def _deferred_close_at(queue: Queue, traffic: Traffic) -> float:
    """Wait if a gap costs the device less than the next row saves by joining this batch instead of one of its own."""
    rows, times = queue.rows, queue.times
    if rows >= (queue.trials.size or queue.batch_size):
        return -math.inf
    if traffic.gap + times.predict(rows + 1) - times.predict(rows) >= times.predict(1) + _DISPATCH:
        return -math.inf
    return min(
        queue.head.arrived + queue.limits.max_queue_delay,
        queue.due - times.bound(rows + 1),
        math.inf if traffic.following else traffic.last + _GAPS * traffic.gap,
    )


def _deferred_select(queue: Queue, now: float) -> Leaving:
    if queue.times.guessed:
        return [], queue.pop(min(queue.rows, queue.batch_size))  # a guess drops nothing: the run corrects it
    late = _pop_while(queue, lambda request: now + queue.times.bound(request.rows) > request.deadline)
    if not queue:
        return late, []
    rows = _worth_running(queue.times, min(queue.rows, queue.batch_size))
    fitting = queue.times.largest_within(queue.head.deadline - now)
    if fitting < rows:
        hindering = sum(request.deadline < now + queue.times.bound(rows) for request in queue.first(rows))
        if hindering < rows - fitting and _throughput(queue, fitting) < _POOR * _throughput(queue, rows):
            ends = now + queue.times.bound(rows)
            late += _pop_while(queue, lambda request: request.deadline < ends)
            rows = min(queue.rows, rows)
        else:
            rows = fitting
    return late, queue.pop(rows) if queue else []


def _worth_running(times: RunTimes, rows: int) -> int:
    """Part of the rows where it and the rest take less time in two batches than in one, else all of them."""
    part = times.efficient(rows)
    return part if times.predict(part) + times.predict(rows - part) < times.predict(rows) else rows


def _eager_close_at(queue: Queue, traffic: Traffic) -> float:
    return -math.inf


def _timeout_close_at(queue: Queue, traffic: Traffic) -> float:
    if queue.rows >= queue.limits.max_batch_size:
        return -math.inf
    return queue.head.arrived + queue.limits.max_queue_delay


def _select_all(queue: Queue, now: float) -> Leaving:
    late = _pop_while(queue, lambda request: request.deadline <= now)
    return late, queue.pop(queue.limits.max_batch_size) if queue else []


def _aimd_select(queue: Queue, now: float) -> Leaving:
    late = _pop_while(queue, lambda request: request.deadline <= now)
    if not queue:
        return late, []
    full = queue.rows >= int(queue.cap)
    batch = queue.pop(min(int(queue.cap), queue.limits.max_batch_size))
    if queue.times.predict(int(queue.cap)) > queue.budget:
        queue.cap = max(1.0, _AIMD_FACTOR * queue.cap)
    elif full:
        queue.cap = min(queue.cap + _AIMD_STEP, queue.limits.max_batch_size)
    return late, batch


def _nexus_select(queue: Queue, now: float) -> Leaving:
    """Move a window of the efficient size forward until all requests in it can be answered in time."""
    late: list[Request] = []
    rows = min(queue.rows, queue.batch_size)
    while queue and not queue.times.guessed and queue.head.deadline < now + queue.times.predict(rows):
        late += queue.pop(queue.head.rows)
        rows = min(queue.rows, rows)
    return late, queue.pop(rows) if queue else []


def _pop_while(queue: Queue, condition: Callable[[Request], bool]) -> list[Request]:
    popped: list[Request] = []
    while queue and condition(queue.head):
        popped += queue.pop(queue.head.rows)
    return popped


def _throughput(queue: Queue, rows: int) -> float:
    seconds = queue.times.predict(rows)
    return rows / seconds if seconds else 0.0


POLICIES: dict[PolicyName, Policy] = {
    "deferred": Policy(_deferred_close_at, _deferred_select, admits=True),
    "eager": Policy(_eager_close_at, _select_all),
    "timeout": Policy(_timeout_close_at, _select_all),
    "aimd": Policy(_eager_close_at, _aimd_select),
    "nexus": Policy(_eager_close_at, _nexus_select),
}
