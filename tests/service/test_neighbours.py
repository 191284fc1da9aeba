"""No answer depends on who else asks: files from elsewhere, asked by many callers at once, answer as they do alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from convoy.service.client.client import Client
from tests.service import networks
from tests.service.calls import infer_request, method, outputs
from tests.service.running import Server
from tests.service.test_overload import _wait_until

CALLERS = 16
NETWORKS = networks.first_sides() | networks.independent()
TYPES = {"half": ("FP16", np.float16), "rows-of-a-table": ("INT64", np.int64)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("repository")
    for name, model in NETWORKS.items():
        networks.save(model, root, name)
    with Server(root, ["batching.latency_objective_ms=20000", "server.lame_duck_seconds=0"]) as running:
        yield running


def values(name: str, number: int) -> NDArray[Any]:
    """The input of one request, of one row to three."""
    generator = np.random.default_rng((number, len(name)))
    rows = 1 + number % 3
    if name == "rows-of-a-table":
        return generator.integers(0, 10, rows)
    pixels = name in ("picture-of-any-size", "class-of-each-pixel")
    shape = (rows, 3, 9, 7 + number % 2) if pixels else (rows, 7 if name == "half" else 4)
    return generator.uniform(0, 1, shape).astype(TYPES.get(name, ("FP32", np.float32))[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_to_many_callers_are_those_of_each_alone(server: Server, name: str) -> None:
    requests = [infer_request(name, values(name, number), "x", TYPES.get(name, ("FP32",))[0]) for number in range(32)]
    with grpc.insecure_channel(server.grpc) as channel:
        infer = method(channel, "ModelInfer")
        alone = [outputs(infer(request)) for request in requests]
        with ThreadPoolExecutor(CALLERS) as callers:
            together = list(callers.map(lambda request: outputs(infer(request)), requests * 3))
    for number, found in enumerate(together):
        wanted = alone[number % len(requests)]
        assert found.keys() == wanted.keys()
        for output, one in wanted.items():
            np.testing.assert_allclose(found[output], one, rtol=1e-5, atol=1e-6)


def test_who_runs_apart_is_listed_with_the_reason_and_counted(server: Server) -> None:
    with Client(server.grpc) as client:
        reasons = {model.model: model.reason for model in client.models()}
    apart = {name for name, reason in reasons.items() if reason.startswith("requests run one at a time: ")}
    assert apart == set(networks.first_sides())
    assert server.total("convoy_model_batched") == len(networks.independent())
    assert server.total("convoy_model_ready") == len(NETWORKS)


def test_request_may_be_as_long_as_it_likes_where_its_first_side_is_no_batch(server: Server) -> None:
    long = np.ones((500, 4), np.float32)
    with grpc.insecure_channel(server.grpc) as channel:
        found = outputs(method(channel, "ModelInfer")(infer_request("sum-over-time", long, "x", "FP32")))
    np.testing.assert_array_equal(found["y"], np.cumsum(long, axis=0))


def test_wrong_promise_of_independence_is_found_out_by_the_first_batch(tmp_path: Path) -> None:
    networks.save(networks.first_sides()["one-row"], tmp_path, "one-row")
    (tmp_path / "one-row" / "model.toml").write_text("batched = true\n")
    requests = [infer_request("one-row", np.full((2, 4), number, np.float32), "x", "FP32") for number in range(16)]
    # Requests wait for each other: otherwise, by chance, none might share a batch with another.
    waiting = ["batching.policy=timeout", "batching.max_queue_delay_ms=1000"]
    with (
        Server(tmp_path, ["server.lame_duck_seconds=0", *waiting]) as running,
        grpc.insecure_channel(running.grpc) as channel,
        ThreadPoolExecutor(CALLERS) as callers,
    ):
        infer = method(channel, "ModelInfer")
        for _ in range(3):
            answers = list(callers.map(lambda request: outputs(infer(request))["y"], requests))
            for number, found in enumerate(answers):
                np.testing.assert_array_equal(found, [[number] * 4])
        running.wait_for_log("model one-row version 1 runs one request at a time: output 'y' has shape [1, 4] for")
        with Client(running.grpc) as client:
            _wait_until(lambda: client.models()[0].max_batch_size == 1)
            (model,) = client.models()
        assert "one at a time" in model.reason
