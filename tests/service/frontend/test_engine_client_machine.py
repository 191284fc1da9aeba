"""Callers who come and go, engines that answer in any order and die: no memory is freed early, twice or never."""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from convoy.service.errors import ConvoyError, ModelUnavailable, QueueFull, RunFailed
from convoy.service.frontend.engine_client import EngineClient, Lease
from convoy.service.frontend.routing import Load
from convoy.service.ipc.channel import Failure, Request
from convoy.service.ipc.slots import Arena
from tests.service.frontend.test_engine_client import ROW, Engine, ask

ARENA_BYTES = 3 << 9  # eight slots of three cache lines
TURNS = 4  # of the loop, in which all that is under way within one process settles


class Slots(RuleBasedStateMachine):
    """A link, the engines at its other ends, and the callers."""

    devices = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.faults.append(context))
        self.count = 0
        self.callers: dict[int, asyncio.Task[list[int]]] = {}
        self.engines: dict[int, Engine] = {}
        self.held: dict[int, tuple[int, Request, int]] = {}  # what a device has not ended, and what was in it at first
        self.link = self._run(self._make())

    async def _make(self) -> EngineClient:
        return EngineClient(ARENA_BYTES, lambda table: None, lambda: None, devices=self.devices)

    @rule(count=st.integers(1, 4))
    def ask(self, count: int) -> None:
        async def start() -> None:
            for _ in range(count):
                self.count += 1
                self.callers[self.count] = asyncio.ensure_future(ask(self.link, self.count % 100 + 1))

        self._run(start())

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Without a turn of the loop between the callers and what comes next."""
        if self.callers:
            for number in data.draw(st.sets(st.sampled_from(sorted(self.callers)), max_size=3)):
                self.callers[number].cancel()

    @rule(loaded=st.booleans(), data=st.data())
    def attach(self, loaded: bool, data: st.DataObject) -> None:
        """An engine comes, maybe before the end of the one before has been noticed."""
        self._attach(loaded, data.draw(st.sampled_from(self.devices)))

    def _attach(self, loaded: bool, device: int) -> None:
        async def begin() -> Engine:
            engine = Engine(self.link, device)
            if loaded:
                engine.publish(ROW)
            return engine

        before, self.engines[device] = self.engines.get(device), self._run(begin())
        if before is not None:
            before.die()
        self._forget(device)
        self._settle()

    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        if self.engines:
            self.engines[data.draw(st.sampled_from(sorted(self.engines)))].publish(ROW)
        self._settle()

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        if self.engines:
            device = data.draw(st.sampled_from(sorted(self.engines)))
            self.engines.pop(device).die()
            self._forget(device)

    def _forget(self, device: int) -> None:
        self.held = {number: held for number, held in self.held.items() if held[0] != device}

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Some of what an engine has runs, and is marked."""
        self._settle()
        if self.held:
            for number in data.draw(st.sets(st.sampled_from(sorted(self.held)), max_size=3)):
                device, request, _ = self.held[number]
                self.engines[device].begin(request)

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self._settle()
        if self.held:
            for number in data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True, max_size=4)):
                self._end(number, data.draw(st.booleans()))
        self._settle()

    @rule()
    def settle(self) -> None:
        self._settle()

    def teardown(self) -> None:
        """Engines that stay answer whoever is left. Then nobody waits, and no memory is in use."""
        try:
            for device in self.devices:
                self._attach(loaded=True, device=device)
            for _ in range(3):
                for number in list(self.held):
                    self._end(number, good=True)
                self._settle()
            assert not self.held
            assert all(task.done() for task in self.callers.values()), "somebody waits for ever"
            self._settle()
            assert self.link.arena.used_bytes == 0, "memory is leaked"
            assert not any(each.load.requests or each.load._bytes for each in self.link.engines.by_device.values())
        finally:
            for task in self.callers.values():
                task.cancel()
            self._run(asyncio.sleep(0))
            for engine in self.engines.values():
                engine.die()
            self._run(asyncio.sleep(0))
            self.loop.close()
            os.close(self.link.arena.descriptor)

    def _end(self, number: int, good: bool) -> None:
        device, request, value = self.held.pop(number)
        assert self._content(device, request) == value, "its memory was given to another while the engine had it"
        if good:
            self.engines[device].answer(request)
        else:
            self.engines[device].channel.send([Failure(request.id, RunFailed("the network does not like it"))])

    def _content(self, device: int, request: Request) -> int:
        memory = self.engines[device].memory
        assert memory is not None
        values = {int(each) for each in memory.array(request.inputs[0]).reshape(-1)}
        return values.pop() if len(values) == 1 else -1

    def _settle(self) -> None:
        async def turns() -> None:
            for _ in range(TURNS):
                await asyncio.sleep(0)
                for engine in self.engines.values():
                    await engine.take(lambda: True)

        self._run(turns())
        for device, engine in self.engines.items():
            for request in engine.requests:
                assert request.id not in self.held, "two engines have it"
                self.held[request.id] = device, request, self._content(device, request)
            engine.requests.clear()
        for number, task in [each for each in self.callers.items() if each[1].done()]:
            self._check(number, task)
            del self.callers[number]
        assert not self.faults, self.faults

    def _check(self, number: int, task: "asyncio.Task[list[int]]") -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            assert task.result() == [2 * (number % 100 + 1)] * 4
        else:
            assert isinstance(error, ConvoyError), error
            assert isinstance(error, QueueFull | RunFailed | ModelUnavailable)

    def _run(self, action: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(action, 20))


class SlotsOfTwo(Slots):
    """The same with two engines, of which each may have what the other has not."""

    devices = (0, 5)


PLAIN = settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.parametrize("machine", [Slots, SlotsOfTwo])
def test_no_memory_is_freed_early_twice_or_never(machine: type[Slots]) -> None:
    run_state_machine_as_test(machine, settings=PLAIN)


def assert_caught(machine: type[Slots] = Slots) -> None:
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(
            machine, settings=settings(PLAIN, phases=[Phase.generate], max_examples=1000, report_multiple_bugs=False)
        )


def test_freeing_with_the_caller_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine may still read it, and its last word frees it once more."""
    monkeypatch.setattr(Lease, "release", lambda self: self._client._free(self))
    assert_caught()


def test_memory_that_nobody_frees_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arena, "free", lambda self, block: None)
    assert_caught()


def test_an_answer_that_reaches_another_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Engine.answer
    monkeypatch.setattr(
        Engine, "answer", lambda self, request: answer(self, msgspec.structs.replace(request, inputs=request.outputs))
    )
    assert_caught()


def test_a_request_that_an_engine_dies_with_and_no_other_gets_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = EngineClient._queue
    monkeypatch.setattr(EngineClient, "_queue", lambda self, lease, one: lease.attempts or queue(self, lease, one))
    assert_caught(SlotsOfTwo)


def test_work_that_stays_counted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Load, "end", lambda self, served, nbytes: None)
    assert_caught(SlotsOfTwo)
