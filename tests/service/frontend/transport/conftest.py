"""Transports that run, for tests that leave them as they were."""

from collections.abc import Iterator

import grpc
import pytest

from tests.service.frontend.transport.serving import Serving


@pytest.fixture(params=["nghttp2", "grpcio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each transport in turn."""
    return str(request.param)


@pytest.fixture
def serving(kind: str) -> Iterator[Serving]:
    """Each transport in turn, with its own methods."""
    with Serving(kind) as running:
        yield running


@pytest.fixture
def channel(serving: Serving) -> Iterator[grpc.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(serving.target, options) as channel:
        yield channel


@pytest.fixture
def http2() -> Iterator[Serving]:
    """The transport on libnghttp2."""
    with Serving("nghttp2") as running:
        yield running
