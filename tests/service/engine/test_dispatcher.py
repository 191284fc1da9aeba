"""Batches go to sessions, and whoever ends one runs the next."""

import asyncio
import itertools
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convoy.service.engine import dispatcher
from convoy.service.engine.dispatcher import Dispatcher
from convoy.service.engine.instances import Instances
from convoy.service.engine.providers import CUDA
from convoy.service.engine.runner import Run
from convoy.service.engine.scheduler.batcher import Batch, Decision
from convoy.service.engine.scheduler.request_queue import Key, Limits
from convoy.service.errors import ConvoyError, DeadlinePassed, ModelUnavailable, RunFailed
from convoy.service.ipc.channel import Failure, Request, Times
from convoy.service.ipc.slots import COPIED_AT_ONCE

KEY = Key("letters", 1, ())
LIMITS = Limits(max_batch_size=4, max_queue_delay=0.0, max_queue=1000, policy="eager")


class Session:
    """Nothing: what runs is told by the test."""

    provider = "CPUExecutionProvider"


class Device:
    """A dispatcher with one model, and what came of its requests."""

    def __init__(self, run: Callable[[list[int]], object], sessions: int = 1, limits: Limits = LIMITS) -> None:
        self.instances: Instances | None = Instances([Session() for _ in range(sessions)])  # type: ignore[misc]
        self.ended: list[int] = []
        self.failed: list[tuple[int, ConvoyError]] = []
        self.more = asyncio.Event()
        self.run = run
        self.limits = limits
        self.times: list[Mapping[int, float]] = []  # that trials have changed
        self.dispatcher = Dispatcher(
            lambda model, version: self.instances,
            self._end,
            self._fail,
            lambda key, times: self.times.append(times),
            lambda shape: 1.0,
        )

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self.dispatcher.add(KEY, Request(number, "front end", 1, 0.0), self.limits, 0.0)

    async def until(self, count: int) -> None:
        while len(self.ended) < count:
            self.more.clear()
            await self.more.wait()

    def _end(self, batch: Batch, run: Run, session: object) -> None:
        self.more.set()
        self.ended += [request.id for request in batch.requests]

    def _fail(self, request: Request, error: ConvoyError) -> None:
        self.failed.append((request.id, error))


@pytest.fixture(autouse=True)
def running(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sessions run what the test's device says."""
    device: dict[str, Any] = {}

    def compute(session: Session, requests: list[Request]) -> Run:
        numbers = [request.id for request in requests]
        device["it"].run(numbers)
        ended = [(Failure(number, RunFailed("not read")), ()) for number in numbers]
        return Run(requests, [(len(numbers), Times(0, 0, 0, 0))], ended)

    monkeypatch.setattr(dispatcher, "compute", compute)
    return device


def play(device: dict[str, Any], make: Callable[[], Device], scenario: Callable[[Device], Awaitable[None]]) -> None:
    async def main() -> None:
        device["it"] = make()
        await asyncio.wait_for(scenario(device["it"]), 20)

    asyncio.run(main())


def test_session_goes_on_with_the_next_batch_while_the_loop_does_something_else(running: dict[str, Any]) -> None:
    begun: list[list[int]] = []
    second = threading.Event()

    def run(works: list[int]) -> None:
        begun.append(works)
        if len(begun) == 2:
            second.set()
        threading.Event().wait(0.005)  # long enough to stay off the loop

    async def scenario(device: Device) -> None:
        device.dispatcher.measured(KEY, LIMITS, {1: 0.005, 4: 0.005})
        device.add(*range(8))
        device.dispatcher.pump()
        assert second.wait(10)  # this blocks the loop
        await device.until(8)
        assert begun == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert device.ended == list(range(8))

    play(running, lambda: Device(run), scenario)


def test_short_batches_go_back_to_the_loop(running: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    # Each look at the clock takes a microsecond, however busy the machine is.
    looks = itertools.count()
    monkeypatch.setattr(dispatcher, "time", SimpleNamespace(monotonic=lambda: next(looks) / 1e6))

    async def scenario(device: Device) -> None:
        device.add(*range(4 * 50))  # nobody knows yet how long they take
        device.dispatcher.pump()
        await device.until(4 * 50)

    play(running, lambda: Device(lambda works: threads.append(threading.get_ident())), scenario)
    assert threads[0] != threading.get_ident()
    assert threads[-1] == threading.get_ident()


@pytest.mark.parametrize("sessions", [1, 3])
def test_every_request_ends_once_whatever_comes_while_batches_run(running: dict[str, Any], sessions: int) -> None:
    async def scenario(device: Device) -> None:
        for number in range(500):
            device.add(number)
            device.dispatcher.pump()
            if number % 7 == 0:
                await asyncio.sleep(0)
        await device.until(500)
        assert sorted(device.ended) == list(range(500))
        assert device.failed == []

    play(running, lambda: Device(lambda works: None, sessions), scenario)


def test_sessions_run_side_by_side(running: dict[str, Any]) -> None:
    meeting = threading.Barrier(2)

    async def scenario(device: Device) -> None:
        device.add(*range(2))
        device.dispatcher.pump()
        await device.until(2)

    limits = Limits(max_batch_size=1, max_queue_delay=0.0, max_queue=10, policy="eager", instances=2)
    play(running, lambda: Device(lambda works: meeting.wait(10), 2, limits), scenario)


def where_it_runs(
    running: dict[str, Any],
    seconds: float,
    company: int | None,
    images: int = 1,
    held: bool = False,
    busy: bool = False,
) -> bool:
    """Whether a batch that is known to take so long runs on the loop's thread. Without `company`, nobody has said yet
    how many requests are in flight."""
    threads: list[int] = []

    async def scenario(device: Device) -> None:
        assert device.instances is not None
        device.instances.keep_off_loop(1)
        device.instances.keep_off_loop(0 if held else -1)
        device.instances.all[0].running += busy
        device.dispatcher.measured(KEY, LIMITS, {1: seconds, 4: seconds})
        if company is not None:
            device.dispatcher.expect("letters", "front end", 0, company, 0.0)
        device.add(*range(images))
        device.dispatcher.pump()
        await device.until(images)

    play(running, lambda: Device(lambda works: threads.append(threading.get_ident())), scenario)
    return threads[0] == threading.get_ident()


def test_only_short_batches_keep_the_loop_and_somewhat_longer_ones_where_nobody_else_is_there(
    running: dict[str, Any],
) -> None:
    assert where_it_runs(running, 0.0001, company=5)
    assert not where_it_runs(running, 0.005, company=5)
    assert not where_it_runs(running, 0.005, company=2)
    assert where_it_runs(running, 0.005, company=1)
    assert where_it_runs(running, 0.005, company=None)
    assert not where_it_runs(running, 0.005, company=1, images=8)
    assert not where_it_runs(running, 0.02, company=1)


def test_batch_goes_through_the_thread_if_another_has_not_ended_there(running: dict[str, Any]) -> None:
    """As just after the number of sessions changed."""
    assert not where_it_runs(running, 0.0001, company=1, busy=True)


def test_batches_go_through_the_threads_as_long_as_the_sessions_are_held(running: dict[str, Any]) -> None:
    """So that none meets what else runs in them."""
    assert not where_it_runs(running, 0.0001, company=5, held=True)


def test_what_takes_nobody_knows_how_long_leaves_the_loop(running: dict[str, Any]) -> None:
    threads: list[int] = []

    async def scenario(device: Device) -> None:
        device.add(0)
        device.dispatcher.pump()
        await device.until(1)

    play(running, lambda: Device(lambda works: threads.append(threading.get_ident())), scenario)
    assert threads != [threading.get_ident()]


def test_request_that_waits_for_company_runs_though_a_batch_ended_just_before_it_came(running: dict[str, Any]) -> None:
    """The thread that ended the batch knew of nothing that waits, and its word reaches the loop last."""
    limits = Limits(max_batch_size=4, max_queue_delay=0.005, max_queue=1000)
    may_end = threading.Event()

    async def scenario(device: Device) -> None:
        assert device.instances is not None
        device.dispatcher.measured(KEY, limits, {1: 0.02, 4: 0.021})
        device.add(0)
        device.dispatcher.pump()
        may_end.set()
        (instance,) = device.instances.all
        instance.submit(lambda: None).result(10)  # the thread is done, and the loop has not heard of it
        now = time.monotonic()
        device.dispatcher.expect("letters", "front end", 1, 2, now)
        device.dispatcher.add(KEY, Request(1, "front end", 1, now), limits, now)
        device.dispatcher.pump()
        assert device.ended == []
        await device.until(2)

    play(running, lambda: Device(lambda works: may_end.wait(10), limits=limits), scenario)


def test_requests_of_a_version_that_has_gone_are_told_so(running: dict[str, Any]) -> None:
    async def scenario(device: Device) -> None:
        device.instances = None
        device.dispatcher.measured(KEY, LIMITS, {1: 0.005})
        device.add(0, 1)
        device.dispatcher.pump()
        device.dispatcher.drop("letters", 1)
        assert not device.dispatcher._batcher.times(KEY)
        assert [number for number, _ in device.failed] == [0, 1]
        assert all(isinstance(error, ModelUnavailable) for _, error in device.failed)
        assert all(error.retry_after == 0.1 for _, error in device.failed)
        # They leave the device to others.
        device.instances = Instances([Session()])  # type: ignore[list-item]
        device.add(2)
        device.dispatcher.pump()
        await device.until(1)
        assert device.ended == [2]

    play(running, lambda: Device(lambda works: None), scenario)


@pytest.mark.parametrize("seconds", [0.0001, 0.02], ids=["on the loop", "in the thread"])
def test_times_that_trials_have_replaced_are_reported_once(running: dict[str, Any], seconds: float) -> None:
    limits = replace(LIMITS, policy="deferred")

    async def scenario(device: Device) -> None:
        batcher = device.dispatcher._batcher
        device.dispatcher.measured(KEY, limits, {1: seconds, 4: seconds})
        real, ended = batcher.ended, []

        def second_replaces(batch: Batch, runs: Sequence[tuple[int, float]]) -> bool:
            ended.append(real(batch, runs))
            return len(ended) == 2

        batcher.ended = second_replaces  # type: ignore[method-assign]
        device.add(*range(12))
        device.dispatcher.pump()
        await device.until(12)
        assert [set(times) for times in device.times] == [{1, 4}]

    play(running, lambda: Device(lambda works: None, limits=limits), scenario)


def test_request_that_waits_can_be_cancelled_and_those_of_a_source_forgotten(running: dict[str, Any]) -> None:
    async def scenario(device: Device) -> None:
        device.add(0, 1, 2)
        assert device.dispatcher.backlog("letters")[0] == 3
        cancelled = device.dispatcher.cancel("front end", 1)
        assert cancelled is not None
        assert cancelled.id == 1
        assert device.dispatcher.cancel("front end", 1) is None
        assert device.dispatcher.forget("another") == []
        assert [request.id for request in device.dispatcher.forget("front end")] == [0, 2]
        assert device.dispatcher.backlog("letters")[0] == 0
        device.dispatcher.pump()
        assert device.ended == []

    play(running, lambda: Device(lambda works: None), scenario)


def test_request_that_has_missed_its_deadline_fails_and_does_not_run(running: dict[str, Any]) -> None:
    async def scenario(device: Device) -> None:
        now = time.monotonic()
        device.dispatcher.add(KEY, Request(0, "front end", 1, now - 2, deadline=now - 1), LIMITS, now - 2)
        device.dispatcher.pump()
        ((number, error),) = device.failed
        assert (number, type(error)) == (0, DeadlinePassed)
        assert device.ended == []

    play(running, lambda: Device(lambda works: None), scenario)


def test_batches_in_sessions_are_known_while_they_run(running: dict[str, Any]) -> None:
    seen: list[list[list[int]]] = []
    told: list[int] = []

    async def scenario(device: Device) -> None:
        def look(works: list[int]) -> None:
            seen.append([[request.id for request in batch.requests] for batch in device.dispatcher.running()])

        device.run = look
        device.dispatcher._on_run = told.append
        device.add(0, 1)
        device.dispatcher.pump()
        await device.until(2)
        assert seen == [[[0, 1]]]
        assert told == [1, 0]
        assert device.dispatcher.running() == []

    play(running, lambda: Device(lambda works: None), scenario)


@pytest.mark.parametrize(("alone", "provider"), [(True, Session.provider), (False, CUDA)])
def test_short_batch_leaves_the_loop_where_it_may_end_the_engine_or_the_device_is_a_gpu(
    running: dict[str, Any], monkeypatch: pytest.MonkeyPatch, alone: bool, provider: str
) -> None:
    monkeypatch.setattr(Session, "provider", provider)
    monkeypatch.setattr(dispatcher, "finish", lambda run: run)
    threads: list[int] = []

    async def scenario(device: Device) -> None:
        key = KEY._replace(alone=alone)
        device.dispatcher.measured(key, LIMITS, {1: 0.0001, 4: 0.0001})
        device.dispatcher.add(key, Request(0, "front end", 1, 0.0), LIMITS, 0.0)
        device.dispatcher.pump()
        await device.until(1)

    play(running, lambda: Device(lambda works: threads.append(threading.get_ident())), scenario)
    assert threads != [threading.get_ident()]


def test_engine_ends_where_a_run_raises_what_nobody_expects(
    running: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Front ends send what waits to the next process."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise SystemExit

    def fail(works: list[int]) -> None:
        raise MemoryError("the device is lost")

    monkeypatch.setattr(dispatcher.os, "_exit", end)

    async def scenario(device: Device) -> None:
        device.add(0)
        (request,) = device.dispatcher.forget("front end")
        assert device.instances is not None
        start = dispatcher._Start(Batch(KEY, [request], 0.0, 1.0), device.instances.reserve(), 0.0, on_loop=True)
        with pytest.raises(SystemExit):
            dispatcher._run_or_exit(start)

    play(running, lambda: Device(fail), scenario)
    assert codes == [1]


def test_thread_leaves_the_batches_of_other_sessions_to_them(running: dict[str, Any]) -> None:
    threads: dict[int, int] = {}
    may_end = threading.Event()

    def run(works: list[int]) -> None:
        (number,) = works
        threads[number] = threading.get_ident()
        may_end.wait(10)

    async def scenario(device: Device) -> None:
        assert device.instances is not None
        device.dispatcher.measured(KEY, device.limits, {1: 0.02})
        device.add(0)
        device.dispatcher.pump()
        device.add(1, 2)  # the loop does not ask what to run: the thread finds both
        may_end.set()
        await device.until(3)
        assert sorted(device.ended) == [0, 1, 2]
        assert threads[0] == threads[1] != threads[2]
        assert [instance.running for instance in device.instances.all] == [0, 0]

    limits = Limits(max_batch_size=1, max_queue_delay=0.0, max_queue=10, policy="eager", instances=2)
    play(running, lambda: Device(run, 2, limits), scenario)


def test_what_is_expected_is_told_to_the_batcher(running: dict[str, Any]) -> None:
    async def scenario(device: Device) -> None:
        told: list[tuple[object, ...]] = []
        device.dispatcher._batcher.expect = lambda *told_: told.append(told_)  # type: ignore[method-assign]
        device.dispatcher.expect("letters", "front end", 3, 4, 5.0)
        assert told == [("letters", "front end", 3, 4, 5.0)]

    play(running, lambda: Device(lambda works: None), scenario)


def test_next_decision_is_made_when_the_batcher_wants_it(running: dict[str, Any]) -> None:
    may_end = threading.Event()

    async def scenario(device: Device) -> None:
        loop, batcher = asyncio.get_running_loop(), device.dispatcher._batcher
        real, after = batcher.next, 1000.0

        def following(now: float) -> Decision:
            return real(now)._replace(again=now + after)

        def timer() -> asyncio.TimerHandle:
            assert device.dispatcher._timer is not None
            return device.dispatcher._timer

        batcher.next = following  # type: ignore[method-assign]
        device.dispatcher.pump()
        first = timer()
        assert 900 < first.when() - loop.time() <= 1000
        after = 3000.0
        device.add(0)
        device.dispatcher.pump()
        after = 2000.0
        may_end.set()
        await device.until(1)  # the end of a batch is followed by a decision, too
        second = timer()
        assert first.cancelled()
        assert 1900 < second.when() - loop.time() <= 2000
        after = -1.0  # it is overdue
        device.dispatcher.pump()
        third = timer()
        assert second.cancelled()
        assert third.when() <= loop.time()
        after = math.inf
        device.dispatcher.pump()
        assert third.cancelled()
        assert device.dispatcher._timer is None

    play(running, lambda: Device(lambda works: may_end.wait(10)), scenario)


@pytest.mark.parametrize(
    ("provider", "nbytes", "on_loop"),
    [
        (Session.provider, 8, True),
        (Session.provider, COPIED_AT_ONCE, True),
        (Session.provider, COPIED_AT_ONCE + 1, False),
        (CUDA, 8, False),
    ],
)
def test_small_outputs_are_written_on_the_loop_and_large_ones_beside_it(
    monkeypatch: pytest.MonkeyPatch, provider: str, nbytes: int, on_loop: bool
) -> None:
    """Those of a GPU are its session's own memory, which the next run overwrites."""
    threads: list[int] = []

    def finish(run: Run) -> Run:
        threads.append(threading.get_ident())
        return run

    def compute(session: Session, requests: list[Request]) -> Run:
        return Run(requests, [(1, Times(0, 0, 0, 0))], outputs=(np.zeros(nbytes, np.uint8),))

    monkeypatch.setattr(Session, "provider", provider)
    monkeypatch.setattr(dispatcher, "finish", finish)
    monkeypatch.setattr(dispatcher, "compute", compute)

    async def scenario(device: Device) -> None:
        device.add(0)
        device.dispatcher.pump()
        await device.until(1)
        assert (threads[0] == threading.get_ident()) == on_loop

    play({}, lambda: Device(lambda works: None), scenario)
