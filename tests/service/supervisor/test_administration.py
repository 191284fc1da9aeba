"""Changes reach every process, those that start later too, and wait for nobody who has ended."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from convoy.service import log
from convoy.service.config import Config, LogLevel
from convoy.service.errors import UnknownModel
from convoy.service.ipc import messages
from convoy.service.ipc.messages import (
    MOST_REGIONS,
    Applied,
    Apply,
    Ask,
    Forget,
    Load,
    Logging,
    Outcome,
    Region,
    Shown,
    Tracing,
    Unload,
)
from convoy.service.supervisor.administration import MOST_REGION_BYTES, Administration
from convoy.service.supervisor.processes import Kind, channel_pair
from tests.service.descriptors import open_descriptors

ASKS = 1  # the front end that asks
SECONDS = 10
UNKNOWN = messages.refusal_of(UnknownModel("model 'm' is not in the repository"))


class Fake:
    """A process that confirms each change as it is told to, and records what it has received."""

    def __init__(self, made: Administration, number: int, kind: Kind, answer: Applied | None) -> None:
        self.changes: list[messages.Change] = []
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self.descriptors: list[int] = []
        self.answer = answer  # None: it is silent
        self.number = number
        self.arrived = asyncio.Event()
        self._administration = made
        self.own, self.other = channel_pair()
        self.own.setblocking(False)
        self.other.setblocking(False)
        made.add(number, kind, self.other)
        messages.listen(self.own, self._receive, lambda: None)
        messages.listen(self.other, lambda *received: made.receive(number, *received), lambda: None)

    def ask(self, change: messages.Change, descriptors: Sequence[int] = ()) -> None:
        messages.send(self.own, Ask(7, change), descriptors)

    def end(self) -> None:
        loop = asyncio.get_running_loop()
        self._administration.remove(self.number)
        for channel in (self.own, self.other):
            loop.remove_reader(channel)
            channel.close()
        for descriptor in self.descriptors:
            os.close(descriptor)

    def _receive(self, message: messages.Message, descriptors: list[int]) -> None:
        self.descriptors += descriptors
        if isinstance(message, Outcome):
            self.outcomes.put_nowait(message)
        elif isinstance(message, Apply):
            self.changes.append(message.change)
            self.arrived.set()
            if self.answer is not None:
                messages.send(self.own, Applied(message.number, self.answer.refusal, self.answer.version))


class Server:
    """Two front ends and two engines."""

    def __init__(self, seconds: float) -> None:
        self.administration = Administration(Config(), seconds)
        made = Applied(0)
        self.front_ends = [Fake(self.administration, number, "frontend", made) for number in (ASKS, 2)]
        self.engines = [Fake(self.administration, number, "engine", Applied(0, version=3)) for number in (3, 4)]

    @property
    def all(self) -> list[Fake]:
        return [*self.front_ends, *self.engines]

    async def outcome(self, change: messages.Change, descriptors: Sequence[int] = ()) -> str:
        """Asks for a change; the message of its refusal, or ""."""
        self.front_ends[0].ask(change, descriptors)
        outcome = await asyncio.wait_for(self.front_ends[0].outcomes.get(), SECONDS)
        assert outcome.number == 7
        return outcome.refusal.message if outcome.refusal else ""


@asynccontextmanager
async def running(seconds: float = SECONDS) -> AsyncIterator[Server]:
    server = Server(seconds)
    try:
        yield server
    finally:
        for each in server.all:
            each.end()


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("memory")
    yield descriptor
    os.close(descriptor)


def test_load_ends_once_engines_serve_and_front_ends_show_it() -> None:
    async def check() -> None:
        async with running() as server:
            assert await server.outcome(Load("m")) == ""
            assert [each.changes for each in server.engines] == [[Load("m")]] * 2
            assert [each.changes for each in server.front_ends] == [[Shown("m", 3)]] * 2

    asyncio.run(check())


def test_unloaded_models_are_known_to_engines_that_start_later() -> None:
    async def check() -> None:
        async with running() as server:
            assert await server.outcome(Unload("m")) == ""
            assert server.administration.unloaded == ("m",)
            assert [each.changes for each in server.front_ends] == [[Shown("m", 0)]] * 2
            assert await server.outcome(Load("m")) == ""
            assert server.administration.unloaded == ()

    asyncio.run(check())


def test_model_that_no_engine_knows_is_not_unloaded() -> None:
    async def check() -> None:
        async with running() as server:
            for engine in server.engines:
                engine.answer = Applied(0, UNKNOWN)
            assert await server.outcome(Unload("m")) == UNKNOWN.message
            assert server.administration.unloaded == ()
            assert [each.changes for each in server.front_ends] == [[], []]

    asyncio.run(check())


def test_load_fails_if_one_engine_refuses_or_ends() -> None:
    async def check() -> None:
        async with running() as server:
            server.engines[1].answer = Applied(0, UNKNOWN)
            assert await server.outcome(Load("m")) == UNKNOWN.message
            server.engines[1].answer = None
            server.engines[1].arrived.clear()
            server.front_ends[0].ask(Load("m"))
            await asyncio.wait_for(server.engines[1].arrived.wait(), SECONDS)
            server.administration.remove(server.engines[1].number)
            outcome = await asyncio.wait_for(server.front_ends[0].outcomes.get(), SECONDS)
            assert outcome.refusal is not None
            assert outcome.refusal.message == "a process ended before it had made the change"

    asyncio.run(check())


def test_unload_does_not_wait_for_an_engine_that_ends() -> None:
    """Its successor starts with the model unloaded."""

    async def check() -> None:
        async with running() as server:
            for engine in server.engines:
                engine.answer = None
            server.front_ends[0].ask(Unload("m"))
            for engine in server.engines:
                await asyncio.wait_for(engine.arrived.wait(), SECONDS)
                server.administration.remove(engine.number)
            outcome = await asyncio.wait_for(server.front_ends[0].outcomes.get(), SECONDS)
            assert outcome.refusal is None
            assert server.administration.unloaded == ("m",)
            assert await server.outcome(Load("m")) == "no engine is running now: the next one is starting"

    asyncio.run(check())


def test_silent_front_end_is_reported() -> None:
    async def check() -> None:
        async with running(seconds=0.3) as server:
            server.front_ends[1].answer = None
            assert "a process does not answer" in await server.outcome(Forget("x"))
            # Nor does one that does not read stop the others.
            asyncio.get_running_loop().remove_reader(server.front_ends[1].own)
            with suppress(BlockingIOError):
                while True:
                    messages.send(server.front_ends[1].other, messages.Drain())
            assert "a process does not answer" in await server.outcome(Forget("x"))
            assert server.front_ends[0].changes == [Forget("x")] * 2

    asyncio.run(check())


def test_regions_and_their_descriptors_reach_front_ends_now_and_later(memory: int) -> None:
    async def check() -> None:
        async with running() as server:
            one = Region("one", "key", 0, 4)
            assert await server.outcome(one, [memory]) == ""
            assert [each.changes for each in server.all] == [[one], [one], [], []]
            assert server.administration.regions == (one,)
            wanted = os.fstat(memory).st_ino
            kept = [*server.administration.descriptors, *(each.descriptors[0] for each in server.front_ends)]
            assert [os.fstat(descriptor).st_ino for descriptor in kept] == [wanted] * 3
            assert "region 'one' is already registered" in await server.outcome(one, [memory])
            assert await server.outcome(Forget("one")) == ""
            assert (server.administration.regions, server.administration.descriptors) == ((), [])
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(kept[0])

    asyncio.run(check())


def test_regions_have_limits_and_refused_ones_keep_no_file_open(memory: int) -> None:
    async def check() -> None:
        async with running() as server:
            before = open_descriptors()
            large = await server.outcome(Region("large", "key", 0, MOST_REGION_BYTES + 1), [memory])
            assert f"want at most {MOST_REGION_BYTES}" in large
            assert open_descriptors() <= before
            for number in range(MOST_REGIONS):
                assert await server.outcome(Region(str(number), "key", 0, 4), [memory]) == ""
            assert "128 regions are registered, want at most 128" in await server.outcome(
                Region("more", "key", 0, 4), [memory]
            )
            # All of them fit into the message that a new front end receives.
            one, other = channel_pair()
            regions, descriptors = server.administration.regions, server.administration.descriptors
            with one, other:
                messages.send(one, start(regions=regions, http=True, port=True), [memory, memory, *descriptors])
                received, copies = messages.receive_start(other)
                assert (received.regions, len(received.given(copies).regions)) == (regions, MOST_REGIONS)
            for copy in copies:
                os.close(copy)
            assert await server.outcome(Forget("")) == ""
            assert server.administration.regions == ()

    asyncio.run(check())


def test_descriptions_of_all_regions_fit_into_one_message() -> None:
    longest = tuple(Region('"' * 128, "k" * 128, 2**62, 2**62) for _ in range(MOST_REGIONS))
    one, other = channel_pair()
    with one, other:
        messages.send(one, start(regions=longest))
        assert messages.receive_start(other)[0].regions == longest


def start(**fields: Any) -> messages.Start:
    places = dict.fromkeys(("repository", "grpc_address", "metrics_directory", "store", "cache"), "x" * 4096)
    return messages.Start(config=Config(), devices=(0,), **{**places, **fields})


def test_level_of_the_log_changes_in_every_process_and_those_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[LogLevel] = []
    monkeypatch.setattr(log, "set_level", levels.append)

    async def check() -> None:
        async with running() as server:
            assert await server.outcome(Logging("debug")) == ""
            assert [each.changes for each in server.all] == [[Logging("debug")]] * 4
            assert levels == ["debug"], "the supervisor's own"
            assert server.administration.configured(Config()).server.log_level == "debug"

    asyncio.run(check())


def test_traces_change_in_front_ends_now_and_later() -> None:
    async def check() -> None:
        async with running() as server:
            setting = Tracing("m", on=True, rate=5)
            assert await server.outcome(setting) == ""
            assert server.administration.tracing == (setting,)
            assert [each.changes for each in server.all] == [[setting], [setting], [], []]
            assert await server.outcome(Tracing("m")) == ""
            assert server.administration.tracing == ()

    asyncio.run(check())
