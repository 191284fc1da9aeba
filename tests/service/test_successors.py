"""Whatever takes the place of a version that serves, no call fails: roll-backs, crashes, spoiled files."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests.service import networks
from tests.service.running import Server
from tests.service.test_overload import _wait_until
from tests.service.test_vision import grey

QUICK = ("server.lame_duck_seconds=0", "repository.poll_seconds=0.2")


@contextmanager
def calling(server: Server, model: str = "letters") -> Iterator[list[int]]:
    """Calls a model all the time, from two callers; yields the versions that answered. Fails if a call fails."""
    over = threading.Event()
    versions: list[int] = []
    failures: list[ServerError] = []

    def call() -> None:
        with Client(server.grpc) as client:
            while not over.is_set():
                try:
                    versions.append(client.classify(grey(1), model).version)
                except ServerError as error:
                    failures.append(error)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        yield versions
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert failures == []


def is_answering(versions: list[int], version: int) -> Callable[[], bool]:
    """Whether the newest answers are a version's."""
    return lambda: versions[-4:] == [version] * 4


def test_removal_of_an_older_version_changes_nothing(tmp_path: Path) -> None:
    for version in (1, 2):
        networks.save(networks.classifier(scale=version), tmp_path, "letters", version)
    with Server(tmp_path, QUICK) as server, calling(server) as versions:
        _wait_until(is_answering(versions, 2))
        shutil.rmtree(tmp_path / "letters" / "1")
        seen = len(versions)
        _wait_until(lambda: len(versions) > seen + 100)
    assert set(versions) == {2}


def garble(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"garbled")


def cut(file: Path) -> None:
    os.truncate(file, 100)


def settings(file: Path) -> None:
    (file.parents[1] / "model.toml").write_text("max_batch_size = 'many'")


@pytest.mark.parametrize("spoil", [garble, cut, settings])
def test_spoiled_file_and_then_a_crash_fail_no_call(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    file = networks.save(networks.classifier(), tmp_path, "letters")
    with Server(tmp_path, QUICK) as server, calling(server) as versions:
        _wait_until(is_answering(versions, 1))
        logged = len(server.log)
        spoil(file)
        server.wait_for_log("model letters", after=logged)
        os.kill(server.children()["engine"], signal.SIGKILL)
        server.wait_for_log("engine", after=logged)
        seen = len(versions)
        _wait_until(lambda: len(versions) > seen + 100)
        # A good file takes its place.
        (file.parents[1] / "model.toml").unlink(missing_ok=True)
        networks.save(networks.classifier(scale=2), tmp_path, "letters", 2)
        _wait_until(is_answering(versions, 2))


def test_several_versions_serve_where_settings_say_so(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        networks.save(networks.classifier(scale=version), tmp_path, "letters", version)
    with Server(tmp_path, [*QUICK, "repository.versions=latest 2"]) as server, Client(server.grpc) as client:
        assert [client.classify(grey(1), "letters", version=version).version for version in (0, 2, 3)] == [3, 2, 3]
        with pytest.raises(ServerError, match="version 1 of model 'letters' is not served: versions 2, 3 serve"):
            client.classify(grey(1), "letters", version=1)
        (tmp_path / "letters" / "model.toml").write_text("versions = [1, 2]")
        server.wait_for_log("model letters version 3 no longer serves")
        _wait_until(lambda: client.classify(grey(1), "letters").version == 2)
        assert client.classify(grey(1), "letters", version=1).version == 1


def test_removed_model_is_unknown_at_once(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    networks.save(networks.classifier(), tmp_path, "others")
    with Server(tmp_path, QUICK) as server, Client(server.grpc) as client:
        shutil.rmtree(tmp_path / "letters")
        _wait_until(lambda: {model.model for model in client.models()} == {"others"})
