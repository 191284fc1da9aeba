"""A server with few file descriptors keeps some for itself, however many strangers connect."""

import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from convoy.service import descriptors
from convoy.service.client.client import Client
from convoy.service.errors import BadConfig
from tests.service.running import Server, refused
from tests.service.test_overload import _best
from tests.service.test_supervision import PROMPT
from tests.service.test_vision import grey

STRANGERS = 300


def limit(most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@pytest.fixture
def many_files() -> Iterator[None]:
    """Lets this process connect as often as the tests want."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.both_transports
@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("most", [64, 256])
def test_strangers_on_every_port_keep_no_process_from_being_replaced(quick_repository: Path, most: int) -> None:
    with Server(quick_repository, PROMPT, before=limit(most)) as server:
        with ExitStack() as strangers:
            for address in (server.grpc, server.http, server.metrics):
                host, _, port = address.rpartition("/")[2].rpartition(":")
                for _ in range(STRANGERS):
                    strangers.enter_context(socket.create_connection((host, int(port)), timeout=20))
            for kind in ("engine", "frontend"):
                assert server.get(f"{server.http}/readyz")[0] == 200
                seen = len(server.log)
                os.kill(server.children()[kind], signal.SIGKILL)
                server.wait_for_log("ready", after=seen)
            assert "convoy_engine_restarts_total" in server.get(f"{server.metrics}/metrics")[1]
        with Client(server.grpc) as client:
            assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]
        assert server.stop() == 0
        words = [record["message"] for record in server.log if record["level"] in ("error", "raw")]
        assert all("ended with signal 9" in message for message in words), words


def test_soft_limit_is_raised_to_the_hard_one(quick_repository: Path) -> None:
    with Server(
        quick_repository, PROMPT, before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (70, 300))
    ) as server:
        for pid in (server.process.pid, *server.children().values()):
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (300, 300)


@pytest.mark.parametrize("most", [12, 63])
def test_too_few_descriptors_are_one_line(quick_repository: Path, most: int) -> None:
    assert refused(quick_repository, f"-n {most}") == (
        f"convoy serve: a process may open {most} files, want at least 64: raise the limit, such as by 'ulimit -n 1024'"
    )


def test_more_processes_want_more_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_limit", lambda: 100)
    descriptors.check(processes=11)
    with pytest.raises(BadConfig, match="a process may open 100 files, want at least 104"):
        descriptors.check(processes=12)
    assert descriptors.of_http_port(processes=2) == 22
    assert descriptors.of_front_end(engines=1) == 48
