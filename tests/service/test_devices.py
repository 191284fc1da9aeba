"""Several engines that share a model's requests: who works, who dies, and what a new version does to them."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests.service import networks
from tests.service.calls import method
from tests.service.running import Server, held_back
from tests.service.test_overload import _best, _wait_until, assert_all_slots_are_freed, request
from tests.service.test_vision import grey

TWO = ["engine.devices=[0, 1]", "engine.provider=cpu", "server.lame_duck_seconds=0"]
ONE = TWO[1:]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    networks.save(networks.classifier(), tmp_path, "letters")
    return tmp_path


@pytest.fixture
def pair(repository: Path) -> Iterator[Server]:
    """A server of its own with two engines."""
    with Server(repository, TWO) as server:
        yield server


class Callers:
    """Callers who ask for one model again and again, each for the next when it has its answer."""

    def __init__(self, server: Server, count: int) -> None:
        self.versions: list[int] = []
        self.failures: list[Exception] = []
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=[seed]) for seed in range(count)]

    def _call(self, seed: int) -> None:
        with Client(self._server.grpc) as client:
            while not self._stop.is_set():
                try:
                    answer = client.classify(grey(seed), "letters")
                    assert [label.index for label in answer.labels] == _best(seed)
                    self.versions.append(answer.version)
                except (ServerError, AssertionError) as error:
                    self.failures.append(error)

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def batches(server: Server, device: int) -> float:
    return server.total("convoy_batches_total", device=str(device))


def test_both_engines_work_and_are_told_apart(pair: Server) -> None:
    assert len(pair.processes("engine")) == 2
    with Callers(pair, 4) as callers:
        _wait_until(lambda: all(batches(pair, device) >= 20 for device in (0, 1)))
    assert not callers.failures
    assert pair.total("convoy_model_ready", model="letters", device="0") == 1
    assert pair.total("convoy_model_ready", model="letters", device="1") == 1
    assert {"engine 0", "engine 1"} <= {record.get("process") for record in pair.log}
    assert_all_slots_are_freed(pair)
    assert pair.stop() == 0


def under_way(server: Server, channel: grpc.Channel) -> list[grpc.Future]:
    """Four requests that engines have. If they are answered before anybody looks, others are sent."""
    for _ in range(20):
        calls = [method(channel, "Classify").future(request(seed)) for seed in range(4)]
        while not all(call.done() for call in calls):
            if server.total("convoy_slots") == 4:
                return calls
    raise AssertionError("they were always answered before they were seen")


def answered_without_a_successor(repository: Path, settings: Sequence[str], seconds: float) -> bool:
    """Requests are under way, one engine is killed, and nobody starts another: whether these, and those that come then,
    are answered in that time.

    On a slow machine that is several runs of a second each.
    """
    networks.save(networks.slow(), repository, "slow")
    with Server(repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        calls = under_way(server, channel)
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            os.kill(server.processes("engine")[0], signal.SIGKILL)
            # After a pause, those under way may already be answered.
            calls += [method(channel, "Classify").future(request(seed)) for seed in range(4, 8)]
            deadline = time.monotonic() + seconds
            while not all(call.done() for call in calls) and time.monotonic() < deadline:
                threading.Event().wait(0.02)
            done = all(call.done() for call in calls)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        for seed, call in enumerate(calls):
            labels = call.result(timeout=60).results[0].classification.labels
            assert [label.index for label in labels] == _best(seed)
        assert_all_slots_are_freed(server)
    return done


def test_what_a_killed_engine_had_is_answered_by_the_other_at_once(tmp_path: Path) -> None:
    assert answered_without_a_successor(tmp_path, TWO, 60)


def test_the_control_an_engine_that_is_alone_has_to_be_waited_for(tmp_path: Path) -> None:
    assert not answered_without_a_successor(tmp_path, ONE, 2)


def test_nobody_fails_when_one_engine_dies_and_it_is_said_until_another_is_there(pair: Server) -> None:
    with Callers(pair, 4) as callers:
        _wait_until(lambda: all(batches(pair, device) >= 5 for device in (0, 1)))
        seen, killed = len(pair.log), pair.processes("engine")[1]
        os.kill(killed, signal.SIGKILL)
        ended = pair.wait_for_log(f"engine {killed} of device 1 ended with signal 9", after=seen)
        assert ended["level"] == "error"
        pair.wait_for_log("no engine serves on device 1 now: the others do all", after=seen)
        pair.wait_for_log("engines serve on all devices again", after=seen)
        before = batches(pair, 1)
        _wait_until(lambda: batches(pair, 1) > before)
    assert not callers.failures
    assert pair.total("convoy_engine_restarts_total", device="1") == 1
    assert pair.total("convoy_engine_restarts_total", device="0") == 0
    assert not any(record["message"].startswith("not ready") for record in pair.log)
    assert_all_slots_are_freed(pair)


def test_a_server_that_lacks_an_engine_is_ready_and_says_which(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    held, environment = held_back(tmp_path_factory.mktemp("site"))
    with Server(repository, TWO, environment=environment) as pair:

        def body() -> str:
            status, text = pair.get(f"{pair.http}/readyz")
            assert status == 200
            return text

        before = body()
        held.touch()
        os.kill(pair.processes("engine")[0], signal.SIGKILL)
        _wait_until(lambda: "no engine serves on device 0 now" in body(), 30)
        held.unlink()
        _wait_until(lambda: body() == before)


def test_a_new_version_is_taken_up_by_both_and_no_request_fails(pair: Server) -> None:
    with Callers(pair, 4) as callers:
        _wait_until(lambda: callers.versions)
        networks.save(networks.classifier(), pair.repository, "letters", 2)
        # Its trial has a lower priority than the callers: on a busy machine it takes a while.
        for device in ("0", "1"):
            ready = {"model": "letters", "device": device}
            _wait_until(lambda ready=ready: pair.total("convoy_model_ready", version="2", **ready) == 1)
            _wait_until(lambda ready=ready: pair.total("convoy_model_ready", version="1", **ready) == 0)
            counted = {"model": "letters", "device": device, "version": "2"}
            _wait_until(lambda counted=counted: pair.total("convoy_batches_total", **counted) > 0)
    assert not callers.failures
    assert set(callers.versions) == {1, 2}
    # Not the last in the list: a caller may write down late what it had been answered before.
    with Client(pair.grpc) as client:
        assert client.classify(grey(1), "letters").version == 2


def images_a_second(server: Server) -> float:
    """With eight callers."""
    with Client(server.grpc) as client, ThreadPoolExecutor(8) as threads:
        client.classify(grey(1), "letters")
        began = time.monotonic()
        list(threads.map(lambda seed: client.classify(grey(seed), "letters"), range(40)))
        return 40 / (time.monotonic() - began)


@pytest.mark.alone
def test_two_devices_answer_nearly_twice_as_many(repository: Path) -> None:
    # Long compared with an image's CPU time. The best of three attempts counts: a pause can only slow one down.
    sleeping = ["engine.sleep_ms=[50, 0]", "batching.max_batch_size=1"]
    with Server(repository, [*ONE, *sleeping]) as one, Server(repository, [*TWO, *sleeping]) as two:
        rates = [(images_a_second(one), images_a_second(two)) for _ in range(3)]
    alone, together = (max(each) for each in zip(*rates, strict=True))
    assert together > 1.6 * alone
