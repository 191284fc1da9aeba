"""In which order the threads of a front end serve its callers."""

import asyncio
import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.frontend.prepare import to_its_end
from convoy.service.frontend.threads import HEAVY, NOBODY, Threads, Turns, Who, awaited

FLOOD, GOOD = Who("10.0.0.1", 1), Who("10.0.0.2", 2)


class Queue:
    """What `Turns` is compared with: first come, first served."""

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, who: Who, what: object) -> None:
        self._waiting.append(what)

    def take(self) -> object:
        return self._waiting.popleft()


def seconds_to_serve_good(turns: Turns[float] | Queue, bombs: int, bomb: float, good: float) -> float:
    """Virtual seconds after which one thread has decoded a picture that came after a flood of others."""
    for _ in range(bombs):
        turns.add(FLOOD, bomb)
    now = turns.take()  # one of them has begun
    assert isinstance(now, float)
    turns.add(GOOD, good)
    while turns:
        seconds = turns.take()
        assert isinstance(seconds, float)
        now += seconds
        if seconds == good:
            return now
    raise AssertionError("it was never served")


def test_flood_of_one_caller_delays_another_by_one_decode() -> None:
    assert seconds_to_serve_good(Turns(), 100, 1.0, 0.01) <= 2.02


def test_without_turns_the_flood_comes_first() -> None:
    assert seconds_to_serve_good(Queue(), 100, 1.0, 0.01) > 99


def test_connections_of_one_address_are_served_in_turn() -> None:
    turns: Turns[str] = Turns()
    for number in range(3):
        turns.add(Who("proxy", 1), f"a{number}")
    turns.add(Who("proxy", 2), "b0")
    turns.add(Who("other", 3), "c0")
    assert [turns.take() for _ in range(5)] == ["a0", "c0", "b0", "a1", "a2"]


def test_many_connections_give_an_address_no_more_turns() -> None:
    turns: Turns[str] = Turns()
    for number in range(100):
        turns.add(Who("greedy", number), "greedy")
    for _ in range(10):
        turns.add(GOOD, "good")
    assert [turns.take() for _ in range(20)].count("good") == 10


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_all_is_served_once_and_each_connection_in_its_order(added: list[tuple[int, int]]) -> None:
    turns: Turns[tuple[Who, int]] = Turns()
    for number, (caller, connection) in enumerate(added):
        turns.add(Who(caller, connection), (Who(caller, connection), number))
    served = []
    while turns:
        served.append(turns.take())
    assert sorted(number for _, number in served) == list(range(len(added)))
    for who in {who for who, _ in served}:
        numbers = [number for each, number in served if each == who]
        assert numbers == sorted(numbers)


class Gates:
    """Work that runs until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._changed = threading.Condition()
        self._open = threading.Event()

    def work(self, name: str) -> Callable[[int], str]:
        def run(thread: int) -> str:
            with self._changed:
                self.begun.append(name)
                self._changed.notify_all()
            assert self._open.wait(10)
            return name

        return run

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, 10), self.begun

    def open(self) -> None:
        self._open.set()


@pytest.mark.parametrize("number", [2, 4])
def test_heavy_work_leaves_a_thread_to_light_work(number: int) -> None:
    threads, gates = Threads(number, "test"), Gates()
    heavy = [threads.submit(FLOOD, gates.work("heavy"), HEAVY) for _ in range(10)]
    gates.wait_for(number - 1)
    # Also light work of the same caller: it finds the thread that no heavy work may use.
    assert threads.submit(FLOOD, lambda thread: "light").result(10) == "light"
    assert gates.begun == ["heavy"] * (number - 1)
    gates.open()
    assert [each.result(10) for each in heavy] == ["heavy"] * 10


def test_heavy_work_advances_under_a_flood_of_light_work() -> None:
    threads, gates, advanced = Threads(2, "test"), Gates(), threading.Event()

    def later(thread: int) -> bool:
        # A thread that has taken the heavy work may stand still before it begins: nothing overtakes it meanwhile.
        return advanced.wait(10)

    light = [threads.submit(GOOD, gates.work("light")) for _ in range(4)]
    flood = [threads.submit(GOOD, later) for _ in range(46)]
    gates.wait_for(2)
    heavy = threads.submit(GOOD, lambda thread: advanced.set(), HEAVY)
    gates.open()
    heavy.result(10)
    assert [each.result(10) for each in light] == ["light"] * 4
    assert all(each.result(10) for each in flood)


def test_single_thread_alternates_between_light_and_heavy_work() -> None:
    threads, gates = Threads(1, "test"), Gates()
    first = threads.submit(FLOOD, gates.work("first"))
    gates.wait_for(1)
    heavy = [threads.submit(FLOOD, gates.work("heavy"), HEAVY) for _ in range(3)]
    light = [threads.submit(GOOD, gates.work("light")) for _ in range(3)]
    gates.open()
    wait([first, *heavy, *light], 10)
    assert gates.begun == ["first", "heavy", "light", "heavy", "light", "heavy", "light"]


def test_cancelled_work_never_runs_and_is_forgotten_at_once() -> None:
    class Picture:
        pass

    threads, gates = Threads(1, "test"), Gates()
    first = threads.submit(NOBODY, gates.work("first"))
    gates.wait_for(1)
    picture = Picture()
    gone = weakref.ref(picture)
    waiting = threads.submit(NOBODY, lambda thread, picture=picture: gates.begun.append("cancelled"))
    del picture
    assert waiting.cancel()
    assert gone() is None
    gates.open()
    assert threads.submit(NOBODY, lambda thread: thread).result(10) == 0
    assert first.result(10) == "first"
    assert gates.begun == ["first"]


def test_work_that_fails_fails_alone() -> None:
    threads = Threads(1, "test")

    def fail(thread: int) -> None:
        raise ValueError("broken")

    failed = threads.submit(NOBODY, fail)
    with pytest.raises(ValueError, match="broken"):
        failed.result(10)
    assert threads.submit(NOBODY, lambda thread: "well").result(10) == "well"


class _Picture:
    """Something large."""


@pytest.mark.parametrize("fails", [True, False])
def test_ended_work_keeps_nothing_until_the_collector_runs(fails: bool) -> None:
    threads = Threads(1, "test")

    def decode(_: int, picture: _Picture) -> int:
        if fails:
            raise ValueError(f"{picture} is none")
        return 7

    async def ask(picture: _Picture) -> int:
        waiting = awaited(threads.submit(NOBODY, partial(decode, picture=picture)))
        try:
            return await waiting
        finally:
            del waiting

    async def asked() -> weakref.ref[_Picture]:
        picture = _Picture()
        with suppress(ValueError):
            assert await ask(picture) == 7
        return weakref.ref(picture)

    gc.collect()
    gc.disable()
    try:
        kept = asyncio.run(asked())
        threads.submit(NOBODY, lambda _: None).result(10)  # the thread has left the first one behind
        assert kept() is None
    finally:
        gc.enable()


def test_cancelled_waiting_cancels_work_that_has_not_begun() -> None:
    threads, busy = Threads(1, "test"), threading.Event()

    async def cancelled() -> bool:
        first = threads.submit(NOBODY, lambda _: busy.wait(10))
        second = threads.submit(NOBODY, lambda _: None)
        waiting = awaited(second)
        waiting.cancel()
        await asyncio.sleep(0)  # what follows a cancellation is done by the loop
        with pytest.raises(asyncio.CancelledError):
            await waiting
        busy.set()
        await awaited(first)
        return second.cancelled()

    assert asyncio.run(cancelled())


def test_failure_of_work_whose_caller_has_gone_is_no_fault_of_the_server() -> None:
    """asyncio would log it with its traceback, as an error that nobody has looked at."""
    threads = Threads(1, "test")
    begun, free = threading.Event(), threading.Event()
    faults: list[dict[str, object]] = []

    def decode() -> None:
        begun.set()
        free.wait(10)
        raise ValueError("no image")

    async def cancelled() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        task = asyncio.create_task(to_its_end(threads, NOBODY, decode))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(cancelled())
    assert faults == []
