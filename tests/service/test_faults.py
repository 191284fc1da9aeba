"""Inputs that end the engine, and processes that hang: only the guilty request fails, and nobody waits for ever."""

import asyncio
import os
import signal
import threading
import time
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
from tests.service import networks
from tests.service.calls import method, reason
from tests.service.running import Server
from tests.service.test_overload import _best, _wait_until, assert_all_slots_are_freed
from tests.service.test_vision import encoded, grey

SETTINGS = ("server.lame_duck_seconds=0", "server.heartbeat_seconds=1", "engine.run_limit_seconds=1")
DISTINCT = 400  # of these images none has two equal best logits
FATAL = np.full((8, 8), 250, np.uint8)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), root, "letters")
    networks.save(networks.slow(), root, "slow")
    for what in ("dies", "hangs"):
        networks.save(networks.fatal(what), root, what)
    return root


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    with Server(repository, SETTINGS) as running:
        yield running


def request(model: str, *images: np.ndarray) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, images=[pb.Image(encoded=encoded(image)) for image in images])


class Neighbours:
    """Callers of another model, for as long as it lasts."""

    def __init__(self, server: Server, model: str = "letters", callers: int = 2) -> None:
        self.answered = 0
        self.failed: list[Exception] = []
        self.longest = 0.0
        self._client = Client(server.grpc, retry=False)
        self._model = model
        self._end = threading.Event()
        self._callers = ThreadPoolExecutor(callers)
        self._running = [self._callers.submit(self._call, seed) for seed in range(callers)]

    def _call(self, seed: int) -> None:
        while not self._end.is_set():
            seed = (seed + 7) % DISTINCT
            began = time.monotonic()
            try:
                labels = self._client.classify(grey(seed), self._model).labels
                assert labels[0].index == _best(seed)[0], seed
                self.answered += 1
            except Exception as error:
                self.failed.append(error)
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> "Neighbours":
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for caller in self._running:
            caller.result()
        self._client.close()


@pytest.mark.parametrize("what", ["dies", "hangs"])
def test_of_a_batch_of_32_only_the_image_fails_that_ends_the_engine(server: Server, what: str) -> None:
    images = [FATAL if seed == 13 else grey(seed) for seed in range(32)]
    with grpc.insecure_channel(server.grpc) as channel, Neighbours(server) as neighbours:
        classify = method(channel, "Classify")
        calls = [classify.future(request(what, image)) for image in images]
        for seed, call in enumerate(calls):
            if seed == 13:
                error = call.exception(timeout=60)
                assert (error.code(), reason(error)) == (grpc.StatusCode.INTERNAL, "ENGINE_DIED")
            else:
                assert [label.index for label in call.result(60).results[0].classification.labels] == _best(seed)
        restarts = server.total("convoy_engine_restarts_total")
        # The same again is refused at once; nothing dies of it.
        assert reason(classify.future(request(what, FATAL)).exception(timeout=5)) == "ENGINE_DIED"
        assert server.total("convoy_engine_restarts_total") == restarts <= 3
    assert neighbours.failed == []
    assert_all_slots_are_freed(server)


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
        assert server.total("convoy_engine_restarts_total") == restarts


def test_version_whose_inputs_end_the_engine_again_and_again_stops_serving_and_the_others_go_on(server: Server) -> None:
    with Client(server.grpc) as client, Neighbours(server) as neighbours:
        reasons = set()
        for value in range(245, 250):
            with pytest.raises(ServerError) as refused:
                client.classify(np.full((8, 8), value, np.uint8), "dies")
            reasons.add((refused.value.code, refused.value.reason))
        assert (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE") in reasons
        states = {model.model: (model.state, model.reason) for model in client.models()}
        assert states["dies"][0] == "unavailable"
        assert states["dies"][1].startswith("several of its inputs ended the engine")
        assert states["hangs"] == ("ready", "")
    assert neighbours.failed == []
    assert server.total("convoy_engine_restarts_total") <= 7


def test_engine_that_others_kill_again_and_again_fails_no_call(server: Server) -> None:
    with Neighbours(server, "slow") as slow, Neighbours(server) as neighbours:
        for kill in range(3):
            # Two callers each: what is more than two answers further has been answered by this engine.
            before = slow.answered + 2, neighbours.answered + 2
            _wait_until(lambda before=before: slow.answered > before[0] and neighbours.answered > before[1], 60)
            os.kill(server.children()["engine"], signal.SIGKILL)
            server.wait_for_total("convoy_engine_restarts_total", kill + 1)
    assert slow.failed == neighbours.failed == []
    restarts = [record["message"] for record in server.log if "restarting in" in record["message"]]
    assert len(restarts) == 3
    assert all(message.endswith("restarting in 0.05 s") for message in restarts)


def unready(server: Server) -> str:
    """The reason why the server is not ready, or nothing."""
    status, body = server.get(f"{server.http}/readyz")
    return "" if status == 200 else body


def test_stopped_engine_is_replaced_and_those_who_waited_get_their_answers(server: Server) -> None:
    with Client(server.grpc) as client, ThreadPoolExecutor(4) as callers:
        client.classify(grey(1), "letters")
        os.kill(server.children()["engine"], signal.SIGSTOP)
        began = time.monotonic()
        waiting = [callers.submit(client.classify, grey(seed), "letters") for seed in range(4)]
        seen: list[str] = []
        _wait_until(lambda: seen.append(unready(server)) or "engine hung and was killed" in seen[-1], 10)
        found = time.monotonic() - began
        for seed, call in enumerate(waiting):
            assert call.result(timeout=30).labels[0].index == _best(seed)[0]
        _wait_until(lambda: not unready(server))
    assert found < 5  # one second, and what a busy machine adds
    assert server.total("convoy_engine_restarts_total") == 1
    assert_all_slots_are_freed(server)


def test_stopped_front_end_is_replaced(repository: Path) -> None:
    with Server(repository, [*SETTINGS, "server.frontends=2"]) as server:
        stopped = server.processes("frontend")[0]
        os.kill(stopped, signal.SIGSTOP)
        _wait_until(lambda: "frontend hung and was killed" in unready(server), 10)
        _wait_until(lambda: len(server.processes("frontend")) == 2 and not unready(server), 30)
        assert stopped not in server.processes("frontend")
        assert server.total("convoy_frontend_restarts_total") == 1
        with Client(server.grpc) as client:
            assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]


def test_front_ends_serve_while_the_supervisor_is_stopped_and_nobody_is_killed_for_it(server: Server) -> None:
    children = server.children()
    with Neighbours(server) as neighbours:
        os.kill(server.process.pid, signal.SIGSTOP)
        before = neighbours.answered
        turn = threading.Event()
        turn.wait(3)  # three times what makes a process count as hung
        assert neighbours.answered > before
        os.kill(server.process.pid, signal.SIGCONT)
        assert not unready(server)
    assert neighbours.failed == []
    assert server.children() == children


def test_pause_of_the_whole_server_is_no_reason_to_kill(server: Server) -> None:
    children = server.children()
    everyone = (server.process.pid, *children.values())
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    turn = threading.Event()
    turn.wait(3)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    with Client(server.grpc) as client:
        for seed in range(200):
            assert client.classify(grey(seed), "letters").labels[0].index == _best(seed)[0]
    assert server.children() == children


def test_run_that_never_ends_is_found_and_the_others_go_on(server: Server) -> None:
    with Client(server.grpc) as client, Neighbours(server) as neighbours:
        with pytest.raises(ServerError) as refused:
            client.classify(FATAL, "hangs")
        assert refused.value.reason == "ENGINE_DIED"
        assert client.classify(grey(1), "hangs").labels[0].index == _best(1)[0]
    assert neighbours.failed == []
    hangs = [record["message"] for record in server.log if "hangs: " in record["message"]]
    assert len(hangs) == 2


@pytest.mark.both_transports
@pytest.mark.parametrize("side", [142, 1225], ids=["20 kB", "1.5 MB"])
def test_killed_front_end_fails_no_call_of_a_client_that_retries(repository: Path, side: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (side, side), np.uint8)
    end = threading.Event()
    answered = []

    def call(client: Client) -> None:
        while not end.is_set():
            answered.append(client.classify(picture, "letters").labels[0].index)

    with Server(repository, SETTINGS) as server, Client(server.grpc) as client, ThreadPoolExecutor(4) as callers:
        calling = [callers.submit(call, client) for _ in range(4)]
        try:
            for kill in range(3):
                before = len(answered) + 8
                _wait_until(lambda before=before: len(answered) > before, 30)
                os.kill(server.children()["frontend"], signal.SIGKILL)
                server.wait_for_total("convoy_frontend_restarts_total", kill + 1)
            before = len(answered) + 8
            _wait_until(lambda before=before: len(answered) > before, 30)
        finally:
            end.set()
        for one in calling:
            one.result(timeout=30)
    assert len(set(answered)) == 1


def test_client_that_does_not_retry_sees_that_a_front_end_was_killed(server: Server) -> None:
    with Client(server.grpc, retry=False) as client, ThreadPoolExecutor(1) as callers:
        client.classify(grey(1), "slow")
        call = callers.submit(client.classify, grey(2), "slow")
        _wait_until(lambda: server.total("convoy_slots") == 1)
        os.kill(server.children()["frontend"], signal.SIGKILL)
        with pytest.raises(ServerError) as failed:
            call.result(timeout=30)
    assert failed.value.code is grpc.StatusCode.UNAVAILABLE
