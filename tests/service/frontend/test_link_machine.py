"""Callers who come and go, engines that answer in any order and die: no memory is freed early, twice or never."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from service.channel import Failure, Submit
from service.errors import ConvoyError, ModelUnavailable, QueueFull, RunFailed
from service.frontend.link import EngineLink, Slot
from service.slots import Arena
from tests.service.frontend.test_link import ROW, Engine, ask

ARENA_BYTES = 1 << 10  # eight slots of two cache lines
TURNS = 4  # of the loop, in which all that is under way within one process settles


class Slots(RuleBasedStateMachine):
    """A link, the engine at its other end, and the callers."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.faults.append(context))
        self.count = 0
        self.callers: dict[int, asyncio.Task[list[int]]] = {}
        self.engine: Engine | None = None
        self.held: dict[int, tuple[Submit, int]] = {}  # what the engine has not ended, and what was in it at first
        self.link = self._run(self._make())

    async def _make(self) -> EngineLink:
        return EngineLink(ARENA_BYTES, lambda table: None, lambda: None)

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

    @rule(loaded=st.booleans())
    def attach(self, loaded: bool) -> None:
        """An engine comes, maybe before the end of the one before has been noticed."""

        async def begin() -> Engine:
            engine = Engine(self.link)
            if loaded:
                engine.publish(ROW)
            return engine

        before, self.engine = self.engine, self._run(begin())
        if before is not None:
            before.die()
        self.held.clear()
        self._settle()

    @rule()
    def load(self) -> None:
        if self.engine is not None:
            self.engine.publish(ROW)
        self._settle()

    @rule()
    def die(self) -> None:
        if self.engine is not None:
            self.engine.die()
        self.engine = None
        self.held.clear()

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
        """An engine that stays answers whoever is left. Then nobody waits, and no memory is in use."""
        try:
            self.attach(loaded=True)
            for _ in range(3):
                for number in list(self.held):
                    self._end(number, good=True)
                self._settle()
            assert not self.held
            assert all(task.done() for task in self.callers.values()), "somebody waits for ever"
            self._settle()
            assert self.link.arena.used_bytes == 0, "memory is leaked"
        finally:
            for task in self.callers.values():
                task.cancel()
            self._run(asyncio.sleep(0))
            self.loop.close()

    def _end(self, number: int, good: bool) -> None:
        assert self.engine is not None
        submit, value = self.held.pop(number)
        assert self._content(submit) == value, "its memory was given to another while the engine had it"
        if good:
            self.engine.answer(submit)
        else:
            self.engine.channel.send([Failure(submit.id, RunFailed("the network does not like it"))])

    def _content(self, submit: Submit) -> int:
        assert self.engine is not None
        assert self.engine.memory is not None
        values = {int(each) for each in self.engine.memory.array(submit.inputs[0]).reshape(-1)}
        return values.pop() if len(values) == 1 else -1

    def _settle(self) -> None:
        async def turns() -> None:
            for _ in range(TURNS):
                await asyncio.sleep(0)
                if self.engine is not None:
                    await self.engine.take(lambda: True)

        self._run(turns())
        if self.engine is not None:
            for submit in self.engine.submits:
                self.held[submit.id] = submit, self._content(submit)
            self.engine.submits.clear()
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


PLAIN = settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_no_memory_is_freed_early_twice_or_never() -> None:
    run_state_machine_as_test(Slots, settings=PLAIN)


def assert_caught() -> None:
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(
            Slots, settings=settings(PLAIN, phases=[Phase.generate], max_examples=300, report_multiple_bugs=False)
        )


def test_freeing_with_the_caller_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine may still read it, and its last word frees it once more."""
    monkeypatch.setattr(Slot, "__exit__", lambda self, *error: self.free())
    assert_caught()


def test_memory_that_nobody_frees_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arena, "free", lambda self, block: None)
    assert_caught()


def test_an_answer_that_reaches_another_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Engine.answer
    monkeypatch.setattr(Engine, "answer", lambda self, submit: answer(self, submit._replace(inputs=submit.outputs)))
    assert_caught()
