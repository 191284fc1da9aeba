"""Inputs that end the engine, and processes that hang: only the guilty request fails, and nobody waits for ever."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from convoy.service.client.aio import AsyncClient
from convoy.service.client.client import Client
from convoy.service.client.results import Classification, ServerError
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.reliability.neighbours import Neighbours
from tests.service import networks
from tests.service.running import Server, held_back
from tests.service.test_overload import PATIENT, _best, _wait_until, assert_all_slots_are_freed, standing
from tests.service.test_vision import encoded, grey

SETTINGS = ("server.lame_duck_seconds=0",)
HEARTBEAT = 4  # seconds: longer than any process may pause by chance, this one between two signals included
WATCHED = (*SETTINGS, f"server.heartbeat_seconds={HEARTBEAT}")
FATAL = np.full((8, 8), 250, np.uint8)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), root, "letters")
    for what in ("dies", "hangs"):
        networks.save(networks.fatal(what), root, what)
    return root


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    with Server(repository, SETTINGS) as running:
        yield running


@pytest.fixture
def watched(repository: Path) -> Iterator[Server]:
    """A server that replaces processes which are silent for a few seconds."""
    with Server(repository, WATCHED) as running:
        yield running


def request(model: str, *images: np.ndarray) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, images=[pb.Image(encoded=encoded(image)) for image in images])


def test_image_of_a_shared_slot_that_ends_the_engine_leaves_the_others_alone(server: Server) -> None:
    images = [FATAL if seed in (3, 7) else grey(seed) for seed in range(8)]
    images[7] = images[7] - np.uint8(1)
    with Client(server.grpc) as client:
        results = client.classify_many(images, "dies")
    for seed, result in enumerate(results):
        if seed in (3, 7):
            assert isinstance(result, ServerError)
            assert (result.code, result.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_DIED")
        else:
            assert isinstance(result, Classification)
            assert [label.index for label in result.labels] == _best(seed)
    assert_all_slots_are_freed(server)


def test_of_requests_that_share_a_slot_only_the_one_fails_that_ends_the_engine(server: Server) -> None:
    async def ask() -> list[Classification | BaseException]:
        async with AsyncClient(server.grpc, retry=False) as client:
            images = [FATAL if seed == 13 else grey(seed) for seed in range(32)]
            await client.classify(grey(0), "dies")
            return await asyncio.gather(*(client.classify(each, "dies") for each in images), return_exceptions=True)

    results = asyncio.run(ask())
    guilty = results.pop(13)
    assert isinstance(guilty, ServerError)
    assert guilty.reason == "ENGINE_DIED"
    for seed, result in zip([seed for seed in range(32) if seed != 13], results, strict=True):
        assert isinstance(result, Classification), result
        assert result.labels[0].index == _best(seed)[0]
    assert_all_slots_are_freed(server)


def test_input_that_ended_engines_is_refused_by_every_front_end(repository: Path) -> None:
    with Server(repository, [*SETTINGS, "server.frontends=2"]) as server:
        for caller in range(12):  # each has its own connection, to either front end
            with Client(server.grpc) as client, pytest.raises(ServerError) as refused:
                client.classify(FATAL, "dies")
            assert refused.value.reason == "ENGINE_DIED"
            if caller == 0:
                restarts = server.total("convoy_engine_restarts_total")
                assert restarts >= 2
                _wait_until_told(server, restarts)
        assert server.total("convoy_engine_restarts_total") == restarts


def _wait_until_told(server: Server, deaths: float) -> None:
    """Waits until the server is ready again after this many engine deaths. By then all front ends know which inputs
    caused them: the supervisor hears of an input, and passes it on, before it hears that the server is ready."""

    def ended() -> list[int]:
        messages = [record["message"] for record in server.log]
        return [at for at, text in enumerate(messages) if text.startswith("engine ") and " ended with " in text]

    _wait_until(lambda: len(ended()) == deaths)
    server.wait_for_log("ready", after=ended()[-1])


def test_version_whose_inputs_end_the_engine_again_and_again_stops_serving_and_the_others_go_on(server: Server) -> None:
    with Client(server.grpc) as client, Neighbours(server.grpc) as neighbours:
        reasons = set()
        for value in range(245, 250):
            with pytest.raises(ServerError) as refused:
                client.classify(np.full((8, 8), value, np.uint8), "dies")
            reasons.add((refused.value.code, refused.value.reason))
        assert (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE") in reasons

        def states() -> dict[str, tuple[str, str]]:
            return {model.model: (model.state, model.reason) for model in client.models()}

        _wait_until(lambda: states()["dies"][0] == "unavailable")  # the engine refuses before the table says why
        assert states()["dies"][1].startswith("several of its inputs ended the engine")
        assert states()["hangs"] == ("ready", "")
    assert neighbours.failed == []
    assert server.total("convoy_engine_restarts_total") <= 7


def unready(server: Server) -> str:
    """The reason why the server is not ready, or nothing."""
    status, body = server.get(f"{server.http}/readyz")
    return "" if status == 200 else body


def test_stopped_engine_is_replaced_and_those_who_waited_get_their_answers(repository: Path, tmp_path: Path) -> None:
    held, environment = held_back(tmp_path)
    with Server(repository, WATCHED, environment=environment) as server:
        with Client(server.grpc) as client, ThreadPoolExecutor(4) as callers:
            client.classify(grey(1), "letters")
            held.touch()
            os.kill(server.children()["engine"], signal.SIGSTOP)
            waiting = [callers.submit(client.classify, grey(seed), "letters") for seed in range(4)]
            # A few seconds, and what a busy machine adds; not the minute that is given to one that loads.
            _wait_until(lambda: "engine hung and was killed" in unready(server), HEARTBEAT + 20)
            held.unlink()
            for seed, call in enumerate(waiting):
                assert call.result(timeout=60).labels[0].index == _best(seed)[0]
            _wait_until(lambda: not unready(server))
        assert server.total("convoy_engine_restarts_total") == 1
        assert_all_slots_are_freed(server)


def test_front_ends_serve_while_the_supervisor_is_stopped_and_nobody_is_killed_for_it(watched: Server) -> None:
    children = watched.children()
    with Neighbours(watched.grpc) as neighbours:
        os.kill(watched.process.pid, signal.SIGSTOP)
        before = neighbours.answered
        turn = threading.Event()
        turn.wait(HEARTBEAT + 2)  # longer than what makes a process count as hung
        _wait_until(lambda: neighbours.answered > before)
        os.kill(watched.process.pid, signal.SIGCONT)
        _wait_until(lambda: not unready(watched))  # once the supervisor has run and a front end has seen it
    assert neighbours.failed == []
    assert watched.children() == children


def test_pause_of_the_whole_server_is_no_reason_to_kill(watched: Server) -> None:
    children = watched.children()
    everyone = (watched.process.pid, *children.values())
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    turn = threading.Event()
    turn.wait(HEARTBEAT + 2)
    for pid in everyone:  # the supervisor first, which finds the others as it left them
        os.kill(pid, signal.SIGCONT)
    with Client(watched.grpc) as client:
        for seed in range(200):
            assert client.classify(grey(seed), "letters").labels[0].index == _best(seed)[0]
    assert watched.children() == children


def test_client_that_does_not_retry_sees_that_a_front_end_was_killed(repository: Path) -> None:
    with (
        Server(repository, [*SETTINGS, PATIENT]) as server,
        Client(server.grpc, retry=False) as client,
        ThreadPoolExecutor(1) as callers,
    ):
        client.classify(grey(1), "letters")
        with standing(server):  # so that the request is under way
            call = callers.submit(client.classify, grey(2), "letters")
            _wait_until(lambda: server.total("convoy_slots") == 1, 30)
            os.kill(server.children()["frontend"], signal.SIGKILL)
            with pytest.raises(ServerError) as failed:
                call.result(timeout=60)
    assert failed.value.code is grpc.StatusCode.UNAVAILABLE
