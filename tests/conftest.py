"""What tests of both packages use: the two networks, trained and exported once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.running import Server


@pytest.fixture(scope="session", autouse=True)
def caches() -> None:
    """What is noted of pictures from one run to the next stays out of its user's folder."""
    os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".cache" / "user")


@pytest.fixture(scope="session")
def trained_repository() -> Path:
    """A model repository with `lenet5` and `unet`, trained with the defaults. A second run of the tests finds it done,
    unless the source that decides on it has changed."""
    from tools import demo

    return demo.prepare(Path(__file__).parent.parent / ".cache" / "trained")


@pytest.fixture(scope="session")
def server(trained_repository: Path) -> Iterator[Server]:
    """A server with the two trained networks, for tests that leave it as it was."""
    with Server(trained_repository, ["server.lame_duck_seconds=0"]) as server:
        yield server
