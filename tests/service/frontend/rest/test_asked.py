"""One HTTP request: what it counts as, and when its calls end."""

import asyncio
from typing import Any

import pytest

from convoy.service.errors import ConvoyError, DeadlinePassed, QueueFull
from convoy.service.frontend.rest.asked import Arriving, Asked, Means
from convoy.service.frontend.threads import NOBODY, Threads
from convoy.service.frontend.transport.interface import Received
from convoy.service.pb import inference_pb2 as pb


def asked(method: Any, *headers: tuple[bytes, bytes], arriving: Arriving | None = None, body: bytes = b"") -> Asked:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"path": "/", "query_string": b"", "headers": headers}
    means = Means({"ServerLive": method}, Threads(1, "test"), arriving or Arriving(1000), 1000)
    return Asked(scope, receive, means, None, None, NOBODY)


@pytest.mark.parametrize("header", [(b"x-request-timeout", b"0.01"), (b"x-envoy-expected-rq-timeout-ms", b"10")])
def test_call_that_runs_into_its_deadline_is_cancelled(header: tuple[bytes, bytes]) -> None:
    ended: list[BaseException] = []

    async def endless(received: Received, deadline: float) -> bytes | ConvoyError:
        try:
            return await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as error:
            ended.append(error)
            raise

    async def ask() -> None:
        await asked(endless, header).call("ServerLive", pb.ServerLiveRequest())

    with pytest.raises(DeadlinePassed):
        asyncio.run(ask())
    assert len(ended) == 1


def test_call_without_a_deadline_has_its_answer() -> None:
    async def prompt(received: Received, deadline: float) -> bytes | ConvoyError:
        return str(deadline).encode()

    async def ask() -> bytes:
        return await asked(prompt).call("ServerLive", pb.ServerLiveRequest())

    assert asyncio.run(ask()) == b"inf"


def test_body_counts_until_its_request_ends() -> None:
    async def ask() -> None:
        arriving = Arriving(150)
        one = asked(None, arriving=arriving, body=bytes(100))
        assert await one.body() == bytes(100)
        assert arriving.bytes == 100
        with pytest.raises(QueueFull):
            await asked(None, arriving=arriving, body=bytes(100)).body()
        one.release()
        assert arriving.bytes == 0

    asyncio.run(ask())
