"""A front end's side of the engine, against an engine that is played by hand."""

import asyncio
import math
import os
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convoy.service.errors import EngineDied, ModelUnavailable, RunFailed
from convoy.service.frontend import engine_client as links
from convoy.service.frontend import routing
from convoy.service.frontend.admission import WayBack
from convoy.service.frontend.engine_client import EngineClient
from convoy.service.frontend.suspects import Guilty
from convoy.service.ipc.channel import (
    Answer,
    Cancel,
    Channel,
    Failure,
    Hello,
    Record,
    Release,
    Request,
    TableFile,
    Times,
)
from convoy.service.ipc.slots import SharedMemory, memory_file
from convoy.service.repository import Table, Version, encode_table
from convoy.service.supervisor.processes import channel_pair

ROW = Version(model="letters", version=1, state="READY")
SHAPE = (1, 4)


class Engine:
    """The other end of a link: takes what it is sent, answers when it is told to."""

    def __init__(self, link: EngineClient, device: int = 0, *, from_outside: bool = False) -> None:
        ours, theirs = channel_pair()
        self.channel = Channel(ours)
        self.memory: SharedMemory | None = None
        self.requests: list[Request] = []
        self.cancels: list[int] = []
        self.releases: list[tuple[str, int]] = []
        link.attach(theirs, device, from_outside=from_outside)

    async def take(self, until: Callable[[], object]) -> None:
        """Read until something holds."""
        for _ in range(1000):
            await asyncio.sleep(0)
            while packet := self.channel.receive():
                records, descriptors = packet
                for record in records:
                    self._take(record, descriptors)
            if until():
                return
        raise AssertionError("the front end did not send it")

    def _take(self, record: Record, descriptors: list[int]) -> None:
        match record:
            case Hello(arena_bytes=nbytes):
                descriptor = descriptors.pop(0)
                self.memory = SharedMemory(descriptor, nbytes)
                os.close(descriptor)
            case Request():
                self.requests.append(record)
            case Cancel(id=id_):
                self.cancels.append(id_)
            case Release(model=model, version=version):
                self.releases.append((model, version))

    def publish(self, *rows: Version, complete: bool = True) -> None:
        data = encode_table(Table(rows, complete))
        descriptor = memory_file(len(data))
        os.pwrite(descriptor, data, 0)
        self.channel.send([TableFile(len(data))], [descriptor])
        os.close(descriptor)

    def answer(self, request: Request) -> None:
        """Twice the input."""
        assert self.memory is not None
        values = self.memory.array(request.inputs[0])
        room = request.outputs[0]._replace(dtype=values.dtype.name, shape=values.shape)
        self.memory.array(room)[...] = values * 2
        self.channel.send([Answer(request.id, 1, Times(1, 2, 3, 4), (room,))])

    def begin(self, *requests: Request, row: int = 0) -> None:
        """Mark that they run, as an engine does."""
        assert self.memory is not None
        for request in requests:
            self.memory.marks[request.mark] = 1 + row

    def die(self) -> None:
        self.channel.close()


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def ask(link: EngineClient, value: int) -> list[int]:
    with link.claim([("uint8", SHAPE)], [(0, 4)]) as slot:
        slot.inputs[0][...] = value
        _, outputs = await slot.run(ROW, rows=1, in_flight=1, deadline=math.inf)
        return [int(number) for number in outputs[0].reshape(-1)]


def run(
    scenario: Callable[[EngineClient], Coroutine[Any, Any, None]],
    devices: Sequence[int] = (0,),
    on_table: Callable[[Table], None] = lambda table: None,
) -> None:
    """Play a scenario; afterwards nothing of the slots' memory is in use."""

    async def play() -> None:
        link = EngineClient(1 << 20, on_table, lambda: None, devices=devices)
        await scenario(link)
        await asyncio.sleep(0)
        assert link.arena.used_bytes == 0
        os.close(link.arena.descriptor)

    asyncio.run(asyncio.wait_for(play(), 20))


def test_an_answer_reaches_the_one_who_asked() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)
        asked = [asyncio.ensure_future(ask(link, value)) for value in (3, 5)]
        await engine.take(lambda: len(engine.requests) == 2)
        for request in reversed(engine.requests):
            engine.answer(request)
        assert await asyncio.gather(*asked) == [[6] * 4, [10] * 4]

    run(scenario)


def test_answer_that_is_not_in_the_slot_is_no_answer() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)

        async def wide(value: int) -> int:
            with link.claim([("uint8", (1, 16))], [(0, 16)]) as slot:
                slot.inputs[0][...] = value
                _, outputs = await slot.run(ROW, rows=1, in_flight=1, deadline=math.inf)
                return int(outputs[0].max())

        for value in range(1, 4):  # each finds the answer of the one before in its slot
            asked = asyncio.ensure_future(wide(value))
            await engine.take(lambda value=value: len(engine.requests) == value)
            request = engine.requests[-1]
            if value == 2:
                engine.channel.send([Answer(request.id, 1, Times(1, 2, 3, 4), request.outputs)])
                with pytest.raises(RunFailed, match="not passed on"):
                    await asked
            else:
                engine.answer(request)
                assert await asked == 2 * value

    run(scenario)


def test_time_from_the_engines_end_to_the_release_is_learnt_of_requests_with_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: 10.0))
    learnt: list[float] = []

    async def scenario(link: EngineClient) -> None:
        monkeypatch.setattr(link.way_back, "learn", learnt.append)
        engine = Engine(link)
        engine.publish(ROW)
        asked = asyncio.ensure_future(ask(link, 3))
        await engine.take(lambda: engine.requests)
        engine.answer(engine.requests[0])  # which it had finished at 4 s
        await asked
        assert learnt == [6.0]
        with link.claim([("uint8", SHAPE)], [(0, 4)]):
            pass
        assert learnt == [6.0]

    run(scenario)


@pytest.mark.parametrize("height", [0, 1])
def test_rows_fail_apart_where_they_are_images(height: int) -> None:
    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)
        with link.claim([("uint8", SHAPE)], [(0, 4)]) as slot:
            slot.placement = slot.placement._replace(height=height)
            asked = slot.begin(ROW, rows=1, in_flight=1, deadline=math.inf)
            await engine.take(lambda: engine.requests)
            assert engine.requests[0].apart == (height > 0)
            engine.answer(engine.requests[0])
            await asked

    run(scenario)


@pytest.mark.parametrize(
    ("failed", "skipped", "errors"),
    [((0,), (1,), [RunFailed, EngineDied]), ((0, 1), (), [RunFailed] * 2), ((), (0, 1), [EngineDied] * 2)],
)
def test_rows_without_outputs_need_none_in_the_slot(
    failed: tuple[int, ...], skipped: tuple[int, ...], errors: list[type[Exception]]
) -> None:
    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)
        with link.claim([("uint8", (2, 16))], [(0, 32)]) as slot:
            asked = slot.begin(ROW, rows=2, in_flight=1, deadline=math.inf)
            await engine.take(lambda: engine.requests)
            request = engine.requests[0]
            engine.channel.send([Answer(request.id, 2, Times(1, 2, 3, 4), request.outputs, failed, skipped)])
            answer, _ = await asked
            assert [type(answer.errors()[row]) for row in range(2)] == errors

    run(scenario)


def test_memory_that_is_claimed_or_freed_has_changed() -> None:
    async def main() -> None:
        changes: list[int] = []
        link = EngineClient(
            1 << 16, lambda table: None, lambda: None, changed=lambda: changes.append(link.arena.blocks)
        )
        with link.claim([("uint8", SHAPE)], [(0, 4)]):
            assert changes == [1]
        assert changes == [1, 0]

    asyncio.run(main())


def test_loss_of_an_engine_is_told_once() -> None:
    async def main() -> None:
        losses: list[int] = []
        link = EngineClient(1 << 16, lambda table: None, lambda: losses.append(len(link.engines.lost)))
        Engine(link).die()
        await until(lambda: bool(losses))
        await asyncio.sleep(0.01)
        assert losses == [1]

    asyncio.run(main())


def test_nothing_is_sent_before_the_engine_has_the_version() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        asked = asyncio.ensure_future(ask(link, 1))
        await engine.take(lambda: engine.memory)
        for _ in range(10):
            await asyncio.sleep(0)
        await engine.take(lambda: True)
        assert not engine.requests
        engine.publish(ROW, complete=False)
        await engine.take(lambda: engine.requests)
        engine.answer(engine.requests[0])
        assert await asked == [2] * 4

    run(scenario)


def test_the_next_engine_gets_what_the_dead_one_had_with_the_same_input() -> None:
    async def scenario(link: EngineClient) -> None:
        first = Engine(link)
        first.publish(ROW)
        asked = asyncio.ensure_future(ask(link, 7))
        await first.take(lambda: first.requests)
        first.die()
        second = Engine(link)
        await second.take(lambda: second.memory)
        second.publish(ROW)
        await second.take(lambda: second.requests)
        assert second.requests[0].id == first.requests[0].id
        second.answer(second.requests[0])
        assert await asked == [14] * 4

    run(scenario)


def test_an_engine_whose_end_is_noticed_after_the_next_one_came_does_not_take_it_away() -> None:
    async def scenario(link: EngineClient) -> None:
        first = Engine(link)
        second = Engine(link)
        first.die()
        await second.take(lambda: second.memory)
        assert link.engines.connected

    run(scenario)


async def fresh(link: EngineClient, count: int, *, from_outside: bool = False, device: int = 0) -> Engine:
    """Another engine, once it has so many requests."""
    engine = Engine(link, device, from_outside=from_outside)
    engine.publish(ROW)
    await engine.take(lambda: len(engine.requests) == count)
    return engine


async def kill_two(link: EngineClient) -> None:
    """Two engines, one after the other, die of the only request."""
    for _ in range(2):
        engine = await fresh(link, 1)
        engine.begin(*engine.requests)
        engine.die()


def test_what_ends_an_engine_runs_alone_on_the_next_and_is_given_up_where_it_ends_that_too() -> None:
    async def scenario(link: EngineClient) -> None:
        asked = asyncio.ensure_future(ask(link, 7))
        for alone in (False, True):
            engine = await fresh(link, 1)
            assert engine.requests[0].alone == alone
            engine.begin(*engine.requests)
            engine.die()
        await fresh(link, 0)
        with pytest.raises(EngineDied, match="the engine died on this input"):
            await asked

    run(scenario)


def test_suspect_that_an_engine_has_answered_is_none_any_more() -> None:
    async def scenario(link: EngineClient) -> None:
        asked = asyncio.ensure_future(ask(link, 7))
        engine = await fresh(link, 1)
        engine.begin(*engine.requests)
        engine.die()
        engine = await fresh(link, 1)
        assert engine.requests[0].alone
        engine.answer(engine.requests[0])
        assert await asked == [14] * 4
        asked = asyncio.ensure_future(ask(link, 7))
        await engine.take(lambda: len(engine.requests) == 2)
        assert not engine.requests[1].alone
        engine.answer(engine.requests[1])
        await asked

    run(scenario)


def test_what_an_engine_has_answered_is_learnt_with_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[tuple[int, int]] = []

    async def scenario(link: EngineClient) -> None:
        monkeypatch.setattr(
            link.engines, "learn", lambda engine, request, nbytes, answer: learnt.append((request.id, answer.id))
        )
        asked = asyncio.ensure_future(ask(link, 7))
        engine = await fresh(link, 1)
        engine.answer(engine.requests[0])
        await asked
        assert learnt == [(engine.requests[0].id,) * 2]

    run(scenario)


def test_tables_that_were_read_leave_no_descriptor_open() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)
        await until(lambda: link.engines.table().versions)
        before = descriptors()
        for version in range(2, 12):
            row = Version(model="letters", version=version, state="READY")
            engine.publish(row)
            await until(lambda row=row: link.engines.table().versions == (row,))
        assert descriptors() <= before

    run(scenario)


def test_what_waits_in_engines_that_die_is_not_charged_however_often() -> None:
    async def scenario(link: EngineClient) -> None:
        asked = asyncio.ensure_future(ask(link, 7))
        for _ in range(10):
            engine = await fresh(link, 1)
            assert not engine.requests[0].alone
            engine.die()
        engine = await fresh(link, 1)
        engine.answer(engine.requests[0])
        assert await asked == [14] * 4

    run(scenario)


def test_of_a_batch_that_ends_an_engine_only_the_guilty_request_fails() -> None:
    async def scenario(link: EngineClient) -> None:
        asked = [asyncio.ensure_future(ask(link, value)) for value in range(1, 9)]
        first = await fresh(link, 8)
        waiting, batch = first.requests[:3], first.requests[3:]
        first.begin(*batch)
        first.die()
        second = await fresh(link, 3)
        assert [request.id for request in second.requests] == [request.id for request in waiting]  # they go first
        for request in waiting:
            second.answer(request)
        await second.take(lambda: len(second.requests) == 8)
        suspects = second.requests[3:]
        assert {request.id for request in suspects} == {request.id for request in batch}
        assert all(request.alone for request in suspects)
        second.answer(suspects[0])
        await until(lambda: any(each.done() for each in asked[3:]))
        second.begin(suspects[1])
        second.die()
        third = await fresh(link, 3)
        for request in third.requests:
            third.answer(request)
        results = await asyncio.gather(*asked, return_exceptions=True)
        guilty = next(place for place, request in enumerate(first.requests) if request.id == suspects[1].id)
        assert isinstance(results.pop(guilty), EngineDied)
        assert results == [[2 * value] * 4 for value in range(1, 9) if value != guilty + 1]

    run(scenario)


def test_engine_that_others_kill_charges_nobody() -> None:
    """Also a request that ran alone at that moment. Twice is too often to be a coincidence."""

    async def scenario(link: EngineClient, kills: int) -> None:
        asked = asyncio.ensure_future(ask(link, 7))
        engine = await fresh(link, 1)
        for _ in range(1 + kills):
            engine.begin(*engine.requests)
            engine.die()
            engine = Engine(link, from_outside=True)
            engine.publish(ROW)
            await engine.take(lambda engine=engine: engine.requests or asked.done())
        if kills == 1:
            engine.answer(engine.requests[0])
            assert await asked == [14] * 4
        else:
            with pytest.raises(EngineDied):
                await asked

    for kills in (1, 2):
        run(partial(scenario, kills=kills))


def test_input_that_ended_engines_is_refused_at_once_and_others_are_not() -> None:
    async def scenario(link: EngineClient) -> None:
        asked = asyncio.ensure_future(ask(link, 7))
        await kill_two(link)
        engine = await fresh(link, 0)
        with pytest.raises(EngineDied):
            await asked
        with pytest.raises(EngineDied):
            await ask(link, 7)
        other = asyncio.ensure_future(ask(link, 8))
        await engine.take(lambda: engine.requests)
        assert not engine.requests[0].alone
        engine.answer(engine.requests[0])
        assert await other == [16] * 4

    run(scenario)


def test_caller_that_goes_early_and_comes_again_cannot_kill_engines_for_ever() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = await fresh(link, 0)
        for alone in (False, True):
            asked = asyncio.ensure_future(ask(link, 7))
            await engine.take(lambda engine=engine: engine.requests)
            assert engine.requests[0].alone == alone
            engine.begin(*engine.requests)
            asked.cancel()
            await engine.take(lambda engine=engine: engine.cancels)
            engine.die()
            engine = await fresh(link, 0)
        with pytest.raises(EngineDied):
            await ask(link, 7)

    run(scenario)


def test_row_of_a_slot_that_ends_engines_is_left_out_and_the_others_are_answered() -> None:
    async def scenario(link: EngineClient) -> None:
        with link.claim([("uint8", (3, 4))], [(0, 12)]) as slot:
            slot.inputs[0][...] = [[1], [2], [3]]
            answer = slot.begin(ROW, rows=3, in_flight=1, deadline=math.inf, apart=True)
            engine = await fresh(link, 1)
            engine.begin(*engine.requests)
            engine.die()
            engine = await fresh(link, 1)
            engine.begin(*engine.requests, row=1)
            engine.die()
            engine = await fresh(link, 1)
            assert engine.requests[0].skip == (1,)
            engine.answer(engine.requests[0])
            _, outputs = await answer
            assert outputs[0].reshape(3, 4)[::2].tolist() == [[2] * 4, [6] * 4]
        asked = asyncio.ensure_future(ask(link, 2))  # the row, as a request of its own
        with pytest.raises(EngineDied):
            await asked

    run(scenario)


def test_a_version_that_the_next_engine_lacks_is_unavailable() -> None:
    async def scenario(link: EngineClient) -> None:
        first = Engine(link)
        first.publish(ROW)
        asked = asyncio.ensure_future(ask(link, 7))
        await first.take(lambda: first.requests)
        first.die()
        second = Engine(link)
        second.publish()
        with pytest.raises(ModelUnavailable, match="no longer served") as refused:
            await asked
        assert refused.value.retry_after == 1.0
        second.die()

    run(scenario)


def test_nobody_is_held_for_ever_where_no_engine_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_RESTART", 0.01)

    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)
        early = asyncio.ensure_future(ask(link, 1))
        await engine.take(lambda: engine.requests)
        engine.die()
        with pytest.raises(ModelUnavailable, match="the engine has not restarted") as refused:
            await early
        assert refused.value.retry_after == 5.0
        with pytest.raises(ModelUnavailable, match="the engine has not restarted"):
            await ask(link, 2)  # that came after the others were given up

    run(scenario)


def test_memory_of_a_caller_that_went_is_kept_until_the_engines_last_word() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)
        asked = asyncio.ensure_future(ask(link, 1))
        await engine.take(lambda: engine.requests)
        asked.cancel()
        await engine.take(lambda: engine.cancels)
        assert link.arena.used_bytes > 0
        engine.channel.send([Failure(engine.cancels[0], RunFailed("let go"))])
        for _ in range(100):
            await asyncio.sleep(0)
            if not link.arena.used_bytes:
                break

    run(scenario)


def test_an_engine_that_dies_frees_the_memory_of_callers_that_went() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)
        asked = asyncio.ensure_future(ask(link, 1))
        await engine.take(lambda: engine.requests)
        asked.cancel()
        await engine.take(lambda: engine.cancels)
        engine.die()
        for _ in range(100):
            await asyncio.sleep(0)
            if not link.arena.used_bytes:
                break

    run(scenario)


def test_a_submit_says_how_many_more_are_being_prepared() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)
        with link.preparing("letters"), link.preparing("letters"), link.preparing("other"):
            asked = asyncio.ensure_future(ask(link, 1))
            await engine.take(lambda: engine.requests)
        assert engine.requests[0].following == 2
        engine.answer(engine.requests[0])
        await asked

    run(scenario)


def test_deadline_leaves_time_for_the_reply() -> None:
    way_back, now = WayBack(), 5.0
    assert way_back.leave(math.inf, now) == math.inf
    assert way_back.leave(now + 0.1, now) == pytest.approx(now + 0.099)
    assert way_back.leave(now + 0.001, now) == pytest.approx(now + 0.0005)  # half of what is left
    assert way_back.leave(now - 1, now) == now - 1


def test_time_for_the_reply_is_what_999_of_1000_replies_take() -> None:
    way_back, generator = WayBack(), random.Random(2)
    above = 0
    for turn in range(80_000):
        seconds = 0.010 * math.exp(generator.gauss(0, 0.3))
        above += turn >= 40_000 and seconds + 0.001 > way_back.bound
        way_back.learn(seconds)
    assert 0.0002 <= above / 40_000 <= 0.003
    for _ in range(20_000):
        way_back.learn(0.0001)
    assert way_back.bound < 0.0013  # and it comes down again


TWO = (0, 1)
BOTH = ROW, Version(model="scenes", version=1, state="READY")


def two(link: EngineClient) -> list[Engine]:
    engines = [Engine(link, device) for device in TWO]
    for engine in engines:
        engine.publish(ROW)
    return engines


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it does not come to hold")


async def all_requests(engines: Sequence[Engine], count: int) -> None:
    for _ in range(1000):
        for engine in engines:
            await engine.take(lambda: True)
        if sum(len(engine.requests) for engine in engines) == count:
            return
    raise AssertionError("the front end did not send it")


def test_two_engines_share_what_comes_and_read_the_same_memory() -> None:
    async def scenario(link: EngineClient) -> None:
        engines = two(link)
        await all_requests(engines, 0)
        asked = [asyncio.ensure_future(ask(link, value)) for value in range(1, 9)]
        await all_requests(engines, 8)
        assert [len(engine.requests) for engine in engines] == [4, 4]
        for engine in engines:
            for request in engine.requests:
                engine.answer(request)
        assert await asyncio.gather(*asked) == [[2 * value] * 4 for value in range(1, 9)]

    run(scenario, TWO)


def test_what_a_dead_engine_had_goes_to_the_other_at_once() -> None:
    async def scenario(link: EngineClient) -> None:
        engines = two(link)
        await all_requests(engines, 0)
        asked = [asyncio.ensure_future(ask(link, value)) for value in range(1, 5)]
        await all_requests(engines, 4)
        engines[0].die()
        await engines[1].take(lambda: len(engines[1].requests) == 4)
        assert link.engines.lost == [0]
        for request in engines[1].requests:
            engines[1].answer(request)
        assert await asyncio.gather(*asked) == [[2 * value] * 4 for value in range(1, 5)]
        third = Engine(link, 0)
        assert link.engines.lost == [0]
        third.publish(ROW)
        await third.take(lambda: not link.engines.lost)

    run(scenario, TWO)


def test_a_request_goes_to_an_engine_that_has_its_version() -> None:
    async def scenario(link: EngineClient) -> None:
        engines = [Engine(link, device) for device in TWO]
        engines[0].publish(complete=False)
        engines[1].publish(ROW)
        await all_requests(engines, 0)
        asked = [asyncio.ensure_future(ask(link, 1)) for _ in range(3)]
        await engines[1].take(lambda: len(engines[1].requests) == 3)
        for request in engines[1].requests:
            engines[1].answer(request)
        await asyncio.gather(*asked)

    run(scenario, TWO)


def test_what_only_a_dead_engine_had_waits_for_its_successor() -> None:
    async def scenario(link: EngineClient) -> None:
        engines = [Engine(link, device) for device in TWO]
        engines[0].publish(ROW)
        engines[1].publish()
        await all_requests(engines, 0)
        asked = asyncio.ensure_future(ask(link, 6))
        await engines[0].take(lambda: engines[0].requests)
        engines[0].die()
        await engines[1].take(lambda: link.engines.lost)
        engines[1].publish()  # it has nothing of it still
        await engines[1].take(lambda: True)
        assert not asked.done()
        successor = Engine(link, 0)
        successor.publish(ROW)
        await successor.take(lambda: successor.requests)
        successor.answer(successor.requests[0])
        assert await asked == [12] * 4

    run(scenario, TWO)


def test_what_kills_one_engine_after_the_other_is_given_up() -> None:
    async def scenario(link: EngineClient) -> None:
        engines = dict(zip(TWO, two(link), strict=True))
        await all_requests(list(engines.values()), 0)
        asked = asyncio.ensure_future(ask(link, 7))
        for _ in range(2):
            await all_requests(list(engines.values()), 1)
            device = next(device for device, engine in engines.items() if engine.requests)
            engines[device].begin(*engines[device].requests)
            engines[device].die()
            engines[device] = Engine(link, device)
            engines[device].publish(ROW)
        with pytest.raises(EngineDied):
            await asked

    run(scenario, TWO)


def test_what_ran_in_a_dead_engine_goes_to_the_other_alone_and_does_not_wait_for_a_successor() -> None:
    async def scenario(link: EngineClient) -> None:
        engines = two(link)
        await all_requests(engines, 0)
        asked = [asyncio.ensure_future(ask(link, value)) for value in range(1, 5)]
        await all_requests(engines, 4)
        ran = engines[0].requests[0]
        engines[0].begin(ran)
        engines[0].die()
        await engines[1].take(lambda: len(engines[1].requests) == 3)  # those without blame first
        assert ran.id not in [request.id for request in engines[1].requests]
        for request in engines[1].requests:
            engines[1].answer(request)
        await engines[1].take(lambda: len(engines[1].requests) == 4)
        assert (engines[1].requests[3].id, engines[1].requests[3].alone) == (ran.id, True)
        engines[1].answer(engines[1].requests[3])
        assert await asyncio.gather(*asked) == [[2 * value] * 4 for value in range(1, 5)]

    run(scenario, TWO)


def test_every_engine_is_told_that_a_version_is_released() -> None:
    async def scenario(link: EngineClient) -> None:
        engines = two(link)
        await all_requests(engines, 0)
        link.forget("letters", 1)
        for engine in engines:
            await engine.take(lambda engine=engine: engine.releases == [("letters", 1)])

    run(scenario, TWO)


def test_the_table_is_what_the_engines_have_together_and_stays_while_one_restarts() -> None:
    tables: list[Table] = []

    async def scenario(link: EngineClient) -> None:
        engines = [Engine(link, device) for device in TWO]
        engines[0].publish(ROW)
        await engines[0].take(lambda: tables)
        assert (tables[-1].versions, tables[-1].complete) == ((ROW,), False)  # the other has not looked yet
        engines[1].publish(*BOTH)
        await engines[1].take(lambda: len(tables) == 2)
        assert (tables[-1].versions, tables[-1].complete) == (BOTH, True)
        engines[1].die()
        await engines[0].take(lambda: link.engines.lost)
        successor = Engine(link, 1)
        successor.publish(complete=False)
        await successor.take(lambda: len(tables) == 3)
        assert tables[-1] == tables[-2]
        successor.publish()
        await successor.take(lambda: len(tables) == 4)
        assert (tables[-1].versions, tables[-1].complete) == ((ROW,), True)

    run(scenario, TWO, tables.append)


def test_an_engine_that_does_not_come_back_no_longer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_RESTART", 0.01)
    tables: list[Table] = []

    async def scenario(link: EngineClient) -> None:
        engines = [Engine(link, device) for device in TWO]
        engines[0].publish(ROW)
        engines[1].publish(*BOTH)
        await all_requests(engines, 0)
        engines[1].die()
        await until(lambda: tables[-1].versions == (ROW,))
        assert (tables[-1].versions, tables[-1].complete) == ((ROW,), True)
        assert link.engines.lost == [1]
        successor = Engine(link, 1)
        successor.publish(complete=False)
        successor.publish(*BOTH)
        await successor.take(lambda: not link.engines.lost)
        assert (tables[-1].versions, tables[-1].complete) == (BOTH, True)

    run(scenario, TWO, tables.append)


def test_an_engine_that_never_loads_anything_does_not_keep_the_others_from_serving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "_RESTART", 0.01)
    tables: list[Table] = []

    async def scenario(link: EngineClient) -> None:
        broken, sound = [Engine(link, device) for device in TWO]
        broken.die()
        sound.publish(ROW)
        await sound.take(lambda: tables)
        assert not tables[-1].complete
        await until(lambda: tables[-1].complete)
        assert tables[-1].versions == (ROW,)

    run(scenario, TWO, tables.append)


def test_with_one_engine_nothing_is_chosen_and_nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "choose", None)
    monkeypatch.setattr(routing.Load, "add", None)
    monkeypatch.setattr(routing.Load, "end", None)

    async def scenario(link: EngineClient) -> None:
        engine = Engine(link)
        engine.publish(ROW)
        asked = asyncio.ensure_future(ask(link, 1))
        await engine.take(lambda: engine.requests)
        engine.answer(engine.requests[0])
        await asked

    run(scenario)


def test_request_that_its_caller_cancels_before_it_is_sent_is_not_sent() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = await fresh(link, 0)
        await engine.take(lambda: link.engines.settled)
        asked = asyncio.ensure_future(ask(link, 1))
        with link.claim([("uint8", SHAPE)], [(0, 4)]) as slot:
            slot.bytes_of(0)[:] = bytes([1, 2, 3, 4])
            slot.begin(ROW, rows=1, in_flight=1, deadline=math.inf)
            assert link.arena.blocks == 1
            slot.release()
            slot.release()  # a second time does nothing
            assert link.arena.blocks == 0
        await engine.take(lambda: engine.requests)
        assert len(engine.requests) == 1
        engine.answer(engine.requests[0])
        assert await asked == [2] * 4

    run(scenario)


def test_caller_of_a_suspect_that_goes_while_no_engine_has_it_leaves_the_memory_to_the_next_engine() -> None:
    async def scenario(link: EngineClient) -> None:
        asked = asyncio.ensure_future(ask(link, 7))
        for _ in range(2):
            engine = await fresh(link, 1)
            engine.begin(*engine.requests)
            engine.die()
            await until(lambda: not link.engines.connected)
        asked.cancel()  # it ran alone: how the engine died is not known yet
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert link.arena.blocks == 1
        await fresh(link, 0)
        assert link.arena.blocks == 0

    run(scenario)


def test_suspects_that_have_waited_too_long_are_given_up_and_their_verdict_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "_RESTART", 0.01)
    deadly: list[Request] = []

    async def scenario(link: EngineClient) -> None:
        link._on_deadly = lambda request, guilty: deadly.append(request)
        asked = asyncio.ensure_future(ask(link, 7))
        await kill_two(link)
        with pytest.raises(ModelUnavailable, match="the engine has not restarted"):
            await asked
        await fresh(link, 0)
        assert deadly == []

    run(scenario)


def test_suspect_whose_caller_goes_while_it_is_held_is_not_sent() -> None:
    async def scenario(link: EngineClient) -> None:
        innocent = asyncio.ensure_future(ask(link, 1))
        suspect = asyncio.ensure_future(ask(link, 2))
        first = await fresh(link, 2)
        first.begin(first.requests[1])
        first.die()
        second = await fresh(link, 1)
        suspect.cancel()
        await asyncio.sleep(0)
        second.answer(second.requests[0])
        assert await innocent == [2] * 4
        await second.take(lambda: True)
        assert len(second.requests) == 1

    run(scenario)


def test_input_that_another_front_end_found_deadly_is_refused_here() -> None:
    found: list[Guilty] = []

    async def there(link: EngineClient) -> None:
        link._on_deadly = lambda request, guilty: found.append(guilty)
        asked = asyncio.ensure_future(ask(link, 7))
        await kill_two(link)
        await fresh(link, 0)
        with pytest.raises(EngineDied):
            await asked

    async def here(link: EngineClient) -> None:
        await fresh(link, 0)
        link.refuse(found[0])
        with pytest.raises(EngineDied):
            await ask(link, 7)

    run(there)
    run(here)


def test_answer_that_comes_as_its_caller_cancels_ends_the_request_once() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = await fresh(link, 0)
        asked = asyncio.ensure_future(ask(link, 1))
        await engine.take(lambda: engine.requests)
        engine.answer(engine.requests[0])
        asked.cancel()
        wire = link.engines.by_device[0].wire
        assert wire is not None
        wire._readable()  # before the caller has noticed
        assert link.arena.blocks == 1  # its own: it may still look at the inputs
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert link.arena.blocks == 0
        await engine.take(lambda: True)
        assert engine.cancels == []

    run(scenario)


def test_record_that_engines_do_not_send_is_ignored() -> None:
    async def scenario(link: EngineClient) -> None:
        engine = await fresh(link, 0)
        engine.channel.send([Cancel(1)])
        await engine.take(lambda: True)
        asked = asyncio.ensure_future(ask(link, 1))
        await engine.take(lambda: engine.requests)
        engine.answer(engine.requests[0])
        assert await asked == [2] * 4

    run(scenario)


def test_version_that_is_released_is_not_asked_for_again_and_attempts_are_counted() -> None:
    async def scenario(link: EngineClient) -> None:
        with link.claim([("uint8", SHAPE)], [(0, 4)]) as slot:
            answer = slot.begin(ROW, rows=1, in_flight=1, deadline=math.inf)
            for attempt in (1, 2):
                engine = await fresh(link, 1)
                assert slot.attempts == attempt
                if attempt == 1:
                    engine.die()
            engine.answer(engine.requests[0])
            await answer
        link.forget("letters", 1)
        asked = asyncio.ensure_future(ask(link, 1))
        await engine.take(lambda: engine.releases)
        await engine.take(lambda: True)
        assert len(engine.requests) == 1
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    run(scenario)


def test_requests_that_are_sent_again_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    counter = SimpleNamespace(labels=lambda model: SimpleNamespace(inc=lambda: counted.append(model)))
    monkeypatch.setattr(links.metrics, "RETRIES", counter)

    async def scenario(link: EngineClient) -> None:
        first = Engine(link)
        first.publish(ROW)
        asked = asyncio.ensure_future(ask(link, 3))
        await first.take(lambda: first.requests)
        assert counted == []
        first.die()
        second = Engine(link)
        second.publish(ROW)
        await second.take(lambda: second.requests)
        second.answer(second.requests[0])
        await asked
        assert counted == ["letters"]

    run(scenario)


def test_request_that_is_cancelled_before_it_is_sent_is_no_work_of_an_engine() -> None:
    async def scenario(link: EngineClient) -> None:
        engines = [Engine(link, device) for device in (0, 1)]
        for engine in engines:
            engine.publish(ROW)
        await engines[0].take(lambda: all(each.runnable for each in link.engines.by_device.values()))
        with link.claim([("uint8", SHAPE)], [(0, 4)]) as slot:
            slot.begin(ROW, rows=1, in_flight=1, deadline=math.inf)
            assert sum(each.load.requests for each in link.engines.by_device.values()) == 1
        assert [each.load.requests for each in link.engines.by_device.values()] == [0, 0]
        for engine in engines:
            await engine.take(lambda: True)
            assert not engine.requests

    run(scenario, devices=(0, 1))


def test_each_engine_expects_its_share_of_the_requests_that_are_being_prepared() -> None:
    async def scenario(link: EngineClient) -> None:
        engines = [Engine(link, device) for device in (0, 1)]
        for engine in engines:
            engine.publish(ROW)
        await engines[0].take(lambda: all(each.runnable for each in link.engines.by_device.values()))
        with ExitStack() as others, link.claim([("uint8", SHAPE)], [(0, 4)]) as slot:
            for _ in range(4):
                others.enter_context(link.preparing("letters"))
            asked = slot.begin(ROW, rows=1, in_flight=1, deadline=math.inf)
            for engine in engines:
                await engine.take(lambda: True)
            (engine,) = (each for each in engines if each.requests)
            assert engine.requests[0].following == 2
            engine.answer(engine.requests[0])
            await asked

    run(scenario, devices=(0, 1))
