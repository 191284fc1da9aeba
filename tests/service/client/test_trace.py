"""Which span of the program a server hears of."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry import trace as api
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from convoy.service.client.aio import AsyncClient
from convoy.service.client.client import Client
from convoy.service.client.credentials import Credentials
from convoy.service.client.results import ServerError
from convoy.service.client.tensors import TensorClient
from convoy.service.client.trace import headers

STATE = TraceState([("vendor", "a1")])
SPAN = NonRecordingSpan(SpanContext(0xABC, 0xDEF, False, TraceFlags(1), STATE))
EXPECTED = {"traceparent": f"00-{0xABC:032x}-{0xDEF:016x}-01", "tracestate": "vendor=a1"}
PIXELS = np.zeros((8, 8), np.uint8)


class Hears(grpc.GenericRpcHandler):
    """Notes the headers of every call, and refuses it."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def service(self, details: grpc.HandlerCallDetails) -> None:
        self.heard.append(dict(details.invocation_metadata))


@pytest.fixture
def hears() -> Iterator[tuple[str, Hears]]:
    server, hears = grpc.server(ThreadPoolExecutor(2)), Hears()
    server.add_generic_rpc_handlers((hears,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", hears
    server.stop(0).wait()


def unary(target: str) -> None:
    with Client(target, credentials=Credentials(token="t")) as client:
        client.classify(PIXELS)


def stream(target: str) -> None:
    with Client(target) as client:
        list(client.segment_stream([PIXELS]))


def tensors(target: str) -> None:
    with TensorClient(target, 30) as client:
        client.metadata("letters")


def aio(target: str) -> None:
    async def ask() -> None:
        async with AsyncClient(target) as client:
            await client.classify(PIXELS)

    asyncio.run(ask())


def aio_stream(target: str) -> None:
    async def ask() -> None:
        async with AsyncClient(target) as client:
            async for _ in client.classify_stream([PIXELS]):
                pass

    asyncio.run(ask())


@pytest.mark.parametrize("ask", [unary, stream, tensors, aio, aio_stream])
def test_calls_carry_the_current_span(hears: tuple[str, Hears], ask: Callable[[str], None]) -> None:
    target, server = hears
    with pytest.raises(ServerError):
        ask(target)
    with api.use_span(SPAN), pytest.raises(ServerError):
        ask(target)
    without, within = server.heard
    assert not EXPECTED.keys() & without.keys()
    assert EXPECTED.items() <= within.items()
    assert ask is not unary or within["authorization"] == without["authorization"] == "Bearer t"


def test_headers_of_others_stay() -> None:
    pairs: Sequence[tuple[str, str]] = (("authorization", "Bearer t"),)
    assert headers(pairs) is pairs
    with api.use_span(SPAN):
        assert list(headers(pairs)) == [*pairs, *EXPECTED.items()]


def test_library_is_not_imported_for_it() -> None:
    code = "import sys, convoy; from convoy.service.client.trace import headers; assert headers() == (); "
    code += "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
