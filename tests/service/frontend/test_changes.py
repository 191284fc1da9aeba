"""What a front end confirms to the supervisor, and when."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from convoy.service.frontend import changes
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.changes import Changes
from convoy.service.frontend.regions import Regions
from convoy.service.frontend.tracing import Traces
from convoy.service.ipc import messages
from convoy.service.ipc.messages import Applied, Forget, Shown, Tracing
from convoy.service.repository import State, Table, Version


class FrontEnd:
    """Changes, and what they have told the supervisor."""

    def __init__(self) -> None:
        self.told: list[messages.Message] = []
        self.heard = asyncio.Event()
        self.full = False
        self.catalogue = Catalogue(lambda *_: None)
        self.traces = Traces()
        self.changes = Changes(self._tell, self.catalogue, self.traces, Regions())

    def show(self, *rows: tuple[int, State]) -> None:
        versions = tuple(Version(model="m", version=version, state=state) for version, state in rows)
        self.catalogue.update(Table(versions, complete=True))
        self.changes.table_changed()

    def _tell(self, message: messages.Message, descriptors: object) -> None:
        if self.full:
            raise BlockingIOError
        self.told.append(message)
        self.heard.set()


def on_a_loop(check: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    return lambda: asyncio.run(check())


@on_a_loop
async def test_load_is_confirmed_once_the_table_shows_the_version() -> None:
    one = FrontEnd()
    one.show((1, "READY"))
    one.changes.make(7, Shown("m", 2), ())
    one.show((2, "LOADING"), (1, "READY"))
    assert one.told == []
    one.show((2, "READY"))
    one.show((2, "READY"))
    assert one.told == [Applied(7)]


@on_a_loop
async def test_unload_is_confirmed_once_no_version_serves() -> None:
    one = FrontEnd()
    one.show((2, "READY"), (1, "READY"))
    one.changes.make(7, Shown("m", 0), ())
    one.show((2, "UNAVAILABLE"), (1, "READY"))
    assert one.told == []
    one.show((2, "UNAVAILABLE"))
    assert one.told == [Applied(7)]
    one.changes.make(8, Shown("another", 0), ())
    assert one.told == [Applied(7), Applied(8)]


def test_table_that_does_not_come_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_LONGEST", 0)

    async def check() -> None:
        one = FrontEnd()
        one.changes.make(7, Shown("m", 2), ())
        assert one.told == []
        await one.heard.wait()
        assert one.told == [Applied(7)]

    asyncio.run(asyncio.wait_for(check(), 10))


def test_supervisor_that_does_not_read_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_RETRY", 0)

    async def check() -> None:
        one = FrontEnd()
        one.full = True
        one.changes.make(7, Forget(""), ())
        await asyncio.sleep(0)
        assert one.told == []
        one.full = False
        await one.heard.wait()
        assert one.told == [Applied(7)]

    asyncio.run(asyncio.wait_for(check(), 10))


@on_a_loop
async def test_setting_of_traces_is_made_before_it_is_confirmed() -> None:
    one = FrontEnd()
    one.changes.make(7, Tracing("m", on=True), ())
    assert one.traces.is_on("m")
    assert one.told == [Applied(7)]
