"""Every order in which callers come and go, engines run, answer and die: slots, requests and suspects are as promised.

The front end's side is the real code. Its event loop and the engines are played, so that one event happens at a time.
"""

import asyncio
import copy
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import pytest

from convoy.service.errors import EngineDied, ModelUnavailable
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.engine_client import EngineClient, Lease
from convoy.service.frontend.routing import Load
from convoy.service.frontend.suspects import Suspects
from convoy.service.ipc import channel
from convoy.service.ipc.channel import Answer, Cancel, Cancelled, Failure, Record, Request, TableFile, Times
from convoy.service.ipc.slots import ALIGNMENT, Arena, memory_file
from convoy.service.repository import Table, encode_table
from tests.service.exploring import Event, explore, wander
from tests.service.frontend.test_engine_client import ROW, ask

TABLE = encode_table(Table((ROW,), complete=True))
ARENA_BYTES = 4 * 3 * ALIGNMENT  # four slots of a mark, an input and an output


class Timer:
    def __init__(self, timers: list["Timer"], call: Callable[[], object]) -> None:
        self.call = call
        self._timers = timers
        timers.append(self)

    def cancel(self) -> None:
        if self in self._timers:
            self._timers.remove(self)


class Loop:
    """An event loop that does nothing by itself."""

    def __init__(self) -> None:
        self.ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.timers: list[Timer] = []
        self.readers: dict[object, Callable[[], object]] = {}
        self.faults: list[dict[str, Any]] = []

    def call_soon(self, call: Callable[..., object], *args: object, context: object = None) -> None:
        self.ready.append((call, args))

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        return Timer(self.timers, call)

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.faults.append(context)

    def add_reader(self, connection: object, call: Callable[[], object]) -> None:
        self.readers[connection] = call

    def remove_reader(self, connection: object) -> None:
        del self.readers[connection]

    def remove_writer(self, connection: object) -> None:
        pass

    def turn(self) -> None:
        for _ in range(len(self.ready)):
            call, args = self.ready.popleft()
            call(*args)


class Engine:
    """An engine, and the pipe to it. What the pipe has brought, it has: whether it has read it changes nothing.

    What an engine does is decided when the front end learns of it, because nobody sees it before: an answer is chosen
    when it is read, and what ran when the engine died is chosen with its death. This loses no order: what one died with
    may have been on its way back, and is read or not.
    """

    def __init__(self) -> None:
        self.alive = True
        self.has: dict[int, Request] = {}  # not ended, by id; once it has died, those that may have been
        self.cancelled: set[int] = set()
        self.back: deque[Record] = deque([TableFile(len(TABLE))])  # what the front end reads next

    def take(self, record: Record) -> None:
        match record:
            case Request(id=id_):
                assert id_ not in self.has, "it is sent twice"
                self.has[id_] = record
            case Cancel(id=id_):
                self.cancelled.add(id_)

    def batches(self) -> Iterator[tuple[int, ...]]:
        """What may run at one time, also nothing."""
        together = [id_ for id_, request in self.has.items() if not request.alone]
        for count in range(len(together) + 1):
            yield from combinations(together, count)
        yield from ((id_,) for id_, request in self.has.items() if request.alone)

    def end(self, id_: int, record: Record) -> None:
        self.cancelled.discard(id_)
        del self.has[id_]
        self.back.append(record)


class Pipe:
    """The front end's end of it: what a Channel is, and its socket."""

    waiting = False

    def __init__(self, engine: "Pipe | Engine") -> None:
        self.engine = engine.engine if isinstance(engine, Pipe) else engine
        self.socket = engine

    def send(self, records: Sequence[Record], descriptors: Sequence[int] = ()) -> None:
        if not self.engine.alive:
            raise ConnectionError
        for record in records:
            self.engine.take(copy.copy(record))

    def receive(self) -> tuple[list[Record], list[int]] | None:
        if not self.engine.back:
            raise ConnectionError
        record = self.engine.back.popleft()
        if not isinstance(record, TableFile):
            return [record], []
        descriptor = memory_file(len(TABLE))
        os.pwrite(descriptor, TABLE, 0)
        return [record], [descriptor]

    def close(self) -> None:
        pass


class Slots:
    """A front end with two engines that have loaded the same version, and its callers.

    `faults` may happen: a caller cancels, an engine dies, no engine comes within the time that requests wait for one.
    """

    def __init__(self, requests: int, faults: int, alike: bool = True) -> None:
        self.alike = alike
        self.loop = Loop()
        self.left = requests
        self.count = 0
        self.faults = faults
        self.tasks: dict[int, asyncio.Task[list[int]]] = {}  # by caller, whose number is also what it sends
        self.ended: list[tuple[int, asyncio.Task[list[int]]]] = []  # by the latest event
        self.leases: dict[int, Lease] = {}
        self.suspected: set[int] = set()  # they ran when an engine died
        self.fatal: dict[int, set[int]] = {}  # they ran alone when the engine of a device died: not decided yet
        self.killed: set[int] = set()  # they ran alone when others killed an engine
        self.guilty: set[int] = set()
        self.cancelled: set[int] = set()
        self.waited_too_long = False
        asyncio._set_running_loop(self.loop)  # type: ignore[arg-type]
        try:
            self.link = EngineClient(ARENA_BYTES, lambda table: None, lambda: None, devices=(0, 1))
            self.gate = Gate(requests, requests)
            self.engines: dict[int, Engine] = {}
            for device in (0, 1):
                self._attach(device, False)
                self._read(device)
        finally:
            asyncio._set_running_loop(None)

    def events(self) -> list[Event]:
        found: list[Event] = [("ask",)] if self.left else []
        if self.loop.ready:
            found.append(("turn",))
        for device, engine in self.engines.items():
            if engine in self.loop.readers:
                if engine.back or not engine.alive:
                    found.append(("read", device))
                if not engine.back:
                    found += [("answer", device, id_) for id_ in engine.has]
                    found += [("drop", device, id_) for id_ in engine.cancelled if id_ in engine.has]
            if not engine.alive:
                found.append(("attach", device, False))
                if self.fatal.get(device):
                    found.append(("attach", device, True))
        if self.faults:
            found += [("cancel", number) for number, task in self.tasks.items()
                      if not task.done() and number not in self.cancelled]  # fmt: skip
            found += [("die", device, *batch) for device, engine in self.engines.items() if engine.alive
                      for batch in engine.batches()]  # fmt: skip
            found += [("time",)] if self.loop.timers else []
        return found

    def do(self, event: Event) -> None:
        name, *rest = event
        asyncio._set_running_loop(self.loop)  # type: ignore[arg-type]
        try:
            getattr(self, f"_{name}")(*rest)
        finally:
            asyncio._set_running_loop(None)
        assert not self.loop.faults, self.loop.faults
        self.ended = [each for each in self.tasks.items() if each[1].done()]
        for number, task in self.ended:
            _ = task.cancelled() or task.exception()  # somebody has seen it
            del self.tasks[number]

    def _ask(self) -> None:
        self.left -= 1
        self.count += 1
        number = self.count
        task = asyncio.Task(self._caller(number), loop=self.loop)  # type: ignore[arg-type]
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.tasks[number] = task
        step, args = self.loop.ready.pop()
        step(*args)

    async def _caller(self, number: int) -> list[int]:
        self.gate.enter(1)
        try:
            return await ask(self.link, number)
        finally:
            self.gate.leave(1)

    def _turn(self) -> None:
        self.loop.turn()

    def _read(self, device: int) -> None:
        self.loop.readers[self.engines[device]]()

    def _attach(self, device: int, from_outside: bool) -> None:
        for number in self.fatal.pop(device, ()):
            if from_outside and number not in self.killed:
                self.killed.add(number)
            else:
                self.guilty.add(number)
        self.engines[device] = engine = Engine()
        self.link.attach(engine, device, from_outside=from_outside)  # type: ignore[arg-type]

    def _answer(self, device: int, id_: int) -> None:
        memory, request = self.link.arena.mapping, self.engines[device].has[id_]
        values = memory.array(request.inputs[0])
        room = request.outputs[0]._replace(dtype=values.dtype.name, shape=values.shape)
        memory.array(room)[...] = values * 2
        self.engines[device].end(id_, Answer(id_, 1, Times(1, 2, 3, 4), (room,)))
        self._read(device)

    def _drop(self, device: int, id_: int) -> None:
        self.engines[device].end(id_, Failure(id_, Cancelled("by its caller")))
        self._read(device)

    def _cancel(self, number: int) -> None:
        self.faults -= 1
        self.cancelled.add(number)
        self.tasks[number].cancel()

    def _die(self, device: int, *running: int) -> None:
        self.faults -= 1
        engine = self.engines[device]
        engine.alive = False
        for id_ in running:
            self.link.arena.mapping.marks[engine.has[id_].mark] = 1
            if engine.has[id_].alone:
                self.fatal.setdefault(device, set()).add(id_)
            self.suspected.add(id_)
            del engine.has[id_]

    def _time(self) -> None:
        self.faults -= 1
        self.waited_too_long = True
        self.loop.timers.pop().call()

    def check(self) -> None:
        """What holds at any time."""
        arena = self.link.arena
        owners: dict[int, int] = {}
        for device, engine in self.engines.items():
            for id_, request in engine.has.items() if engine.alive else ():
                assert owners.setdefault(id_, device) == device, "two engines have it"
                assert request.mark * 4 in arena._used, "its slot is freed while an engine has it"
                assert arena.mapping.view(request.inputs[0]).tolist() == [id_] * 4, "its slot is another's"
                assert request.alone == (id_ in self.suspected), (
                    "what ran when an engine died runs alone, no other does"
                )
                assert id_ not in self.guilty, "it has ended engines"
        assert arena.used_bytes == sum(arena._used.values())
        for number, task in self.ended:
            self._check_end(number, task)
        assert self.gate.bytes == self.gate.requests == len(self.tasks)

    def _check_end(self, number: int, task: "asyncio.Task[list[int]]") -> None:
        if task.cancelled():
            assert number in self.cancelled
        elif isinstance(error := task.exception(), EngineDied):
            assert number in self.guilty, "a request is blamed that has ended no engine alone"
        elif isinstance(error, ModelUnavailable):
            assert self.waited_too_long
        else:
            assert error is None, error
            assert task.result() == [2 * number] * 4
            assert number not in self.guilty

    def finish(self) -> None:
        """What holds once nothing more can happen."""
        assert not self.tasks, "somebody waits for ever"
        assert not self.link.arena.used_bytes, "a slot is leaked"
        assert not self.link._waiting
        assert not self.link._suspects.holding
        loads = [engine.load for engine in self.link.engines.by_device.values()]
        assert not any(load.requests or load._bytes for load in loads), "work is counted for ever"

    def key(self) -> Hashable:
        """Requests that left no trace do not count, and of the others only the order does: they are numbered anew.

        Which of two like engines is the first makes no difference, once one of them was chosen later than the other.
        """
        first, second = (engine.load.chosen for engine in self.link.engines.by_device.values())
        orders = ((0, 1), (1, 0)) if self.alike and first != second else ((0, 1),)
        return min(hash(self._key(order)) for order in orders)

    def _key(self, order: tuple[int, ...]) -> Hashable:
        """The state, with the devices in this order."""
        link, suspects, arena = self.link, self.link._suspects, self.link.arena
        rank = {device: number for number, device in enumerate(order)}
        played = [self.engines[device] for device in order]
        engines = [link.engines.by_device[device] for device in order]
        has = [engine.has if engine in self.loop.readers else {} for engine in played]
        left = sorted({*self.tasks, *link._waiting, *[id_ for each in has for id_ in each]})
        place = {number: rank for rank, number in enumerate(left)}

        def ids(numbers: Iterable[int]) -> Hashable:
            return tuple(sorted([place[number] for number in numbers if number in place]))

        def leases(queued: Sequence[Lease]) -> Hashable:
            return tuple([place.get(lease.request.id) for lease in queued if lease.request is not None])

        def by_device(of: Iterable[tuple[int, Hashable]]) -> Hashable:
            found = dict(of)
            return tuple([found.get(device) for device in order])

        chosen = [engine.load.chosen for engine in engines]
        return (
            self.left, self.faults, self.waited_too_long, len(self.loop.timers), ids(self.tasks),
            ids(self.suspected), ids(self.guilty), ids(self.killed), ids(self.cancelled),
            by_device((device, ids(numbers)) for device, numbers in self.fatal.items()),
            tuple([self._handle(call, args, place, rank) for call, args in self.loop.ready]),
            tuple([(engine.alive, engine in self.loop.readers, ids(engine.cancelled & all_.keys()), ids(all_),
                    len(engine.back)) for engine, all_ in zip(played, has, strict=True)]),
            tuple([(place[id_], _lease(lease, arena, rank)) for id_, lease in link._waiting.items()]),
            by_device((engine.device, leases(queued)) for engine, queued in link._unsent.items()),
            ids(suspects.resent), leases(suspects._held),
            by_device((device, leases(marked)) for device, marked in suspects._marked.items()),
            tuple([(engine.wire is not None, engine.complete, engine.lost, engine.table is None, engine.load.requests,
                    tuple(engine.load._bytes.values()), tuple(engine.load.paces), bool(engine.runnable))
                   for engine in engines]),
            chosen[0] < chosen[1],
            arena.blocks,  # slots are of one size: which ones are in use makes no difference
        )  # fmt: skip

    def _handle(
        self, call: Callable[..., object], args: tuple[Any, ...], place: dict[int, int], rank: dict[int, int]
    ) -> Hashable:
        """What runs with the next turn: records are sent, or a caller goes on because what it awaits has ended."""
        if getattr(call, "__name__", "") == "_send_unsent":
            return "send", rank[args[0].device]
        (future,) = args
        number = next(number for number, task in self.tasks.items() if task._fut_waiter is future)  # type: ignore[attr-defined]
        ended = "cancelled" if future.cancelled() else type(future.exception()).__name__
        return "wake", place[number], ended

    def close(self) -> None:
        os.close(self.link.arena.descriptor)


def _lease(lease: Lease, arena: Arena, rank: dict[int, int]) -> Hashable:
    assert lease.request is not None
    assert lease.answer is not None
    device = rank[lease.engine.device] if lease.engine else None
    return (lease.attempts > 0, lease.suspicion, lease.mark, lease.held, device,
            lease.sent, lease.released, lease.answer.done(), arena.mapping.marks[lease.request.mark])  # fmt: skip


@pytest.fixture(autouse=True)
def pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "Channel", Pipe)


@pytest.mark.parametrize(("requests", "faults"), [(1, 1), (3, 0), (1, 2), (2, 1), (4, 0)])
def test_slots_and_requests_end_once_in_every_order_of_events(requests: int, faults: int) -> None:
    explored = explore(partial(Slots, requests, faults))
    assert explored.states > 20


@pytest.mark.parametrize(("requests", "faults"), [(1, 2), (2, 1)])
def test_nothing_is_left_out_because_two_engines_are_alike(requests: int, faults: int) -> None:
    """Where each order of the devices is followed, no state is found that the other order does not stand for."""
    found: set[Hashable] = set()

    class Apart(Slots):
        def key(self) -> Hashable:
            self.alike = True
            found.add(super().key())
            self.alike = False
            return super().key()

    more, fewer = explore(partial(Apart, requests, faults)), explore(partial(Slots, requests, faults))
    assert more.states > fewer.states == len(found)


def test_slots_and_requests_end_once_in_random_orders_of_many_events() -> None:
    assert wander(partial(Slots, 4, 2), 500, 0).states > 2000


def test_slot_that_nobody_frees_is_found_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arena, "free", lambda self, block: None)
    with pytest.raises(AssertionError, match="a slot is leaked"):
        wander(partial(Slots, 4, 2), 10, 0)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(("requests", "faults"), [(2, 2), (3, 2), (4, 1), (4, 2)])
def test_slots_and_requests_end_once_in_every_order_of_more_events(requests: int, faults: int) -> None:
    explored = explore(partial(Slots, requests, faults))
    print(f"{requests} requests, {faults} faults: {explored}")


def assert_found(message: str, requests: int = 2, faults: int = 1) -> None:
    with pytest.raises(AssertionError, match=message):
        explore(partial(Slots, requests, faults))


def test_slot_that_is_freed_with_its_caller_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def end_use(self: EngineClient, lease: Lease) -> None:
        self._waiting.pop(lease.request.id, None)  # type: ignore[union-attr]
        self._free(lease)

    monkeypatch.setattr(EngineClient, "end_use", end_use)
    assert_found(
        "its slot is freed while an engine has it|KeyError"
    )  # or the answer to a request that it does not know


def test_slot_that_nobody_frees_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arena, "free", lambda self, block: None)
    assert_found("a slot is leaked", faults=0)


def test_request_that_no_other_engine_gets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = EngineClient._queue
    monkeypatch.setattr(EngineClient, "_queue", lambda self, lease, one: lease.attempts or queue(self, lease, one))
    assert_found("somebody waits for ever")


def test_work_that_stays_counted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Load, "end", lambda self, served, nbytes: None)
    assert_found("work is counted for ever", faults=0)


def test_suspect_that_runs_with_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Suspects, "suspect", lambda self, lease, request: setattr(lease, "mark", 0) or self.hold(lease))
    assert_found("runs alone, no other does")


def test_request_that_is_blamed_because_it_waited_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request that an engine had counts as one that ran."""
    lose = EngineClient._lose

    def losing(self: EngineClient, engine: object) -> None:
        for lease in self._waiting.values():
            if lease.engine is engine and lease.sent:
                self.arena.mapping.marks[lease.request.mark] = 1  # type: ignore[union-attr]
        lose(self, engine)  # type: ignore[arg-type]

    monkeypatch.setattr(EngineClient, "_lose", losing)
    assert_found("runs alone, no other does")


def test_request_that_ends_engines_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Suspects, "judge", lambda self, lease, request, outside: setattr(lease, "mark", 0))
    assert_found("it has ended engines", requests=1, faults=2)


def test_caller_whose_answer_came_as_it_cancelled_is_found_where_it_ends_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is set without a look at whether its caller has just cancelled."""
    end = EngineClient._end

    def ending(self: EngineClient, id_: int, result: object) -> None:
        lease = self._waiting[id_]
        cancelled = lease.answer is not None and lease.answer.done() and not lease.released
        end(self, id_, result)  # type: ignore[arg-type]
        if cancelled:
            lease.answer.set_result(result)  # type: ignore[union-attr, arg-type]

    monkeypatch.setattr(EngineClient, "_end", ending)
    assert_found("InvalidStateError")
