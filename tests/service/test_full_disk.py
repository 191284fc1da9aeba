"""A disk without room, and a log that cannot be written: what serves goes on serving."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from convoy.service.supervisor.processes import announced
from tests import processes
from tests.reliability.neighbours import Neighbours
from tests.service import networks
from tests.service.running import Server
from tests.service.test_overload import _best, _wait_until
from tests.service.test_vision import grey

_ROOM = 4 * resource.getpagesize()  # for what processes share in memory, which the limit counts as files, too


def fill_disk(server: Server) -> None:
    """From now on no process of the server can write a file beyond that. Sockets, pipes and mappings are no files."""
    for pid in (server.process.pid, *server.processes("engine"), *server.processes("frontend")):
        for each in (pid, *processes.below(pid)):
            with contextlib.suppress(ProcessLookupError):  # a trial that has just ended
                resource.prlimit(each, resource.RLIMIT_FSIZE, (_ROOM, _ROOM))


def test_full_disk_fails_no_call_whatever_is_loaded_and_whoever_starts_again(tmp_path: Path) -> None:
    root, cache = tmp_path / "repository", tmp_path / "cache"
    cache.mkdir(mode=0o700)
    networks.save(networks.classifier(), root, "letters")
    settings = ["server.lame_duck_seconds=0", "repository.poll_seconds=0.2", f"repository.cache={cache}"]
    with Server(root, settings) as server, Neighbours(server.grpc) as neighbours:
        _wait_until(lambda: neighbours.answered > 0)
        counted = server.total("convoy_images_total")
        fill_disk(server)
        seen = len(server.log)
        large = networks.classifier()
        large.doc_string = "large" * _ROOM
        # Whole at once: why a folder without a file is not served would be logged, and no further reason for a while.
        made = networks.save(large, tmp_path / "made", "letters", 2).parent
        made.rename(root / "letters" / "2")
        record = server.wait_for_log("model letters version 2 is not served: its files", after=seen)
        assert record["message"].endswith("is not served: its files cannot be copied: File too large")
        seen = len(server.log)
        os.kill(server.children()["engine"], signal.SIGKILL)
        server.wait_for_log("ready", after=seen)
        with Client(server.grpc) as client:
            assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]
        assert server.total("convoy_images_total") > counted
    assert neighbours.failed == []
    assert server.process.returncode == 0


def test_log_that_cannot_be_written_disturbs_nobody(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    networks.save(networks.classifier(), tmp_path, "letters")
    command = [str(Path(sys.executable).with_name("convoy")), "serve", "--repository", str(tmp_path)]
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--set", "server.lame_duck_seconds=0"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen([*command, *ports], stderr=full, env=environment) as server,
    ):
        try:
            _wait_until(lambda: announced([temporary]))
            with Client(*announced([temporary])) as client:
                _wait_until(lambda: _serves(client), 60)
                assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]
        finally:
            server.terminate()
        assert server.wait(60) == 0


def _serves(client: Client) -> bool:
    try:
        return [model.state for model in client.models()] == ["ready"]
    except ServerError:
        return False
