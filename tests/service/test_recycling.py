"""A process with too much memory is replaced, and nobody notices."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np

from convoy.service.config import MIB
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service import networks
from tests.service.calls import method
from tests.service.frontend.transport.raw import SETTINGS, Raw, message
from tests.service.running import Server, skip_without
from tests.service.test_memory import CLASSIFY, large
from tests.service.test_overload import _best, _wait_until
from tests.service.test_vision import encoded, grey

PROMPT = ("server.lame_duck_seconds=0", "server.grace_seconds=4", "repository.poll_seconds=0.5")


@contextmanager
def holding(server: Server, uploads: int) -> Iterator[None]:
    """Lets the front end hold memory: 59 MiB for each request that stalls."""
    host, _, port = server.grpc.rpartition(":")
    begun = message(large())[: 59 * MIB]
    with ExitStack() as stack:
        for _ in range(uploads):
            raw = stack.enter_context(Raw((host, int(port))))
            raw.until(SETTINGS)
            raw.upload(1, begun, CLASSIFY)
        yield


class Callers:
    """Plain gRPC clients, which call all the time.

    They send a call again only if the server has never seen it, as every gRPC client does when it meets a GOAWAY.
    """

    def __init__(self, server: Server) -> None:
        self.answered = 0
        self.failed: list[grpc.RpcError] = []
        self._target = server.grpc
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(3)]

    def _run(self, seed: int) -> None:
        request = pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=encoded(grey(seed)))])
        with grpc.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = method(channel, "Classify")
            while not self._over.is_set():
                try:
                    labels = call(request).results[0].classification.labels
                    assert labels[0].index == _best(seed)[0]
                    self.answered += 1
                except grpc.RpcError as error:
                    self.failed.append(error)

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def recycled(server: Server, process: str) -> float:
    return server.total("convoy_recycled_total", process=process, reason="memory")


def test_front_end_with_too_much_memory_is_replaced_and_no_call_fails(tmp_path: Path) -> None:
    skip_without("nghttp2")
    networks.save(networks.classifier(), tmp_path, "letters")
    settings = [*PROMPT, "server.frontend_memory_mib=120", "server.transport=nghttp2"]
    with Server(tmp_path, settings) as server, Callers(server) as callers:
        before = server.processes("frontend")
        with holding(server, 3):
            _wait_until(lambda: recycled(server, "frontend") == 1, 60)
            answered = callers.answered
            _wait_until(lambda: callers.answered > answered + 50, 60)
            assert server.get(f"{server.http}/readyz")[0] == 200
            _wait_until(lambda: not {*before} & {*server.processes("frontend")}, 60)
        answered = callers.answered
        _wait_until(lambda: callers.answered > answered + 50, 60)
        assert len(server.processes("frontend")) == 1
        assert server.total("convoy_frontend_restarts_total") == 0
        assert recycled(server, "frontend") == 1
        assert not any(record["message"].startswith("not ready") for record in server.log)
    assert callers.failed == []
    assert any("MiB of memory: it is replaced" in record["message"] for record in server.log)


def test_front_end_within_its_limit_stays(tmp_path: Path) -> None:
    skip_without("nghttp2")
    networks.save(networks.classifier(), tmp_path, "letters")
    settings = [*PROMPT, "server.frontend_memory_mib=0", "server.transport=nghttp2"]
    with Server(tmp_path, settings) as server, Callers(server) as callers, holding(server, 2):
        before = server.processes("frontend")
        answered = callers.answered
        _wait_until(lambda: callers.answered > answered + 500, 60)
        assert server.processes("frontend") == before
        assert recycled(server, "frontend") == 0


def test_engine_that_has_grown_is_replaced_once_and_no_call_fails(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    with Server(tmp_path, [*PROMPT, "server.engine_memory_mib=64"]) as server, Callers(server) as callers:
        before = server.children()["engine"]
        table = np.random.default_rng(1).random((1 << 25, 1), np.float32)  # 128 MiB
        networks.save(networks.table_lookup(table), tmp_path, "large")
        _wait_until(lambda: recycled(server, "engine") == 1, 60)
        _wait_until(lambda: server.children().get("engine", before) != before, 60)
        server.wait_for_total("convoy_model_ready", 2, 60)
        answered = callers.answered
        _wait_until(lambda: callers.answered > answered + 50, 60)
        # The next engine needs as much from the beginning: it stays.
        assert recycled(server, "engine") == 1
        assert server.total("convoy_engine_restarts_total") == 0
    assert callers.failed == []
