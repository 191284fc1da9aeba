"""Every network of the registry exports, answers as PyTorch does, and is served; of siblings that differ in the number
of their blocks only, one."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from convoy.models import checkpoint, registry, zoo
from convoy.models.analysis.summary import inspect_file, totals
from convoy.models.blocks import ConvNorm2d
from convoy.models.data.builtin import generated as generated_data
from convoy.models.data.builtin.generated import generated
from convoy.models.export.export import Exported, export
from convoy.models.graph import served
from convoy.models.registry import ARCHITECTURES, Argument
from convoy.models.zoo import randomise
from convoy.service.client.client import Client
from convoy.service.metadata import InputSpec, Task, TensorInput
from tests.models.segmenters import assert_answers
from tests.reliability.servers import until
from tests.service.calls import infer_request, method, outputs
from tests.service.running import Server

# A server with all of them may take four minutes to load them, see below.
pytestmark = pytest.mark.timeout(600)

CLASSES = 10
IMAGES = 16  # on which each graph is compared with PyTorch at its export; 64 are usual
LARGEST = 96  # pixels: networks for larger images are built for this size, where they permit it
# What is smaller here than the paper has it, so that all of them are exported within minutes.
ARGUMENTS: dict[str, dict[str, Argument]] = {
    "fcn32s": {"width": 8},
    "fcn16s": {"width": 8},
    "fcn8s": {"width": 8},
    "segnet": {"width": 8},
    "deeplab_v3": {"width": 8},
}
SIBLINGS = {
    "vgg19": "vgg16",
    "resnet34": "resnet18",
    "resnet101": "resnet50",
    "densenet169": "densenet121",
    "densenet201": "densenet121",
}
# Where most rounding adds up, and which take longest.
DEEPEST = ["resnet152", "inception_resnet_v2"]
TRIED = [name for name in ARCHITECTURES if name not in SIBLINGS and name not in DEEPEST]
EACH = [*TRIED, *(pytest.param(name, marks=pytest.mark.soak) for name in DEEPEST)]


class Zoo:
    """A repository into which each architecture is exported once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.exported: dict[str, Exported] = {}

    def export(self, name: str) -> Exported:
        if name not in self.exported:
            path = self.folder / "untrained.ckpt"
            zoo.untrained(name, path, CLASSES, _size(name), ARGUMENTS.get(name))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(generated_data, "COUNT", IMAGES)
                self.exported[name] = export(path, self.repository)
        return self.exported[name]


def _size(name: str) -> tuple[int, int] | None:
    spec = ARCHITECTURES[name].input
    large = isinstance(spec, InputSpec) and spec.height is not None and spec.height > LARGEST
    return (LARGEST, LARGEST) if large else None


def _named(task: Task, kind: type[InputSpec] | type[TensorInput] = InputSpec) -> list[str]:
    rows = ((name, ARCHITECTURES[name]) for name in TRIED)
    return [name for name, row in rows if row.task == task and isinstance(row.input, kind)]


def run(exported: Exported, image: NDArray[np.generic], name: str = "image") -> list[NDArray[np.generic]]:
    """The exported file's outputs for one image, or tensor, straight from onnxruntime."""
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    answers: list[NDArray[np.generic]] = session.run(None, {name: image[None]})
    return answers


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def server(exports: Zoo) -> Iterator[Server]:
    """One that has all of them."""
    for name in TRIED:
        exports.export(name)
    with Server(exports.repository, ["server.lame_duck_seconds=0"], wait=False) as server:
        server.wait_for_log("ready", seconds=240)
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc) as client:
        # A large network that took too long beside other tests is tried again, after the server says that it is ready.
        assert until(lambda: all(model.state == "ready" for model in client.models()), 120)
        yield client


@pytest.mark.parametrize("name", EACH)
def test_exported_network_answers_as_pytorch_does(name: str, exports: Zoo) -> None:
    parity = exports.export(name).document.parity
    assert parity is not None
    assert parity.max_abs_difference <= 1e-4
    if ARCHITECTURES[name].task == "segmentation":
        assert parity.mask_agreement is not None
        assert parity.mask_agreement >= 0.9999
    else:
        assert parity.top1_agreement == 1


@pytest.mark.parametrize("name", EACH)
def test_exported_network_costs_what_its_architecture_does(name: str, exports: Zoo) -> None:
    expected = totals(name, _size(name), CLASSES, arguments=ARGUMENTS.get(name))
    assert inspect_file(exports.export(name).path).multiply_adds == expected.multiply_adds


@pytest.mark.parametrize("name", _named("classification"))
def test_classifier_is_served(name: str, exports: Zoo, client: Client) -> None:
    exported = exports.export(name)
    image, _ = generated(exported.document.image)[0]
    (expected,) = run(exported, image)[0]
    result = client.classify(image, model=name, top_k=CLASSES)
    served = {label.index: label.probability for label in result.labels}
    assert served == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-5)


@pytest.mark.parametrize("name", _named("segmentation"))
def test_segmenter_is_served(name: str, exports: Zoo, client: Client) -> None:
    exported = exports.export(name)
    image, _ = generated(exported.document.image)[1]
    multiple = exported.document.image.multiple
    height, width = image.shape[:2]
    assert height % 2 == width % 2 == 1
    padded = np.pad(image, ((0, -height % multiple), (0, -width % multiple), (0, 0)))
    (expected,) = run(exported, padded)[0]
    served = client.segment(image, model=name).mask
    assert served.shape == (height, width)
    assert (served == expected[:height, :width]).mean() >= 0.9999


@pytest.mark.parametrize("name", ["fcn8s", "segnet", "deeplab_v3"])
def test_exported_segmenter_answers_at_sizes_that_are_no_multiples(name: str, exports: Zoo, tmp_path: Path) -> None:
    exported = exports.export(name)
    # The same weights every time.
    zoo.untrained(name, tmp_path / "it.ckpt", CLASSES, _size(name), ARGUMENTS.get(name))
    description, network = checkpoint.load(tmp_path / "it.ckpt")
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert_answers(session, served("segmentation", description.normalisation(), network))


@pytest.mark.parametrize("name", _named("classification", TensorInput))
def test_network_of_tensors_is_served(name: str, exports: Zoo, server: Server) -> None:
    exported = exports.export(name)
    tensor = exported.document.tensor
    assert tensor is not None
    values, _ = generated(tensor)[0]
    (expected,) = run(exported, values, tensor.name)[0]
    with grpc.insecure_channel(server.grpc) as channel:
        datatype = {"float32": "FP32", "uint8": "UINT8"}[tensor.dtype]
        answer = method(channel, "ModelInfer")(infer_request(name, values[None], tensor.name, datatype))
    np.testing.assert_allclose(outputs(answer)["probabilities"][0], expected, atol=1e-5)


def test_each_network_is_served_in_one_of_these_ways() -> None:
    ways = [_named("classification"), _named("segmentation"), _named("classification", TensorInput)]
    assert sorted(name for names in ways for name in names) == sorted(TRIED)


def kinds(name: str) -> set[tuple[object, ...]]:
    """The kinds of layers of a network, whatever their number and their maps."""
    with torch.device("meta"):
        layers = registry.build(name, 3, CLASSES, registry.merged(name, {}), _size(name)).modules()
    told = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "eps", "p")
    return {(type(layer), *(getattr(layer, what, None) for what in told)) for layer in layers}


@pytest.mark.parametrize(("name", "tried"), SIBLINGS.items())
def test_sibling_that_is_not_tried_is_made_of_the_same_layers_as_one_that_is(name: str, tried: str) -> None:
    assert kinds(name) == kinds(tried)


def test_networks_with_other_blocks_are_no_siblings() -> None:
    assert kinds("resnet18") != kinds("resnet50")
    assert kinds("resnet50") != kinds("densenet121")


DEPTH = 40


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network(images: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(*(ConvNorm2d(8, 8, 3, padding=1) for _ in range(DEPTH)))
    randomise(network, images)
    return network


@torch.inference_mode()
def test_every_layer_answers_differently_to_different_images(network: nn.Module, images: torch.Tensor) -> None:
    x = images
    for layer in network.children():
        x = layer(x)
        assert x.std(dim=0).mean() > 0.3


@torch.inference_mode()
def test_small_difference_stays_small_through_forty_layers(network: nn.Module, images: torch.Tensor) -> None:
    step = 1e-3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    network, images, step = network.double(), images.double(), step.double()
    change = network(images + step) - network(images)
    assert change.std() / network(images).std() < 30 * step.std() / images.std()
