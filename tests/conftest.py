"""What tests of both packages use: the two networks, trained and exported once."""

import logging
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

# Before torch is loaded. Threads that spin while they wait for each other keep a core from other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A server is three processes or more: each would compile all its modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import HealthCheck, settings

from tests.service.running import Server
from tests.turns import Turns, encodable

CACHE = Path(__file__).parent.parent / ".cache"
_turns = pytest.StashKey[Turns]()


def pytest_configure(config: pytest.Config) -> None:
    # Programs inherit that it is ignored, as a shell starts what runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):  # one of several processes
        config.stash[_turns] = Turns(CACHE / "turns")


# The first of all: time spent waiting for its turn is not the test's.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    turns = item.config.stash.get(_turns, None)
    if turns is None:
        return (yield)
    with turns.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """What a test logged may be text that no encoding takes, which cannot be sent to the process that reports."""
    return encodable((yield))


# On a busy machine an example takes any time.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that uses the trained networks waits for them."""
    for item in items:
        if item.get_closest_marker("trained") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1200))
    items.sort(key=_order(items))


def _order(items: list[pytest.Item]) -> Callable[[pytest.Item], int]:
    """What to run first. One file trains the networks at once, while the other process does something else; the other
    files that use them follow at the end, and find them done."""
    trained = list(dict.fromkeys(item.path for item in items if item.get_closest_marker("trained")))
    places = {path: 2 if number else 0 for number, path in enumerate(trained)}
    return lambda item: places.get(item.path, 1)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """The level of the log that a command sets ends with its test."""
    root = logging.getLogger()
    before = root.level
    yield
    root.setLevel(before)


@pytest.fixture(scope="session", autouse=True)
def caches() -> None:
    """What is noted of pictures from one run to the next stays out of its user's folder."""
    os.environ["XDG_CACHE_HOME"] = str(CACHE / "user")


@pytest.fixture(scope="session")
def trained_repository() -> Path:
    """A model repository with `lenet5` and `unet`, trained as in the demo. A second run of the tests finds it done,
    unless the source that decides on it has changed."""
    from tools import demo

    return demo.prepare(CACHE / "trained")


@pytest.fixture(scope="session")
def server(trained_repository: Path) -> Iterator[Server]:
    """A server with the two trained networks, for tests that leave it as it was."""
    with Server(trained_repository, ["server.lame_duck_seconds=0"]) as server:
        yield server
