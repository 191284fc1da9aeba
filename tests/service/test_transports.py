"""A real server says which transport it uses, and one that cannot use what was asked for does not start."""

import grpc
import pytest

from convoy.service import machine
from convoy.service.client.client import Client
from convoy.service.config import load
from convoy.service.errors import BadConfig
from convoy.service.pb import inference_pb2
from convoy.service.sources import Source
from convoy.service.supervisor import watch
from tests.service.calls import method
from tests.service.running import Server
from tests.service.test_vision import grey


@pytest.mark.both_transports
def test_transport_in_use_is_logged_counted_and_told_to_clients(small: Server, transport: str) -> None:
    with Client(small.grpc) as client:
        assert client.classify(grey(1), "letters").labels
    (record, *_) = [record for record in small.log if record["message"].startswith("gRPC is served by")]
    _, version = record["message"].removeprefix("gRPC is served by ").split()
    assert record["message"] == f"gRPC is served by {transport} {version}"
    assert small.wait_for_total("convoy_transport_info", 1, transport=transport, version=version) == 1
    with grpc.insecure_channel(small.grpc) as channel:
        metadata = method(channel, "ServerMetadata")(inference_pb2.ServerMetadataRequest())
    assert f"convoy_transport:{transport}" in metadata.extensions


def test_server_does_not_start_without_the_library_that_it_is_told_to_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert machine.has_library("libc.so.6")
    assert not machine.has_library("libnothing.so.1")
    monkeypatch.setattr(machine, "HTTP2_LIBRARY", "libnothing.so.1")
    config = load(settings=["server.transport=nghttp2", "server.grpc_port=0"])
    with pytest.raises(BadConfig, match=r"server\.transport is 'nghttp2', but libnothing\.so\.1 is not installed"):
        watch.serve(config, Source(tmp_path_factory.mktemp("repository")))
