"""What lies in the repository, and what changes in it while the server runs."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest

from convoy.service import metadata
from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from convoy.service.pb import inference_pb2 as pb
from tests.service import networks
from tests.service.calls import method
from tests.service.running import Server
from tests.service.test_overload import _wait_until
from tests.service.test_vision import grey


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Server]:
    """A server on a repository of its own with one model."""
    networks.save(networks.classifier(), tmp_path, "letters")
    with Server(tmp_path, ["server.lame_duck_seconds=0"]) as server:
        yield server


def index(server: Server) -> dict[tuple[str, str], tuple[str, str]]:
    with grpc.insecure_channel(server.grpc) as channel:
        found = method(channel, "RepositoryIndex")(pb.RepositoryIndexRequest())
    return {(entry.name, entry.version): (entry.state, entry.reason) for entry in found.models}


def version(server: Server, model: str = "letters") -> int:
    with Client(server.grpc) as client:
        return client.classify(grey(1), model).version


def test_a_new_version_is_picked_up_and_no_request_fails_while_it_takes_over(live: Server) -> None:
    stop = threading.Event()
    versions: list[int] = []
    failures: list[Exception] = []

    def call() -> None:
        with Client(live.grpc) as client:
            while not stop.is_set():
                try:
                    versions.append(client.classify(grey(1), "letters").version)
                except ServerError as error:
                    failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        _wait_until(lambda: versions)
        for number in (2, 3):
            networks.save(networks.classifier(scale=number), live.repository, "letters", number)
            # Its trial has a lower priority than the callers.
            _wait_until(lambda wanted=number: versions[-1:] == [wanted])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert set(versions) == {1, 2, 3}
    # For a moment, two versions serve.
    _wait_until(lambda: index(live)["letters", "1"] == ("UNAVAILABLE", "version 3 serves"))
    assert live.total("convoy_model_ready", model="letters", version="3") == 1
    assert live.total("convoy_model_ready", model="letters", version="1") == 0


def test_a_new_model_is_picked_up_and_a_removed_one_is_unknown(live: Server) -> None:
    networks.save(networks.segmenter(), live.repository, "colours")
    live.wait_for_log("model colours version 1 serves")
    with Client(live.grpc) as client:
        _wait_until(lambda: len(client.models()) == 2)
        assert client.segment(np.zeros((4, 4, 3), np.uint8), "colours").mask.shape == (4, 4)
        shutil.rmtree(live.repository / "colours")
        live.wait_for_log("model colours version 1 no longer serves")
        _wait_until(lambda: len(client.models()) == 1)
        with pytest.raises(ServerError, match="model 'colours' is unknown"):
            client.segment(np.zeros((4, 4, 3), np.uint8), "colours")


def test_a_corrupt_new_version_is_not_served_and_the_one_before_goes_on(live: Server) -> None:
    networks.save_bytes(b"this is no network", live.repository, "letters", 2)
    live.wait_for_log("model letters version 2 is not served")
    assert version(live) == 1

    def row() -> tuple[str, str]:
        return index(live).get(("letters", "2"), ("", ""))

    # It is logged before front ends know.
    _wait_until(lambda: row()[0] == "UNAVAILABLE" and "it is no ONNX file" in row()[1])
    assert str(live.repository) not in row()[1]


def test_a_file_that_is_still_being_copied_serves_once_it_is_whole(live: Server) -> None:
    data = networks.classifier(scale=2).SerializeToString()
    folder = live.repository / "letters" / "2"
    folder.mkdir()
    with (folder / "model.onnx").open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        live.wait_for_log("model letters version 2 is not served")
        assert version(live) == 1
        file.write(data[len(data) // 2 :])
    _wait_until(lambda: version(live) == 2)


def test_what_cannot_be_served_is_in_the_index_and_the_log_and_the_rest_serves(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "good")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "corrupt" / "1").mkdir(parents=True)
    (tmp_path / "corrupt" / "1" / "model.onnx").write_bytes(b"\x08" * 100)
    wrong = networks.classifier()
    onnx.helper.set_model_props(wrong, {metadata.KEY: '{"task": "poetry"}'})
    networks.save(wrong, tmp_path, "wrong-metadata")
    few = networks.classifier(labels=["a", "b"])
    networks.save(few, tmp_path, "few-labels")
    networks.save(networks.classifier(), tmp_path, "wrong-config")
    (tmp_path / "wrong-config" / "model.toml").write_text("max_batchsize = 3\n")
    networks.save(networks.classifier(), tmp_path, "falls-back", 1)
    (tmp_path / "falls-back" / "2").mkdir()
    (tmp_path / "falls-back" / "2" / "model.onnx").write_bytes(b"")
    (tmp_path / "Not A Model" / "1").mkdir(parents=True)
    (tmp_path / "good" / "notes").mkdir()
    with Server(tmp_path, ["server.lame_duck_seconds=0"]) as server:
        found: dict[tuple[str, str], tuple[str, str]] = {}

        def settled() -> bool:
            found.update(index(server))
            return "LOADING" not in {state for state, _ in found.values()}

        _wait_until(settled)  # a server is ready without files whose trial takes long, as on a busy machine
        assert {key: state for key, (state, _) in found.items()} == {
            ("good", "1"): "READY",
            ("empty", "1"): "UNAVAILABLE",
            ("corrupt", "1"): "UNAVAILABLE",
            ("wrong-metadata", "1"): "UNAVAILABLE",
            ("few-labels", "1"): "UNAVAILABLE",
            ("wrong-config", "1"): "UNAVAILABLE",
            ("falls-back", "1"): "READY",
            ("falls-back", "2"): "UNAVAILABLE",
        }
        assert found["empty", "1"][1] == "model.onnx is missing"
        assert "poetry" in found["wrong-metadata", "1"][1]
        assert "requires" in found["few-labels", "1"][1]
        assert "max_batchsize" in found["wrong-config", "1"][1]
        for name in ("empty", "corrupt", "wrong-metadata", "few-labels", "wrong-config", "falls-back"):
            server.wait_for_log(f"model {name} ")
        with Client(server.grpc) as client:
            assert client.classify(grey(1), "good").version == 1
            assert client.classify(grey(1), "falls-back").version == 1
            with pytest.raises(ServerError, match="not served"):
                client.classify(grey(1), "corrupt")


def test_a_models_own_configuration_bounds_its_batches(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    (tmp_path / "letters" / "model.toml").write_text("max_batch_size = 3\n")
    with Server(tmp_path, ["server.lame_duck_seconds=0"]) as server, Client(server.grpc) as client:
        assert client.models()[0].max_batch_size == 3
        answers = client.classify_many([grey(seed) for seed in range(20)], "letters")
        assert max(answer.timings.batch_size for answer in answers if not isinstance(answer, ServerError)) <= 3


def test_an_empty_repository_is_live_but_not_ready_until_a_model_comes(tmp_path: Path) -> None:
    with Server(tmp_path, ["server.lame_duck_seconds=0"], wait=False) as server:
        server.wait_for_log("not ready: no model serves: the repository contains no model")
        assert server.get(f"{server.http}/readyz")[0] == 503
        assert server.get(f"{server.http}/livez")[0] == 200
        networks.save(networks.classifier(), tmp_path, "letters")
        server.wait_for_log("ready")
        assert server.get(f"{server.http}/readyz") == (200, '{"ready": true}\n')
        assert version(server) == 1
