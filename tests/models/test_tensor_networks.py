"""Waveforms and clips from end to end: told apart by their order in time, exported, and served over ModelInfer."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convoy.models import checkpoint
from convoy.models.data.dataset import DataSet, Split, Target
from convoy.models.data.registry import DATA, data_set
from convoy.models.evaluation.evaluate import evaluate_file
from convoy.models.export.export import Exported, export
from convoy.models.registry import ARCHITECTURES
from convoy.models.training.run import RunFolder, Settings
from convoy.models.training.train import train
from convoy.service import metadata
from convoy.service.metadata import TensorInput
from convoy.service.pb import inference_pb2 as pb
from tests.service.calls import infer_request, method, outputs, reason
from tests.service.running import Server

pytestmark = [pytest.mark.trained, pytest.mark.timeout(600)]

NETWORKS = {"conv1d": "gait", "conv3d": "motions"}
TIME = {"conv1d": 1, "conv3d": 0}  # the axis of time in one tensor
DATATYPES = {"float32": "FP32", "uint8": "UINT8"}


class Trained:
    """Each network is trained with the defaults, and exported, once it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.exported: dict[str, Exported] = {}

    def checkpoint(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            recipe = ARCHITECTURES[name].recipe
            train(Settings(architecture=name, arguments={}, data=NETWORKS[name], recipe=recipe, seed=0), path)
        return RunFolder(path).chosen()

    def export(self, name: str) -> Exported:
        if name not in self.exported:
            self.exported[name] = export(self.checkpoint(name), self.repository)
        return self.exported[name]


class Disordered:
    """A split whose tensors have lost their order in time."""

    def __init__(self, split: Split, axis: int) -> None:
        self.split, self.axis = split, axis

    def __len__(self) -> int:
        return len(self.split)

    def size(self, index: int) -> tuple[int, ...]:
        return self.split.size(index)

    def __getitem__(self, index: int) -> tuple[NDArray[np.generic], Target]:
        values, target = self.split[index]
        order = np.random.default_rng(index).permutation(values.shape[self.axis])
        return values.take(order, self.axis), target


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("tensors"))


@pytest.fixture(scope="module")
def channel(trained: Trained) -> Iterator[grpc.Channel]:
    for name in NETWORKS:
        trained.export(name)
    with (
        Server(trained.repository, ["server.lame_duck_seconds=0"]) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        yield channel


@pytest.mark.parametrize("name", NETWORKS)
def test_network_tells_95_percent_of_held_out_data(name: str, trained: Trained) -> None:
    evaluation = evaluate_file(trained.checkpoint(name))
    assert evaluation.images >= 250
    assert evaluation.scores["top1"] >= 0.95


@pytest.mark.parametrize("name", NETWORKS)
def test_network_tells_little_where_the_order_in_time_is_lost(
    name: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_set(NETWORKS[name])

    def disordered() -> DataSet:
        return replace(data, split=lambda split: Disordered(data.split(split), TIME[name]))

    monkeypatch.setitem(DATA, data.name, disordered)
    assert evaluate_file(trained.checkpoint(name)).scores["top1"] < 0.5


def test_a_clip_played_backwards_shows_the_opposite_motion(trained: Trained) -> None:
    description, network = checkpoint.load(trained.checkpoint("conv3d"))
    split = description.held_out()
    opposite = {"left": "right", "up": "down", "grow": "shrink"}
    opposite |= {second: first for first, second in opposite.items()} | {"turn": "turn"}
    clips = np.stack([split[index][0][::-1] for index in range(len(split))])
    with torch.inference_mode():
        answers = network(description.normalisation()(torch.from_numpy(clips))).argmax(dim=1)
    expected = [opposite[description.labels[int(split[index][1])]] for index in range(len(split))]
    found = [description.labels[int(answer)] for answer in answers]
    assert np.mean([one == other for one, other in zip(found, expected, strict=True)]) >= 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_exported_file_says_what_tensor_it_takes(name: str, trained: Trained) -> None:
    document = trained.export(name).document
    assert document.input is None
    assert document.tensor == data_set(NETWORKS[name]).tensor
    assert document.labels == data_set(NETWORKS[name]).labels
    assert document.parity is not None
    assert document.parity.max_abs_difference <= 1e-4
    assert document.parity.top1_agreement == 1
    assert document.provenance is not None
    assert document.provenance.metrics["top1"] >= 0.95


@pytest.mark.parametrize("name", NETWORKS)
def test_clients_are_told_what_tensor_it_takes(name: str, channel: grpc.Channel, trained: Trained) -> None:
    found = method(channel, "ModelMetadata")(pb.ModelMetadataRequest(name=name))
    tensor = _tensor(trained.export(name))
    shape = [-1, *(-1 if axis.size is None else axis.size for axis in tensor.axes)]
    (declared,) = found.inputs
    assert (declared.name, declared.datatype, list(declared.shape)) == (tensor.name, DATATYPES[tensor.dtype], shape)
    document = metadata.decode(dict(found.properties))
    assert document is not None
    assert document.tensor == tensor


@pytest.mark.parametrize("name", NETWORKS)
def test_served_network_answers_as_pytorch_does(name: str, channel: grpc.Channel, trained: Trained) -> None:
    description, network = checkpoint.load(trained.checkpoint(name))
    tensor, split = _tensor(trained.export(name)), description.held_out()
    infer = method(channel, "ModelInfer")
    shapes = set()
    for first in (0, 5, 10):  # three lengths of the waveforms
        values = np.stack([split[index][0] for index in range(first, first + 5)])
        shapes.add(values.shape)
        answer = outputs(infer(infer_request(name, values, tensor.name, DATATYPES[tensor.dtype])))
        with torch.inference_mode():
            expected = network(description.normalisation()(torch.from_numpy(values))).softmax(dim=1).numpy()
        np.testing.assert_allclose(answer[metadata.PROBABILITIES], expected, atol=1e-4)
    assert len(shapes) == (3 if tensor.free else 1)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [("conv1d", (1, 2, 128), "want [-1, 3, -1]"), ("conv3d", (1, 4, 32, 32, 3), "want [-1, 8, 32, 32, 3]")],
)
def test_tensor_of_another_shape_is_refused(
    name: str, shape: tuple[int, ...], words: str, channel: grpc.Channel, trained: Trained
) -> None:
    tensor = _tensor(trained.export(name))
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "ModelInfer")(
            infer_request(name, np.zeros(shape, tensor.dtype), tensor.name, DATATYPES[tensor.dtype])
        )
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()
    assert reason(caught.value) == "BAD_TENSOR"


def _tensor(exported: Exported) -> TensorInput:
    assert exported.document.tensor is not None
    return exported.document.tensor
