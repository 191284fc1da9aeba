"""Small requests of one turn of the loop travel together, and none of them notices."""

import asyncio
import math
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from convoy.service.errors import (
    BadRequest,
    ConvoyError,
    DeadlinePassed,
    ModelUnavailable,
    PredictedLate,
    QueueFull,
    RunFailed,
)
from convoy.service.frontend import coalescing
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.call import Call
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.coalescing import Coalescer, PromptMethod, Row, pays
from convoy.service.frontend.engine_client import EngineClient
from convoy.service.frontend.transport.interface import Received
from convoy.service.ipc.channel import Answer, Failure, Times
from convoy.service.repository import Table, Version
from tests.service.frontend.test_engine_client import Engine

ROW = Version(model="letters", version=1, state="READY", batched=True, batch_size=4, row_seconds=1e-6)
OTHER = Version(model="others", version=1, state="READY", batched=True, batch_size=4, row_seconds=1e-6)
VERSIONS = {b"l": ROW, b"o": OTHER}


class Plain:
    """A parser of bytes."""

    def parse(self, data: bytes) -> tuple[bytes, dict[int, memoryview]]:
        return data, {}


class Doubled:
    """A method on four bytes, of which the first names the model. Answers twice their values."""

    def __init__(self) -> None:
        self.crossed = False  # each row gets the answer of its neighbour
        self.learned: list[tuple[int, float]] = []  # rows that were refused, and their deadline

    def row(self, request: bytes, call: Call) -> Row | None:
        if request == b"poor":
            raise BadRequest("it is poor")
        if request == b"lone":
            return None
        call.serves(VERSIONS[request[:1]])
        return Row("kind", [("uint8", (4,))], [(0, 4)], [request], alone=request[3:] == b"!")

    def learn(self, call: Call, rows: int, deadline: float, error: PredictedLate) -> None:
        self.learned.append((rows, deadline))

    def answers(
        self,
        version: Version,
        rows: Sequence[Row],
        seconds: Sequence[Sequence[float]],
        answer: Answer,
        outputs: dict[int, NDArray[Any]],
    ) -> list[bytes | ConvoyError]:
        assert all(total >= 0 and len(each) == 8 for *each, total in seconds)
        values = outputs[0][::-1] if self.crossed else outputs[0]
        return [
            RunFailed("this row failed") if number in answer.failed else values[number].tobytes()
            for number in range(len(rows))
        ]


class Callers:
    """Everything between a transport and an engine, with the engine played by hand."""

    def __init__(self, slot_bytes: int = 1 << 20) -> None:
        self.catalogue = Catalogue(lambda model, version: None)
        self.client = EngineClient(slot_bytes, self.catalogue.update, lambda: None)
        self.gate = Gate(max_requests=100, max_bytes=1 << 20)
        self.method = Doubled()
        coalescer = Coalescer(self.catalogue, self.client)
        parser: Any = Plain()
        self.prompt = PromptMethod("Classify", parser, self.method, self.gate, coalescer)
        self.answers: dict[bytes, bytes | ConvoyError] = {}
        self.engine = Engine(self.client)

    async def ready(self) -> None:
        self.engine.publish(ROW, OTHER)
        await self.engine.take(lambda: self.catalogue.table.versions)

    def send(self, data: bytes, deadline: float = math.inf) -> Callable[[], None] | None:
        def reply(answer: bytes | ConvoyError) -> None:
            assert data not in self.answers, "it was answered twice"
            self.answers[data] = answer

        return self.prompt(Received(data, time.monotonic()), deadline, reply)

    async def sent(self, count: int) -> None:
        await self.engine.take(lambda: len(self.engine.requests) == count)

    async def answered(self, count: int) -> None:
        await self.engine.take(lambda: len(self.answers) == count)


def run(scenario: Callable[[Callers], Coroutine[Any, Any, None]], slot_bytes: int = 1 << 20) -> None:
    """Plays a scenario. Afterwards nobody is inside, and nothing of the memory is in use."""

    async def play() -> None:
        callers = Callers(slot_bytes)
        await callers.ready()
        await scenario(callers)
        for _ in range(20):
            await callers.engine.take(lambda: True)
        assert callers.client.arena.used_bytes == 0
        assert (callers.gate.requests, callers.gate.bytes) == (0, 0)
        assert not callers.catalogue.users(ROW)
        os.close(callers.client.arena.descriptor)

    asyncio.run(asyncio.wait_for(play(), 20))


def doubled(data: bytes) -> bytes:
    return bytes(2 * value % 256 for value in data)


def test_requests_of_one_turn_share_a_request_to_the_engine_and_each_gets_its_own_answer() -> None:
    async def scenario(callers: Callers) -> None:
        sent = [b"l%03d" % number for number in range(3)]
        for data in sent:
            assert callers.send(data) is not None
        await callers.sent(1)
        (request,) = callers.engine.requests
        assert (request.rows, request.apart, request.in_flight) == (3, True, 3)
        callers.engine.answer(request)
        await callers.answered(3)
        assert callers.answers == {data: doubled(data) for data in sent}

    run(scenario)


def test_an_answer_that_reaches_a_neighbour_is_caught() -> None:
    """The control of the test above."""

    async def scenario(callers: Callers) -> None:
        callers.method.crossed = True
        for number in range(3):
            callers.send(b"l%03d" % number)
        await callers.sent(1)
        callers.engine.answer(callers.engine.requests[0])
        await callers.answered(3)
        assert callers.answers[b"l000"] == doubled(b"l002")

    run(scenario)


def test_requests_that_arrive_while_a_group_is_at_the_engine_make_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coalescing, "_LONGEST_WAIT", 60.0)

    async def scenario(callers: Callers) -> None:
        callers.send(b"l001")
        await callers.sent(1)
        for data in (b"l002", b"l003"):
            callers.send(data)
            await callers.engine.take(lambda: True)
        callers.send(b"o001")
        await callers.sent(2)  # the other model waits for nothing
        callers.engine.answer(callers.engine.requests[0])
        await callers.sent(3)
        assert [(one.model, one.rows) for one in callers.engine.requests] == [
            ("letters", 1),
            ("others", 1),
            ("letters", 2),
        ]
        for request in callers.engine.requests[1:]:
            callers.engine.answer(request)
        await callers.answered(4)

    run(scenario)


def test_a_group_of_a_whole_batch_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescing, "_LONGEST_WAIT", 60.0)

    async def scenario(callers: Callers) -> None:
        callers.send(b"l000")
        await callers.sent(1)
        for number in range(1, 5):
            callers.send(b"l%03d" % number)
        await callers.sent(2)
        assert [one.rows for one in callers.engine.requests] == [1, 4]
        for request in callers.engine.requests:
            callers.engine.answer(request)
        await callers.answered(5)

    run(scenario)


def test_a_busy_engine_holds_nobody_back() -> None:
    async def scenario(callers: Callers) -> None:
        callers.send(b"l001")
        await callers.sent(1)
        callers.send(b"l002")
        await callers.sent(2)  # without an answer to the first
        assert [request.rows for request in callers.engine.requests] == [1, 1]
        for request in callers.engine.requests:
            callers.engine.answer(request)
        await callers.answered(2)

    run(scenario)


def test_a_group_that_everybody_leaves_while_it_waits_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescing, "_LONGEST_WAIT", 60.0)

    async def scenario(callers: Callers) -> None:
        callers.send(b"l001")
        await callers.sent(1)
        leave = callers.send(b"l002")
        assert leave is not None
        leave()
        callers.engine.answer(callers.engine.requests[0])
        await callers.answered(1)
        callers.send(b"l003")
        await callers.sent(2)
        assert [request.rows for request in callers.engine.requests] == [1, 1]
        callers.engine.answer(callers.engine.requests[1])
        await callers.answered(2)

    run(scenario)


def test_group_that_gathers_keeps_its_version_from_being_released() -> None:
    async def scenario(callers: Callers) -> None:
        callers.send(b"l001")
        assert callers.catalogue.users(ROW) == 1
        await callers.sent(1)
        assert callers.catalogue.users(ROW) == 1
        callers.engine.answer(callers.engine.requests[0])
        await callers.answered(1)

    run(scenario)


def test_no_more_travel_together_than_fill_a_batch_and_no_two_models() -> None:
    async def scenario(callers: Callers) -> None:
        for number in range(6):
            callers.send(b"l%03d" % number)
        callers.send(b"o000")
        await callers.sent(3)
        found = sorted((one.model, one.rows) for one in callers.engine.requests)
        assert found == [("letters", 2), ("letters", 4), ("others", 1)]
        for request in callers.engine.requests:
            callers.engine.answer(request)
        await callers.answered(7)

    run(scenario)


@pytest.mark.parametrize("data", [b"lone", b"l" + bytes(1 << 16)])
def test_what_cannot_join_is_left_to_a_task(data: bytes) -> None:
    async def scenario(callers: Callers) -> None:
        assert callers.send(data) is None
        assert not callers.answers

    run(scenario)


def test_wrong_request_is_refused_at_once() -> None:
    async def scenario(callers: Callers) -> None:
        assert callers.send(b"poor") is not None
        assert isinstance(callers.answers[b"poor"], BadRequest)

    run(scenario)


def test_unforeseen_fault_of_a_request_ends_it_alone() -> None:
    async def scenario(callers: Callers) -> None:
        assert callers.send(b"xxxx") is not None  # a KeyError: there is no such model
        answer = callers.answers[b"xxxx"]
        assert isinstance(answer, ConvoyError)
        assert answer.message == "internal error"

    run(scenario)


def test_only_versions_whose_rows_cost_less_than_their_bookkeeping_travel_together() -> None:
    def version(row_seconds: float | None, batched: bool = True) -> Version:
        return Version(model="m", version=1, state="READY", batched=batched, row_seconds=row_seconds)

    assert pays(version(coalescing._BOOKKEEPING / 2))
    assert not pays(version(coalescing._BOOKKEEPING))
    assert not pays(version(None))
    assert not pays(version(0.0, batched=False))


def test_caller_who_leaves_in_the_same_turn_is_not_sent() -> None:
    async def scenario(callers: Callers) -> None:
        leave = callers.send(b"l001")
        callers.send(b"l002")
        assert leave is not None
        leave()
        leave()  # a second time does nothing
        await callers.sent(1)
        assert callers.engine.requests[0].rows == 1
        callers.engine.answer(callers.engine.requests[0])
        await callers.answered(1)
        assert callers.answers == {b"l002": doubled(b"l002")}

    run(scenario)


def test_group_that_everybody_has_left_is_not_sent() -> None:
    async def scenario(callers: Callers) -> None:
        for leave in [callers.send(b"l%03d" % number) for number in range(3)]:
            assert leave is not None
            leave()
        await callers.engine.take(lambda: True)
        assert not callers.engine.requests

    run(scenario)


def test_caller_who_leaves_later_leaves_the_others_alone() -> None:
    async def scenario(callers: Callers) -> None:
        leaves = [callers.send(b"l%03d" % number) for number in range(3)]
        await callers.sent(1)
        assert leaves[1] is not None
        leaves[1]()
        assert not callers.engine.cancels
        callers.engine.answer(callers.engine.requests[0])
        await callers.answered(2)
        assert sorted(callers.answers) == [b"l000", b"l002"]

    run(scenario)


def test_last_caller_who_leaves_cancels_the_request() -> None:
    async def scenario(callers: Callers) -> None:
        leaves = [callers.send(b"l%03d" % number) for number in range(2)]
        await callers.sent(1)
        for leave in leaves:
            assert leave is not None
            leave()
        await callers.engine.take(lambda: callers.engine.cancels)
        assert callers.client.arena.used_bytes  # the engine may still read it
        callers.engine.channel.send([Failure(callers.engine.cancels[0], RunFailed("dropped"))])
        await callers.engine.take(lambda: not callers.client.arena.used_bytes)
        assert not callers.answers

    run(scenario)


def test_the_earliest_deadline_counts_for_all() -> None:
    async def scenario(callers: Callers) -> None:
        now = time.monotonic()
        callers.send(b"l001", now + 9)
        callers.send(b"l002", now + 5)
        callers.send(b"l003")
        await callers.sent(1)
        assert now + 4 < callers.engine.requests[0].deadline <= now + 5
        callers.engine.answer(callers.engine.requests[0])
        await callers.answered(3)

    run(scenario)


@pytest.mark.parametrize("error", [DeadlinePassed("late"), PredictedLate("late", retry_after=1.0)])
def test_request_that_a_neighbour_made_late_is_sent_alone(error: ConvoyError) -> None:
    async def scenario(callers: Callers) -> None:
        callers.send(b"l001", time.monotonic() + 5)
        callers.send(b"l002")
        await callers.sent(1)
        callers.engine.channel.send([Failure(callers.engine.requests[0].id, error)])
        await callers.sent(2)
        assert isinstance(callers.answers[b"l001"], type(error))
        assert (callers.engine.requests[1].rows, callers.engine.requests[1].deadline) == (1, math.inf)
        callers.engine.answer(callers.engine.requests[1])
        await callers.answered(2)
        assert callers.answers[b"l002"] == doubled(b"l002")

    run(scenario)


def test_deadlines_that_are_as_early_are_refused_together() -> None:
    """Under overload, a refusal must not cost more than a request."""

    async def scenario(callers: Callers) -> None:
        now = time.monotonic()
        for number in range(3):
            callers.send(b"l%03d" % number, now + 5 + 0.0005 * number)
        await callers.sent(1)
        callers.engine.channel.send([Failure(callers.engine.requests[0].id, PredictedLate("late", retry_after=0.1))])
        await callers.answered(3)
        assert len(callers.engine.requests) == 1
        assert all(isinstance(answer, PredictedLate) for answer in callers.answers.values())

    run(scenario)


def test_full_queue_of_the_engine_is_full_for_each() -> None:
    async def scenario(callers: Callers) -> None:
        callers.send(b"l001", time.monotonic() + 5)
        callers.send(b"l002")
        await callers.sent(1)
        callers.engine.channel.send([Failure(callers.engine.requests[0].id, QueueFull("full", retry_after=1.0))])
        await callers.answered(2)
        assert len(callers.engine.requests) == 1
        assert all(isinstance(answer, QueueFull) for answer in callers.answers.values())

    run(scenario)


def test_refusal_that_a_neighbour_caused_who_has_left_since_is_nobodys() -> None:
    async def scenario(callers: Callers) -> None:
        leave = callers.send(b"l001", time.monotonic() + 5)
        callers.send(b"l002")
        await callers.sent(1)
        assert leave is not None
        leave()
        callers.engine.channel.send([Failure(callers.engine.requests[0].id, DeadlinePassed("late"))])
        await callers.sent(2)
        assert (callers.engine.requests[1].rows, callers.engine.requests[1].deadline) == (1, math.inf)
        callers.engine.answer(callers.engine.requests[1])
        await callers.answered(1)
        assert callers.answers == {b"l002": doubled(b"l002")}

    run(scenario)


def test_caller_who_leaves_while_it_is_sent_alone_cancels_that() -> None:
    async def scenario(callers: Callers) -> None:
        callers.send(b"l001", time.monotonic() + 5)
        leave = callers.send(b"l002")
        await callers.sent(1)
        callers.engine.channel.send([Failure(callers.engine.requests[0].id, DeadlinePassed("late"))])
        await callers.sent(2)
        assert leave is not None
        leave()
        alone = callers.engine.requests[1].id
        await callers.engine.take(lambda: callers.engine.cancels == [alone])
        callers.engine.channel.send([Failure(alone, RunFailed("dropped"))])
        await callers.answered(1)

    run(scenario)


def test_row_that_fails_fails_alone() -> None:
    async def scenario(callers: Callers) -> None:
        for number in range(3):
            callers.send(b"l%03d" % number)
        await callers.sent(1)
        (request,) = callers.engine.requests
        assert callers.engine.memory is not None
        values = callers.engine.memory.array(request.inputs[0])
        room = request.outputs[0]._replace(dtype="uint8", shape=values.shape)
        callers.engine.memory.array(room)[...] = values * 2
        callers.engine.channel.send([Answer(request.id, 1, Times(1, 2, 3, 4), (room,), failed=(1,))])
        await callers.answered(3)
        assert isinstance(callers.answers.pop(b"l001"), RunFailed)
        assert callers.answers == {data: doubled(data) for data in (b"l000", b"l002")}

    run(scenario)


def test_failed_run_is_everybodys_and_an_unforeseen_fault_tells_no_secrets() -> None:
    async def scenario(callers: Callers) -> None:
        for number in range(2):
            callers.send(b"l%03d" % number)
        await callers.sent(1)
        callers.engine.channel.send([Failure(callers.engine.requests[0].id, RunFailed("failed"))])
        await callers.answered(2)
        assert all(isinstance(answer, RunFailed) for answer in callers.answers.values())
        callers.method.answers = lambda *arguments: 1 / 0  # type: ignore[method-assign]
        callers.send(b"l003")
        await callers.sent(2)
        callers.engine.answer(callers.engine.requests[1])
        await callers.answered(3)
        last = callers.answers[b"l003"]
        assert isinstance(last, ConvoyError)
        assert last.message == "internal error"

    run(scenario)


def test_group_for_which_there_is_no_memory_is_tried_one_by_one() -> None:
    async def scenario(callers: Callers) -> None:
        held = callers.client.claim([("uint8", (64,))], [])
        for number in range(17):  # 17 rows of 4 bytes are more than a cache line, and so are their outputs
            callers.send(b"l%03d" % number)
        held.release()
        await callers.engine.take(lambda: sum(one.rows for one in callers.engine.requests) + len(callers.answers) == 17)
        for request in callers.engine.requests:
            callers.engine.answer(request)
        await callers.answered(17)
        assert any(isinstance(answer, bytes) for answer in callers.answers.values())
        assert all(isinstance(answer, bytes | QueueFull) for answer in callers.answers.values())

    run(scenario, slot_bytes=256)


def test_closed_gate_refuses_at_once() -> None:
    async def scenario(callers: Callers) -> None:
        callers.gate.close()
        assert callers.send(b"l001") is not None
        assert isinstance(callers.answers[b"l001"], ModelUnavailable)

    run(scenario)


def test_each_request_is_counted_once_whatever_its_end() -> None:
    def counted(code: str) -> float:
        labels = {"model": "letters", "version": "1", "method": "Classify", "code": code}
        return REGISTRY.get_sample_value("convoy_request_duration_seconds_count", labels) or 0.0

    def images() -> float:
        return REGISTRY.get_sample_value("convoy_images_total", {"model": "letters", "version": "1"}) or 0.0

    async def scenario(callers: Callers) -> None:
        leave = callers.send(b"l000")
        for number in range(1, 4):
            callers.send(b"l%03d" % number)
        await callers.sent(1)
        assert leave is not None
        leave()
        callers.engine.answer(callers.engine.requests[0])
        await callers.answered(3)
        callers.send(b"l005")
        await callers.sent(2)
        callers.engine.channel.send([Failure(callers.engine.requests[1].id, RunFailed("failed"))])
        await callers.answered(4)

    codes = ("OK", "CANCELLED", "INTERNAL")
    before, answered = [counted(code) for code in codes], images()
    run(scenario)
    assert [counted(code) - was for code, was in zip(codes, before, strict=True)] == [3, 1, 1]
    assert images() - answered == 3


def test_table_without_the_model_makes_requests_wait_as_any_other() -> None:
    async def scenario(callers: Callers) -> None:
        callers.engine.die()
        successor = Engine(callers.client)
        callers.send(b"l001")
        callers.send(b"l002")
        await successor.take(lambda: successor.memory)
        assert not successor.requests
        successor.publish(*Table((ROW,), True).versions)
        await successor.take(lambda: successor.requests)
        assert successor.requests[0].rows == 2
        successor.answer(successor.requests[0])
        await successor.take(lambda: len(callers.answers) == 2)
        callers.engine = successor

    run(scenario)


def test_rows_that_go_alone_share_nothing_and_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescing, "_LONGEST_WAIT", 60.0)

    async def scenario(callers: Callers) -> None:
        for data in (b"l001", b"l01!", b"l02!", b"l002"):
            callers.send(data)
        await callers.sent(3)
        assert sorted(request.rows for request in callers.engine.requests) == [1, 1, 2]
        for request in callers.engine.requests:
            callers.engine.answer(request)
        await callers.answered(4)
        assert callers.answers == {data: doubled(data) for data in callers.answers}

    run(scenario)


def test_method_learns_what_the_engine_refuses() -> None:
    async def scenario(callers: Callers) -> None:
        late = time.monotonic() + 30
        callers.send(b"l01!", late)
        await callers.sent(1)
        refused = PredictedLate("it would be late", retry_after=1.0)
        callers.engine.channel.send([Failure(callers.engine.requests[0].id, refused)])
        await callers.answered(1)
        assert callers.method.learned == [(1, late)]
        assert isinstance(callers.answers[b"l01!"], PredictedLate)

    run(scenario)
