"""Where the address space is limited, a process that cannot map slot memory says so in one line, and is replaced."""

import os
import resource
import signal
from pathlib import Path

import pytest

from convoy.service.client.client import Client
from tests.service import networks
from tests.service.running import Server, refused
from tests.service.test_overload import PATIENT, _best, standing
from tests.service.test_supervision import PROMPT
from tests.service.test_vision import grey

SLOT_BYTES = 512 << 20
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one small network: an engine that loads no others needs no memory for them."""
    repository = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), repository, "letters")
    return repository


def answers(server: Server) -> bool:
    with Client(server.grpc) as client:
        return client.classify(grey(1), "letters").labels[0].index == _best(1)[0]


def mapped(pid: int) -> int:
    """Bytes of a process's address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def test_front_end_that_cannot_map_its_memory_ends_in_one_line_until_it_can(letters: Path) -> None:
    with Server(letters, PROMPT) as server:
        # What the supervisor starts has its limits. It needs less itself.
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (600 << 20, resource.RLIM_INFINITY))
        seen = len(server.log)
        os.kill(server.children()["frontend"], signal.SIGKILL)
        server.wait_for_log(
            "limits.slot_bytes is 536870912, which cannot be mapped (Cannot allocate memory)", after=seen
        )
        assert server.get(f"{server.http}/readyz")[0] == 503
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, UNLIMITED)
        server.wait_for_log("ready", after=seen)
        assert answers(server)
        assert not [record for record in server.log[seen:] if record["level"] == "raw"]


def test_engine_that_cannot_map_a_new_front_end_is_replaced(letters: Path) -> None:
    # A scan would need memory, too.
    with Server(letters, [*PROMPT, PATIENT, "repository.poll_seconds=3600"]) as server:
        engine = server.children()["engine"]
        seen = len(server.log)
        with standing(server):  # so that it needs no memory for anything else in between
            # Less than it has. It lacks some once it has lost one front end and maps another.
            resource.prlimit(engine, resource.RLIMIT_AS, (mapped(engine) - SLOT_BYTES // 2, resource.RLIM_INFINITY))
            os.kill(server.children()["frontend"], signal.SIGKILL)
        server.wait_for_log(
            "slot memory of a front end, 536870912 bytes, cannot be mapped: Cannot allocate", after=seen
        )
        ended = server.wait_for_log(f"engine {engine} ended with exit code 1", after=seen)
        server.wait_for_log("ready", after=server.log.index(ended))
        assert answers(server)
        assert not [record for record in server.log[seen:] if record["level"] == "raw"]


def test_front_ends_that_come_and_go_need_no_further_address_space(letters: Path) -> None:
    limit = 1300 << 20  # an engine with the memory of one front end, not of two

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    with Server(letters, PROMPT, before=limited) as server:
        for _ in range(3):
            seen = len(server.log)
            os.kill(server.children()["frontend"], signal.SIGKILL)
            server.wait_for_log("ready", after=seen)
            assert answers(server)


def test_too_little_address_space_is_one_line(letters: Path) -> None:
    line = refused(letters, "-v 900000")
    assert line.startswith("convoy serve: a process may map 921600000 bytes, want at least 1073741824, ")
