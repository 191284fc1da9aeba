"""Clients that balance themselves over the servers of a name, while these drain, are killed and become more.

The load is that of test_proxies.py. Connections end at the age of two seconds, so that also this loses nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from convoy.service.client.aio import AsyncClient
from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests.deploy.fleet import LARGE, SMALL, Cell, Fleet, image, play
from tests.deploy.names import Names
from tests.service import networks

CALLS, KILLS = 2000, 9  # of the long form
AGE = 2


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    repository = tmp_path_factory.mktemp("fleet")
    networks.save(networks.classifier(), repository, "letters")
    with Fleet(repository, settings=[f"server.max_connection_age_seconds={AGE}"]) as fleet:
        yield fleet


def alone(
    fleet: Fleet,
    size: int,
    end: Callable[[int], None],
    *,
    calls: int = 0,
    ends: int,
    **more: Any,
) -> Cell:
    with Names(fleet.hosts) as names:
        target = names.target(fleet.port)

        def connect() -> AsyncClient:
            return AsyncClient(target, **more)

        cell = play(connect, size, end, calls=calls, ends=ends, measure=lambda: AsyncClient(target))
    print(f"client, {size} bytes, {end.__name__}, {more}: {cell}")
    return cell


def test_rolling_restart_fails_no_call_of_a_client(fleet: Fleet) -> None:
    assert not alone(fleet, SMALL, fleet.drain, ends=3).lost


def test_killed_servers_fail_no_call_of_a_client(fleet: Fleet) -> None:
    assert not alone(fleet, LARGE, fleet.kill, ends=1).lost


def test_killed_servers_fail_calls_of_a_client_without_retries(fleet: Fleet) -> None:
    assert alone(fleet, SMALL, fleet.kill_with_a_call, ends=1, retry=False).lost


def test_further_server_gets_calls_once_connections_have_their_age(fleet: Fleet) -> None:
    with ExitStack() as stack:
        names = stack.enter_context(Names(fleet.hosts[:2]))
        client = stack.enter_context(Client(names.target(fleet.port)))
        picture = image(SMALL)
        before = fleet.servers[2].total("convoy_images_total")
        client.classify(picture, "letters")
        names.addresses = fleet.hosts
        until = time.monotonic() + 60
        while fleet.servers[2].total("convoy_images_total") == before:
            assert time.monotonic() < until
            for _ in range(5):
                client.classify(picture, "letters")


def test_stream_ends_with_its_server_and_its_caller_sees_what_is_left(fleet: Fleet) -> None:
    pictures = [image(SMALL)] * 1000  # which take its server 20 s: time to look and to kill it, on any machine
    answered: set[int] = set()
    with Names(fleet.hosts) as names, Client(names.target(fleet.port)) as client:
        before = [server.total("convoy_images_total") for server in fleet.servers]
        with pytest.raises(ServerError) as caught:  # noqa: PT012  one answer after the other
            for place, _ in client.classify_stream(pictures, "letters"):
                answered.add(place)
                if len(answered) == 20:
                    counts = [server.total("convoy_images_total") for server in fleet.servers]
                    grown = [now - then for now, then in zip(counts, before, strict=True)]
                    fleet.kill(grown.index(max(grown)))
        assert caught.value.code.name == "UNAVAILABLE"
        assert 20 <= len(answered) < len(pictures)
        left = [place for place in range(len(pictures)) if place not in answered][:40]
        for place, _ in client.classify_stream([pictures[place] for place in left], "letters"):
            answered.add(left[place])
        assert answered >= set(left)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_two_thousand_calls_of_a_client_survive_rolling_restarts(fleet: Fleet, size: int) -> None:
    cell = alone(fleet, size, fleet.drain, calls=CALLS, ends=3)
    assert cell.sent >= CALLS
    assert not cell.lost


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_two_thousand_calls_of_a_client_survive_kills(fleet: Fleet, size: int) -> None:
    cell = alone(fleet, size, fleet.kill, calls=CALLS, ends=KILLS)
    assert cell.sent >= CALLS
    assert not cell.lost


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("size", "more"), [(SMALL, {"retry": False}), (LARGE, {"retry_buffer_bytes": 256 * 1024})])
def test_kills_cost_calls_of_a_client_without(fleet: Fleet, size: int, more: dict[str, Any]) -> None:
    assert alone(fleet, size, fleet.kill, calls=CALLS, ends=KILLS, **more).lost
