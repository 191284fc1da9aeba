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
from convoy.service.engine.runner import Run, compute, finish
from convoy.service.engine.scheduler.batcher import Batch, Batcher
from convoy.service.engine.scheduler.request_queue import Key, Limits
from convoy.service.engine.session import Session
from convoy.service.errors import ConvoyError, DeadlinePassed, ModelUnavailable
from convoy.service.ipc.channel import Request
from convoy.service.ipc.slots import COPIED_AT_ONCE

logger = logging.getLogger(__name__)

_FITS_LOOP = 0.0005  # seconds; a shorter batch may run on the loop: a hop to a thread and back takes about as long
_FITS_LOOP_ALONE = 0.01  # the same for a lone request: one that arrives meanwhile has to wait for the device anyway


class _Start(NamedTuple):
    """A batch that a session must run now, in its thread or `on_loop`."""

    batch: Batch
    instance: Instance
    at: float
    on_loop: bool


class _Plan(NamedTuple):
    """What to run, which requests fail, and the latest time of the next decision. Later plans have larger numbers."""

    number: int
    starts: list[_Start]
    late: list[Request]
    gone: list[Request]  # their version is no longer loaded
    again: float


class Dispatcher:
    """The queues of a device, and the sessions that run their batches.

    Batches run in their sessions' threads, very short ones on the loop. The thread that has run a batch takes the next
    one out of the queues, under a lock. All reports to front ends go through the loop.

    instances  returns those of a model and version, or None if it is gone; called in any thread
    on_end     called on the loop with each batch that ran, and its session
    on_failure called on the loop with each request that will not run
    on_times   called on the loop with a key, and the seconds of its batch sizes, when trials have contradicted one
    on_run     called with the number of batches in sessions when it changes, in any thread
    """

    def __init__(
        self,
        instances: Callable[[str, int], Instances | None],
        on_end: Callable[[Batch, Run, Session], None],
        on_failure: Callable[[Request, ConvoyError], None],
        on_times: Callable[[Key, Mapping[int, float]], None],
        volume: Callable[[Hashable], float],
        on_run: Callable[[int], None] = lambda batches: None,
    ) -> None:
        self._instances = instances
        self._on_end = on_end
        self._on_failure = on_failure
        self._on_times = on_times
        self._on_run = on_run
        self._running: dict[int, Batch] = {}  # by thread, which alone writes its own
        self._batcher = Batcher(volume=volume)
        self._lock = threading.Lock()  # guards the batcher, `_decisions`, `_in_sessions` and `_alone`
        self._decisions = 0
        self._in_sessions = 0  # batches
        self._alone = True  # whether no further request is known or expected
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None  # used by the loop only
        self._newest = 0  # used by the loop only: number of the plan that set the timer

    def measured(self, key: Key, limits: Limits, times: Mapping[int, float]) -> None:
        """See Batcher."""
        with self._lock:
            self._batcher.measured(key, limits, times)

    def expect(self, model: str, source: Hashable, following: int, in_flight: int, now: float) -> None:
        """See Batcher."""
        with self._lock:
            self._alone = following == 0 and in_flight <= 1
            self._batcher.expect(model, source, following, in_flight, now)

    def add(self, key: Key, request: Request, limits: Limits, now: float) -> None:
        """See Batcher. The caller must then call `pump`."""
        with self._lock:
            self._batcher.add(key, request, limits, now)

    def cancel(self, source: Hashable, id_: Hashable) -> Request | None:
        """See Batcher."""
        with self._lock:
            return self._batcher.cancel((source, id_))

    def forget(self, source: Hashable) -> list[Request]:
        """See Batcher."""
        with self._lock:
            return self._batcher.forget(source)

    def drop(self, model: str, version: int) -> None:
        """See Batcher."""
        with self._lock:
            self._batcher.drop(model, version)

    def backlog(self, model: str) -> tuple[int, float]:
        """Returns the waiting rows of a model, and the seconds that they need: see Batcher."""
        with self._lock:
            return self._batcher.waiting(model), self._batcher.backlog(model)

    def running(self) -> list[Batch]:
        """Returns the batches that are in a session now."""
        return list(self._running.values())

    def pump(self) -> None:
        """Runs what can run now, and schedules the next call."""
        with self._lock:
            plan = self._plan()
        self._report(plan)
        for start in plan.starts:
            self._start(start)

    def _plan(self) -> _Plan:
        """Decides what runs and what fails. Called under the lock."""
        now = time.monotonic()
        self._decisions += 1
        plan = _Plan(self._decisions, [], [], [], math.inf)
        while True:
            decision = self._batcher.next(now)
            plan.late.extend(decision.late)
            batch = decision.batch
            if batch is None:
                return plan._replace(again=decision.again)
            instances = self._instances(batch.key.model, batch.key.version)
            if instances is None:
                self._batcher.ended(batch, [])
                plan.gone.extend(batch.requests)
            else:
                instance = instances.reserve()
                plan.starts.append(_Start(batch, instance, now, self._fits_loop(batch, instance, now)))
                self._in_sessions += 1
                self._on_run(self._in_sessions)

    def _fits_loop(self, batch: Batch, instance: Instance, now: float) -> bool:
        """Returns whether a batch is short enough to run on the loop. Called under the lock."""
        seconds = batch.ends - now
        if not seconds or batch.key.alone:
            return False
        if instance.running > 1 or instance.off_loop or instance.session.provider in GPU:
            return False
        alone = self._alone and len(batch.requests) == 1 and not len(self._batcher)
        return seconds < (_FITS_LOOP_ALONE if alone else _FITS_LOOP)

    def _report(self, plan: _Plan) -> None:
        for request in plan.late:
            self._on_failure(request, DeadlinePassed("deadline would pass before the image could run"))
        for request in plan.gone:
            self._on_failure(request, ModelUnavailable(f"model {request.model!r} was removed", retry_after=0.1))
        if plan.number < self._newest:
            return  # a session's thread made this plan before the loop's last one, so it is outdated
        self._newest = plan.number
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if plan.again < math.inf:
            self._timer = self._loop.call_later(max(0.0, plan.again - time.monotonic()), self.pump)

    def _start(self, start: _Start) -> None:
        if start.on_loop:
            self._run_on_loop(start)
        else:
            start.instance.submit(self._run_in_thread, start)

    def _run_on_loop(self, start: _Start) -> None:
        run = self._run(start)
        # Through the loop, so that records that arrived meanwhile are read between two short batches.
        self._loop.call_soon(self._end_on_loop, start, run)

    def _end_on_loop(self, start: _Start, run: Run) -> None:
        with self._lock:
            times = self._end(start, run)
            plan = self._plan()
        self._settle(start, run, times, plan, plan.starts)

    def _run_in_thread(self, start: _Start | None) -> None:
        """Runs a batch, and then the session's next ones, in the session's thread."""
        while start is not None:
            run = self._run(start)
            with self._lock:
                times = self._end(start, run)
                plan = self._plan()
            instance, ended, start = start.instance, start, None
            others = []
            for each in plan.starts:
                if each.instance is instance and not each.on_loop:
                    start = each
                else:
                    others.append(each)
            self._loop.call_soon_threadsafe(self._settle, ended, run, times, plan, others)

    def _run(self, start: _Start) -> Run:
        thread = threading.get_ident()
        self._running[thread] = start.batch
        try:
            return _run_or_exit(start)
        finally:
            del self._running[thread]

    def _end(self, start: _Start, run: Run) -> Mapping[int, float]:
        """Frees the session. Returns the times of batch sizes if one was replaced. Called under the lock."""
        start.instance.running -= 1
        self._in_sessions -= 1
        self._on_run(self._in_sessions)
        # From the decision to the end: the whole time before the device can start the next batch.
        seconds = time.monotonic() - start.at
        replaced = self._batcher.ended(start.batch, [(start.batch.rows, seconds)] if len(run.batches) == 1 else [])
        return self._batcher.times(start.batch.key) if replaced else {}

    def _settle(
        self, ended: _Start, run: Run, times: Mapping[int, float], plan: _Plan, starts: Sequence[_Start]
    ) -> None:
        for each in starts:
            self._start(each)
        self._report(plan)
        self._on_end(ended.batch, finish(run), ended.instance.session)
        if times:
            self._on_times(ended.batch.key, times)


def _run_or_exit(start: _Start) -> Run:
    """Runs a batch. Small outputs are written to their slots on the loop, while the device runs the next batch."""
    session = start.instance.session
    try:
        run = compute(session, start.batch.requests)
    except Exception:  # DeviceLost, or a bug: front ends resend waiting requests to a new process
        logger.exception("the engine cannot continue")
        os._exit(1)
    return finish(run) if session.provider in GPU or run.nbytes > COPIED_AT_ONCE else run
