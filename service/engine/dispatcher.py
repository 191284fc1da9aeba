"""Passes batches to sessions. The thread that ends a batch chooses the next one at once, so that the device waits for
no other thread between batches."""

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from convoy.service.engine.instances import Instance, Instances
from convoy.service.engine.providers import GPU
from convoy.service.engine.runner import Computed, Ran, compute, finish
from convoy.service.engine.scheduler.batcher import Batch, Batcher, Key, Limits, Request
from convoy.service.engine.session import Session
from convoy.service.errors import ConvoyError, DeadlinePassed, UnknownModel
from convoy.service.ipc.slots import COPIED_AT_ONCE

logger = logging.getLogger(__name__)

_SHORT = 0.0005  # seconds; a shorter batch may run on the loop: a hop to a thread and back takes about as long
_ALONE = 0.01  # the same for a lone request: one that arrives meanwhile has to wait for the device anyway


class Ended(NamedTuple):
    """A batch that has run."""

    batch: Batch
    ran: Ran
    session: Session


class _Started(NamedTuple):
    """A batch that a session must run now, in its thread or `on_loop`."""

    batch: Batch
    instance: Instance
    at: float
    on_loop: bool


class _Decided(NamedTuple):
    """What to run, which requests fail, and the latest time of the next decision. Later decisions have a larger
    `number`."""

    number: int
    started: list[_Started]
    failed: list[tuple[Request, ConvoyError]]
    again: float


class Dispatcher:
    """The queues of a device, and the sessions that run their batches.

    Batches run in their sessions' threads, very short ones on the loop. The thread that has run a batch takes the next
    one out of the queues, under a lock. All reports to front ends go through the loop.

    instances  returns those of a model and version, or None if it is gone; called in any thread
    ended      called on the loop with each batch that ran
    failed     called on the loop with each request that will not run
    """

    def __init__(
        self,
        instances: Callable[[str, int], Instances | None],
        ended: Callable[[Ended], None],
        failed: Callable[[Request, ConvoyError], None],
        volume: Callable[[Hashable], float],
    ) -> None:
        self._instances = instances
        self._tell_ended = ended
        self._tell_failed = failed
        self._batcher = Batcher(volume=volume)
        self._lock = threading.Lock()  # guards the batcher, `_decisions` and `_company`
        self._decisions = 0
        self._company = False  # whether more than one request is known
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None  # used by the loop only
        self._told = 0  # used by the loop only: number of the decision that set the timer

    def measured(self, key: Key, limits: Limits, times: Mapping[int, float]) -> None:
        """See Batcher."""
        with self._lock:
            self._batcher.measured(key, limits, times)

    def expect(self, model: str, source: Hashable, following: int, company: int, now: float) -> None:
        """See Batcher."""
        with self._lock:
            self._company = following > 0 or company > 1
            self._batcher.expect(model, source, following, company, now)

    def add(self, key: Key, request: Request, limits: Limits, now: float) -> None:
        """See Batcher. The caller must then call `pump`."""
        with self._lock:
            self._batcher.add(key, request, limits, now)

    def cancel(self, request_id: Hashable) -> Request | None:
        """See Batcher."""
        with self._lock:
            return self._batcher.cancel(request_id)

    def forget(self, source: Hashable) -> list[Request]:
        """See Batcher."""
        with self._lock:
            return self._batcher.forget(source)

    def waiting(self, model: str) -> int:
        """See Batcher."""
        with self._lock:
            return self._batcher.waiting(model)

    def pump(self) -> None:
        """Runs what can run now, and schedules the next call."""
        with self._lock:
            decided = self._decide()
        self._tell(decided)
        for started in decided.started:
            self._start(started)

    def _decide(self) -> _Decided:
        """Decides what runs and what fails. Called under the lock."""
        now = time.monotonic()
        self._decisions += 1
        started: list[_Started] = []
        failed: list[tuple[Request, ConvoyError]] = []
        while True:
            decision = self._batcher.next(now)
            late = DeadlinePassed("deadline would pass before the image could run")
            failed += [(request, late) for request in decision.late]
            if decision.batch is None:
                return _Decided(self._decisions, started, failed, decision.again)
            key = decision.batch.key
            instances = self._instances(key.model, key.version)
            if instances is None:
                self._batcher.ended(decision.batch, [])
                gone = UnknownModel(f"model {key.model!r} was taken away")
                failed += [(request, gone) for request in decision.batch.requests]
            else:
                instance = instances.take()
                started.append(_Started(decision.batch, instance, now, self._keeps_loop(decision.batch, instance, now)))

    def _tell(self, decided: _Decided) -> None:
        for request, error in decided.failed:
            self._tell_failed(request, error)
        if decided.number < self._told:
            return  # a session's thread decided this before the loop's last decision, so it is outdated
        self._told = decided.number
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if decided.again < math.inf:
            self._timer = self._loop.call_later(max(0.0, decided.again - time.monotonic()), self.pump)

    def _start(self, started: _Started) -> None:
        if started.on_loop:
            self._run_on_loop(started)
        else:
            started.instance.submit(self._run_on, started)

    def _keeps_loop(self, batch: Batch, instance: Instance, now: float) -> bool:
        """Returns whether a batch is short enough to run on the loop. Called under the lock."""
        seconds = batch.ends - now
        if not seconds or instance.running > 1 or instance.held or instance.session.provider in GPU:
            return False
        alone = len(batch.requests) == 1 and not self._company and not len(self._batcher)
        return seconds < (_ALONE if alone else _SHORT)

    def _run_on_loop(self, started: _Started) -> None:
        computed = _compute_or_end(started)
        # Through the loop, so that records that arrived meanwhile are read between two short batches.
        self._loop.call_soon(self._end_on_loop, started, computed)

    def _end_on_loop(self, started: _Started, computed: Computed | Ran) -> None:
        with self._lock:
            self._end(started, computed)
            decided = self._decide()
        self._settle(started, computed, decided, decided.started)

    def _run_on(self, started: _Started | None) -> None:
        """Runs a batch, and then the session's next ones, in the session's thread."""
        while started is not None:
            computed = _compute_or_end(started)
            with self._lock:
                self._end(started, computed)
                decided = self._decide()
            instance, ended, started = started.instance, started, None
            others = []
            for following in decided.started:
                if following.instance is instance and not following.on_loop:
                    started = following
                else:
                    others.append(following)
            self._loop.call_soon_threadsafe(self._settle, ended, computed, decided, others)

    def _end(self, started: _Started, computed: Computed | Ran) -> None:
        Instances.give(started.instance)
        # From the decision to the end: the whole time before the device can start the next batch.
        seconds = time.monotonic() - started.at
        in_one = isinstance(computed, Computed) or len(computed.batches) == 1
        self._batcher.ended(started.batch, [(started.batch.rows, seconds)] if in_one else [])

    def _settle(
        self, ended: _Started, computed: Computed | Ran, decided: _Decided, following: Sequence[_Started]
    ) -> None:
        for each in following:
            self._start(each)
        self._tell(decided)
        self._tell_ended(Ended(ended.batch, finish(computed), ended.instance.session))


def _compute_or_end(started: _Started) -> Computed | Ran:
    """Runs a batch. Small outputs are written to their slots on the loop, while the device runs the next batch."""
    session = started.instance.session
    try:
        computed = compute(session, [request.payload for request in started.batch.requests])
    except Exception:  # DeviceLost, or a bug: front ends resend waiting requests to a new process
        logger.exception("the engine cannot go on")
        os._exit(1)
    if isinstance(computed, Computed) and (session.provider in GPU or computed.nbytes > COPIED_AT_ONCE):
        return finish(computed)
    return computed
