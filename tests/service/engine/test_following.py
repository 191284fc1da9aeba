"""The engine follows the repository: by a watch where there can be one, else by polling."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from convoy.service.config import load
from convoy.service.engine import following
from convoy.service.engine.server import Engine
from convoy.service.repository import Table
from convoy.service.sources import Source
from tests.service import networks


class NoInstanceLeft(RuntimeError):
    """As watchfiles raises it: no OSError."""


def follow(root: Path, until: str, swap: Callable[[], object] | None = None) -> None:
    """Serve as an engine does, until the model `until` is ready; `swap` happens when any other is."""

    async def run() -> None:
        engine = Engine(Source(root), load(None, []))
        ready = asyncio.Queue[set[str]]()

        def publish(table: Table) -> None:
            names = {row.model for row in table.versions if row.state == "READY"}
            engine._loop.call_soon_threadsafe(ready.put_nowait, names)

        engine._loader._reporter._publish = publish
        serving = asyncio.ensure_future(following.follow(Source(root), engine.refresh, poll_seconds=0.1))
        swapped = swap is None
        while until not in (names := await asyncio.wait_for(ready.get(), 20)):
            if names and not swapped:
                assert swap is not None
                await asyncio.to_thread(swap)
                swapped = True
        serving.cancel()
        await asyncio.wait([serving])

    asyncio.run(run())


@pytest.mark.parametrize("error", [NoInstanceLeft("Too many open files (os error 24)"), OSError(24, "Too many files")])
def test_without_a_watch_the_repository_is_polled_and_that_is_told_once(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0

    async def refused(*_: object, **__: object) -> AsyncGenerator[set[object]]:
        nonlocal tries
        tries += 1
        if tries == 3:
            networks.save(networks.doubler(), tmp_path, "late", 1)
        if tries:
            raise error
        yield set()

    monkeypatch.setattr(following, "awatch", refused)
    follow(tmp_path, "late")
    told = [record.message for record in caplog.records if "cannot be watched" in record.message]
    assert len(told) == 1
    assert "Too many" in told[0]


def test_what_a_swapped_link_leads_to_is_found(tmp_path: Path) -> None:
    for name in ("old", "new"):
        networks.save(networks.doubler(), tmp_path / name, name, 1)
    link, swapped = tmp_path / "current", tmp_path / "swapped"
    link.symlink_to("old")
    swapped.symlink_to("new")
    follow(link, "new", lambda: swapped.rename(link))
