"""A real server of files that are in no repository."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests.service import networks
from tests.service.running import Server

PIXELS = np.zeros((networks.SIDE, networks.SIDE), np.uint8)
VARIABLES = {"CONVOY_LIMITS__MAX_IMAGES": "2", "CONVOY_PORT": "tcp://10.0.0.7:8001"}  # as Kubernetes sets the second
PIXELS.flat[3::10] = 255  # class 3, "d"


def save(file: Path, *, data: str = "", shift: int = 0) -> Path:
    """A classifier; with `data`, its weights are in a file of that name beside it."""
    incoming = file.with_name(f".{file.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    model = networks.classifier(shift=shift)
    if data:
        onnx.save(model, file, save_as_external_data=True, location=data, size_threshold=0)
    else:
        onnx.save(model, incoming)
        incoming.replace(file)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    alone = save(folder / "My Letters.onnx")
    apart = save(folder / "data" / "net.onnx", data="weights.bin")
    save(folder / "models" / "1" / "model.onnx", shift=1)
    leading = save(folder / "leading" / "net.onnx", data="net.onnx.data")
    (folder / "leading" / "net.onnx.data").rename(folder / "elsewhere.data")
    (folder / "leading" / "net.onnx.data").symlink_to(folder / "elsewhere.data")
    models = [f"apart={apart}", f"mounted={folder / 'models'}", f"leading={leading}"]
    running = Server(
        folder, serving=[str(alone), *(word for model in models for word in ("--model", model))], environment=VARIABLES
    )
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc) as client:
        yield client


def best(client: Client, model: str) -> str:
    return client.classify(PIXELS, model=model).labels[0].name


@pytest.mark.parametrize(("model", "label"), [("my-letters", "d"), ("apart", "d"), ("mounted", "e")])
def test_files_by_themselves_are_served(client: Client, model: str, label: str) -> None:
    assert best(client, model) == label


def test_data_beside_a_file_are_read_only_in_its_folder(client: Client) -> None:
    row = next(row for row in client.models() if row.model == "leading")
    assert (row.state, row.reason) == (
        "unavailable",
        "net.onnx.data is a link out of the repository: copy the file to its place",
    )


def test_replaced_file_serves_without_a_restart(server: Server, client: Client, folder: Path) -> None:
    assert best(client, "my-letters") == "d"
    before = len(server.log)
    save(folder / "My Letters.onnx", shift=2)
    server.wait_for_log("model my-letters version 1 serves", after=before)
    assert best(client, "my-letters") == "f"


def test_nothing_was_written_beside_the_files(client: Client, folder: Path) -> None:
    assert best(client, "apart") == "d"
    # A folder of versions is one of a repository; what is by itself leaves no trace.
    written = {str(file.relative_to(folder)) for file in folder.glob("**/profile.json")}
    assert written == {"models/1/profile.json"}


def test_variable_in_the_environment_is_in_force(client: Client) -> None:
    assert len(client.classify_many([PIXELS] * 2, model="apart")) == 2
    with pytest.raises(ServerError, match="3 images, want 1 to 2"):
        client.classify_many([PIXELS] * 3, model="apart")


def test_metrics_show_what_cannot_be_served_and_each_process(server: Server) -> None:
    assert server.wait_for_total("convoy_model_ready", 0, model="leading", provider="") == 0
    series = {
        (name, labels["process"])
        for name, labels in ((name, dict(labels)) for name, labels in server.samples())
        if "process" in labels and name.startswith("convoy_process")
    }
    assert series == {
        (f"convoy_process_{name}", process)
        for name in ("cpu_seconds_total", "resident_bytes")
        for process in ("supervisor", "engine", "frontend")
    }
    assert ("convoy_model_ready", "leading") in {(name, dict(labels).get("model")) for name, labels in server.samples()}
