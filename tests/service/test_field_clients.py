"""What clients and meshes do in the field: frequent keepalive pings, large headers, shapes with placeholders."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convoy.service.client.client import Client
from convoy.service.pb.convoy.v1 import vision_pb2
from tests.service import networks
from tests.service.calls import infer_request, method, outputs, stream
from tests.service.running import Server


def passes(shape: list[str | int] | None, name: str = "x") -> onnx.ModelProto:
    """y = 2 x for a tensor of this declared shape; None declares none."""
    graph = helper.make_graph(
        [helper.make_node("Add", [name, name], ["y"])],
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


SHAPES: dict[str, list[str | int] | None] = {
    "question": ["?", "?", "?", 3],
    "none": ["None", "None", "None", 3],
    "minus-one-named": ["-1", "-1", "-1", 3],
    "minus-one": [-1, -1, -1, 3],
    "unnamed": ["", "", "", 3],
    "no-rank": None,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Server]:
    root: Path = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), root, "letters")
    networks.save(networks.with_strings(), root, "strings")
    networks.save(networks.with_default(), root, "default")
    for name, shape in SHAPES.items():
        networks.save(passes(shape), root, name)
    with Server(
        root, ["server.min_ping_seconds=0.02", "server.lame_duck_seconds=0", f"limits.max_metadata_bytes={64 << 10}"]
    ) as running:
        yield running


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("shape", [(1, 8, 9, 3), (2, 5, 4, 3), (1, 6, 6, 3)])
def test_sides_without_a_name_of_their_own_need_not_be_equal(server: Server, name: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    with grpc.insecure_channel(server.grpc) as channel:
        np.testing.assert_array_equal(
            outputs(method(channel, "ModelInfer")(infer_request(name, values)))["y"], values * 2
        )


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 4)])
def test_input_without_a_shape_takes_any_rank(server: Server, shape: tuple[int, ...]) -> None:
    values = np.ones(shape, np.float32)
    with grpc.insecure_channel(server.grpc) as channel:
        found = outputs(method(channel, "ModelInfer")(infer_request("no-rank", values)))["y"]
    assert found.shape == shape
    assert (found == 2).all()


@pytest.mark.both_transports
@pytest.mark.parametrize("kilobytes", [6, 9, 12, 15, 16, 32])
def test_large_tokens_in_the_headers_are_taken(server: Server, kilobytes: int) -> None:
    with grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        ready = method(channel, "ServerLive")
        for _ in range(20):  # between two limits it would be chance
            assert ready(b"", metadata=[("authorization", "x" * (kilobytes << 10))]).live


@pytest.mark.both_transports
def test_headers_over_the_limit_are_refused(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        method(channel, "ServerLive")(b"", metadata=[(name, "x" * (35 << 10)) for name in ("authorization", "baggage")])
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


PINGING = [
    ("grpc.keepalive_time_ms", 100),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


def _silent_stream(target: str, seconds: float) -> grpc.StatusCode | None:
    """How a stream ends on which nothing is sent, after so long at the latest, while its client pings every second."""
    nothing = threading.Event()

    def requests() -> Iterator[vision_pb2.ClassifyStreamRequest]:
        nothing.wait(seconds)
        return
        yield

    with grpc.insecure_channel(target, PINGING) as channel:
        call = stream(channel, "ClassifyStream")(requests())
        with suppress(grpc.RpcError):
            assert list(call) == []
        nothing.set()
        return call.code()


def _loses_idle_connection(target: str, seconds: float) -> bool:
    """Whether a connection without any call is closed within so long, while its client pings every second."""
    connected, lost = threading.Event(), threading.Event()

    def changed(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            connected.set()
        elif connected.is_set():
            lost.set()

    with grpc.insecure_channel(target, PINGING) as channel:
        channel.subscribe(changed, try_to_connect=True)
        assert connected.wait(20)
        gone = lost.wait(seconds)
        assert method(channel, "ServerLive")(b"", wait_for_ready=True, timeout=60).live
        channel.unsubscribe(changed)
    return gone


def test_pings_end_neither_silent_streams_nor_idle_connections_unless_the_setting_forbids_them(
    server: Server, tmp_path: Path
) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    with (
        Server(tmp_path, ["server.min_ping_seconds=60", "server.lame_duck_seconds=0"]) as strict,
        ThreadPoolExecutor(4) as clients,
    ):
        # gRPC's own client pings once a second at most, and is sent away with its third ping that is too soon: after
        # three seconds, or later if it pauses.
        targets, seconds = (server.grpc, strict.grpc), (7.0, 60.0)
        streams = clients.map(_silent_stream, targets, seconds)
        idle = clients.map(_loses_idle_connection, targets, seconds)
        assert list(streams) == [grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE]
        assert list(idle) == [False, True]


def test_output_of_strings_costs_the_one_of_numbers_nothing(server: Server) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    with grpc.insecure_channel(server.grpc) as channel, Client(server.grpc) as client:
        found = outputs(method(channel, "ModelInfer")(infer_request("strings", values)))
        assert found.keys() == {"y"}
        np.testing.assert_array_equal(found["y"], values * 2)
        (model,) = (model for model in client.models() if model.model == "strings")
        assert (model.state, model.max_batch_size) == ("ready", 32)
        assert model.reason == "without output 'label' (tensor(string))"


def test_input_with_a_value_in_the_file_may_be_left_out_and_giving_it_is_refused_in_words(server: Server) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    request = infer_request("default", values)
    with grpc.insecure_channel(server.grpc) as channel:
        infer = method(channel, "ModelInfer")
        np.testing.assert_array_equal(outputs(infer(request))["y"], values * 2)
        request.inputs.add(name="w", datatype="FP32", shape=[1])
        request.raw_input_contents.append(np.ones(1, np.float32).tobytes())
        with pytest.raises(grpc.RpcError, match="input 'w' has a fixed value in the model file: omit it"):
            infer(request)
