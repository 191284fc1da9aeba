"""Which server a client's calls reach, and how often: on small servers of gRPC's own."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from convoy.service.client.aio import AsyncClient
from convoy.service.client.client import Client
from convoy.service.client.credentials import Credentials
from convoy.service.client.results import ServerError
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.deploy.names import Names

SECONDS = 20.0
PIXELS = np.zeros((4, 4), np.uint8)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class _Refusing(health_pb2_grpc.HealthServicer):
    """The health service of a server that wants a token."""

    def Watch(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")


class Replica:
    """Answers Classify, or refuses it as UNAVAILABLE with `pushback` (grpc-retry-pushback-ms) if that is set."""

    def __init__(self, health_service: Any = None, address: str = "127.0.0.1:0") -> None:
        self.calls = 0
        self.pushback = ""
        self.idle = threading.Event()  # unless set, no call is answered
        self.idle.set()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
        handler = grpc.unary_unary_rpc_method_handler(
            self._classify, pb.ClassifyRequest.FromString, pb.ClassifyResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("convoy.v1.Vision", {"Classify": handler}),)
        )
        if health_service is not None:
            health_pb2_grpc.add_HealthServicer_to_server(health_service, self._server)
        self.address = f"{address.rpartition(':')[0]}:{self._server.add_insecure_port(address)}"
        self._server.start()

    def _classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        self.calls += 1
        self.idle.wait(SECONDS)
        if self.pushback:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", self.pushback),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        result = pb.ClassifyResult(classification=pb.Classification())
        return pb.ClassifyResponse(model="m", version=1, results=[result])

    def stop(self) -> None:
        self._server.stop(None).wait()


def reporting(status: Any) -> health.HealthServicer:
    servicer = health.HealthServicer()
    servicer.set("", status)
    return servicer


class Wire:
    """A way to a server that takes some seconds, and can be cut as a machine is that loses its network: nobody hears
    of it."""

    def __init__(self, address: str, seconds: float = 0.0) -> None:
        self._server = address
        self._seconds = seconds
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listening.getsockname())
        self._open: list[socket.socket] = []
        self._cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()

    def close(self) -> None:
        for each in (self._listening, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # ends the threads
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self._listening.accept()[0]
                host, _, port = self._server.rpartition(":")
                far = socket.create_connection((host, int(port)))
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(self._seconds)
                if not self._cut.is_set():
                    target.sendall(data)


Start = Callable[..., Replica]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(*arguments: Any) -> Replica:
            replica = Replica(*arguments)
            stack.callback(replica.stop)
            return replica

        yield begin


def both(*replicas: Replica) -> str:
    return "ipv4:" + ",".join(replica.address for replica in replicas)


def call_until(client: Client, holds: Callable[[], bool]) -> None:
    """Calls until something holds. Connections, and what is known of their servers, come at any time."""
    until = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < until
        client.classify(PIXELS, deadline=SECONDS)


def calls_of(client: Client, *replicas: Replica, calls: int = 40) -> list[int]:
    before = [replica.calls for replica in replicas]
    for _ in range(calls):
        client.classify(PIXELS, deadline=SECONDS)
    return [replica.calls - count for replica, count in zip(replicas, before, strict=True)]


def test_calls_go_to_all_servers_of_a_list_in_turn(start: Start) -> None:
    one, other = start(reporting(SERVING)), start(reporting(SERVING))
    with Client(both(one, other)) as client:
        call_until(client, lambda: bool(one.calls and other.calls))
        assert calls_of(client, one, other) == [20, 20]


def test_calls_of_asyncio_go_to_all_servers_of_a_list(start: Start) -> None:
    one, other = start(reporting(SERVING)), start(reporting(SERVING))

    async def call() -> None:
        async with AsyncClient(both(one, other)) as client, asyncio.timeout(SECONDS):
            while not (one.calls and other.calls):
                await client.classify(PIXELS)

    asyncio.run(call())


def test_calls_go_to_one_server_without_balancing(start: Start) -> None:
    one, other = start(reporting(SERVING)), start(reporting(SERVING))
    with Client(both(one, other), balance=False) as client:
        assert sorted(calls_of(client, one, other)) == [0, 40]


def test_server_that_does_not_serve_gets_no_call_until_it_does(start: Start) -> None:
    health_service = reporting(NOT_SERVING)
    one, other = start(reporting(SERVING)), start(health_service)
    with Client(both(one, other)) as client:
        assert calls_of(client, one, other) == [40, 0]
        health_service.set("", SERVING)
        call_until(client, lambda: other.calls > 0)
        health_service.set("", NOT_SERVING)
        call_until(client, lambda: calls_of(client, one, other, calls=10) == [10, 0])


def test_error_says_that_no_server_serves(start: Start) -> None:
    one, other = start(reporting(NOT_SERVING)), start(reporting(NOT_SERVING))
    with Client(both(one, other), retry=False) as client, pytest.raises(ServerError) as caught:
        client.classify(PIXELS, deadline=SECONDS)
    assert str(caught.value) == f"no server of {both(one, other)} serves (the last one: backend unhealthy)"


def test_health_checks_can_be_switched_off(start: Start) -> None:
    one, other = start(reporting(SERVING)), start(reporting(NOT_SERVING))
    with Client(both(one, other), health=False) as client:
        call_until(client, lambda: bool(one.calls and other.calls))


def test_server_without_a_health_service_gets_calls(start: Start) -> None:
    one, other = start(reporting(SERVING)), start()
    with Client(both(one, other)) as client:
        call_until(client, lambda: bool(one.calls and other.calls))


def test_the_only_server_of_a_target_is_asked_whatever_its_health(start: Start) -> None:
    # Its calls may wait for an engine that is restarted.
    only = start(reporting(NOT_SERVING))
    with Client(only.address, retry=False) as client:
        assert calls_of(client, only) == [40]


def test_client_with_a_token_does_not_depend_on_health_checks_that_have_none(start: Start) -> None:
    one, other = start(_Refusing()), start(_Refusing())
    who = Credentials(token="convoy_secret")
    with Client(both(one, other), credentials=who) as client:
        call_until(client, lambda: bool(one.calls and other.calls))
    with Client(both(one, other), credentials=who, health=True, retry=False) as client, pytest.raises(ServerError):
        client.classify(PIXELS, deadline=SECONDS)


@pytest.mark.parametrize(
    ("pushback", "more", "attempts"),
    [("1", {}, 5), ("-1", {}, 1), ("1", {"retry": False}, 1), ("1", {"retry_buffer_bytes": 8}, 1)],
    ids=["after as long as it says", "not if it says so", "switched off", "not of what is not kept"],
)
def test_refused_call_is_attempted_five_times(start: Start, pushback: str, more: dict[str, Any], attempts: int) -> None:
    replica = start()
    replica.pushback = pushback
    with Client(replica.address, **more) as client, pytest.raises(ServerError, match="not now") as caught:
        client.classify(PIXELS, deadline=SECONDS)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert replica.calls == attempts


@pytest.mark.parametrize(
    ("keepalive", "deadline", "code"),
    [(1.0, 2 * SECONDS, grpc.StatusCode.UNAVAILABLE), (0.0, 8.0, grpc.StatusCode.DEADLINE_EXCEEDED)],
)
def test_server_whose_machine_is_gone_is_noticed(
    start: Start, keepalive: float, deadline: float, code: grpc.StatusCode
) -> None:
    replica = start()
    replica.idle.clear()
    wire = Wire(replica.address)
    with Client(wire.address, keepalive=keepalive, retry=False) as client, ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.classify, PIXELS, deadline=deadline)
        until = time.monotonic() + SECONDS
        while not replica.calls and time.monotonic() < until:
            time.sleep(0.01)
        wire.cut()
        error = call.exception(SECONDS)
    replica.idle.set()
    wire.close()
    assert isinstance(error, ServerError)
    assert error.code is code


def test_server_behind_a_slow_network_is_reached(start: Start) -> None:
    wire = Wire(start().address, seconds=0.7)
    with Client(wire.address) as client:
        client.classify(PIXELS, deadline=SECONDS)
    wire.close()


def test_call_that_one_server_refuses_is_answered_by_another(start: Start) -> None:
    one, other = start(), start()
    with Client(both(one, other)) as client:
        # All attempts would go to the one as long as there is no connection to the other.
        call_until(client, lambda: bool(one.calls and other.calls))
        one.pushback = "1"
        assert sum(calls_of(client, one, other)) > 40


def test_name_is_looked_up_again_when_its_servers_leave(start: Start) -> None:
    old = start(reporting(SERVING), "127.0.0.2:0")
    port = int(old.address.rpartition(":")[2])
    with Names(["127.0.0.2"]) as names, Client(names.target(port)) as client:
        assert calls_of(client, old) == [40]
        new = start(reporting(SERVING), f"127.0.0.3:{port}")
        names.addresses = ["127.0.0.3"]
        old.stop()
        assert calls_of(client, new) == [40]


def test_servers_of_a_name_all_get_calls(start: Start) -> None:
    one = start(reporting(SERVING), "127.0.0.2:0")
    port = int(one.address.rpartition(":")[2])
    other = start(reporting(SERVING), f"127.0.0.3:{port}")
    with Names(["127.0.0.2", "127.0.0.3"]) as names, Client(names.target(port)) as client:
        call_until(client, lambda: bool(one.calls and other.calls))
