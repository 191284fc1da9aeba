"""A spatial pyramid takes maps of any size, bin by bin as the paper says, in PyTorch, in onnxruntime and served."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models import checkpoint, registry, zoo
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.spatial_pyramid import SpatialPyramid, SpatialPyramidNet
from convoy.models.export.export import Exported, export
from convoy.models.graph import served
from convoy.service.client.client import Client
from tests.service.running import Server

# (H, W) of images; with 1-pixel sides, and with the neighbours of multiples of what strides and bins divide by.
SIZES = [(1, 1), (1, 7), (5, 1), (3, 4), (15, 16), (17, 33), (31, 32), (64, 65), (97, 40)]


def by_region(maps: Tensor, bins: tuple[int, ...]) -> Tensor:
    """The pyramid as a loop over grids, maps and regions."""
    height, width = maps.shape[2:]
    found = []
    for n in bins:
        for channel in range(maps.shape[1]):
            for i in range(n):
                for j in range(n):
                    top, bottom = int(np.floor(i * height / n)), int(np.ceil((i + 1) * height / n))
                    left, right = int(np.floor(j * width / n)), int(np.ceil((j + 1) * width / n))
                    found.append(maps[:, channel, top:bottom, left:right].flatten(1).max(dim=1).values)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bins", [(1, 2, 4), (3,), (6, 1)])
def test_every_bin_holds_the_largest_value_of_its_region(size: tuple[int, int], bins: tuple[int, ...]) -> None:
    maps = torch.randn(2, 3, *size)
    pyramid = SpatialPyramid(bins)
    assert torch.equal(pyramid(maps), by_region(maps, bins))
    assert pyramid(maps).shape == (2, 3 * pyramid.places)


def test_regions_are_those_of_adaptive_pooling() -> None:
    maps = torch.randn(2, 3, 13, 10)
    pooled = [F.adaptive_max_pool2d(maps, n).flatten(1) for n in (1, 2, 4)]
    assert torch.equal(SpatialPyramid((1, 2, 4))(maps), torch.cat(pooled, dim=1))


def test_scaling_an_image_up_by_repeating_pixels_changes_no_bin() -> None:
    maps = torch.randn(1, 2, 8, 12)
    pyramid = SpatialPyramid((1, 2, 4))
    assert torch.equal(pyramid(maps.repeat_interleave(3, 2).repeat_interleave(2, 3)), pyramid(maps))


def test_dense_layers_take_any_size() -> None:
    network = registry.build("spatial_pyramid", channels=1, classes=7, arguments={"width": 2}).eval()
    assert isinstance(network, SpatialPyramidNet)
    assert isinstance(network.dense, nn.Linear)
    assert network.dense.in_features == 4 * 2 * (1 + 4 + 16)
    for size in SIZES:
        assert network(torch.zeros(2, 1, *size)).shape == (2, 7)
    spec = registry.input_spec("spatial_pyramid", network, "L")
    assert (spec.fit, spec.multiple, spec.height) == ("pad", 1, None)


def test_parameters_follow_from_the_width() -> None:
    def convolution(maps: int, wanted: int) -> int:
        return 9 * maps * wanted + 4 * wanted  # with the normalisation's scale, shift, mean and variance

    with torch.device("meta"):
        network = registry.build("spatial_pyramid", channels=3, classes=1000)
    convolutions = sum(map(convolution, (3, 16, 32, 32, 64), (16, 32, 32, 64, 64)))
    assert count(network).total == convolutions + 128 * (64 * 21 + 1) + 1000 * 129 == 371_544


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("pyramid")
    zoo.untrained("spatial_pyramid", folder / "it.ckpt", classes=5, arguments={"width": 4})
    return export(folder / "it.ckpt", folder / "repository")


def images() -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    # Blurred towards one colour each, so that the answers differ.
    colours = random.integers(0, 256, (len(SIZES), 1, 1, 3))
    noise = [random.integers(0, 256, (*size, 3)) for size in SIZES]
    return [((colour + pixels) // 2).astype(np.uint8) for colour, pixels in zip(colours, noise, strict=True)]


def offline(exported: Exported) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    return [session.run(["probabilities"], {"image": image[None]})[0][0] for image in images()]


def test_exported_graph_answers_images_of_any_size_as_pytorch_does(exported: Exported) -> None:
    path = Path(exported.path).parents[3] / "it.ckpt"
    description, network = checkpoint.load(path)
    module = served("classification", description.normalisation(), network)
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert [side if isinstance(side, int) else "free" for side in session.get_inputs()[0].shape] == ["free"] * 3 + [3]
    for image in images():
        batch = np.stack((image, image[::-1], image[:, ::-1]))
        with torch.inference_mode():
            expected = module(torch.from_numpy(batch.copy())).numpy()
        (answer,) = session.run(["probabilities"], {"image": batch})
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_one_server_answers_several_sizes(exported: Exported) -> None:
    expected = offline(exported)
    assert len({int(row.argmax()) for row in expected}) > 1 or np.ptp(np.stack(expected), axis=0).max() > 0.05
    repository = exported.path.parents[2]
    with Server(repository, ["server.lame_duck_seconds=0"]) as server, Client(server.grpc) as client:
        alone = [client.classify(image, "spatial_pyramid", top_k=5) for image in images()]
        together = client.classify_many(images(), "spatial_pyramid", top_k=5)
    for answer, one, row in zip(alone, together, expected, strict=True):
        for result in (answer, one):
            probabilities = {label.index: label.probability for label in result.labels}
            assert probabilities == pytest.approx(dict(enumerate(row.tolist())), abs=1e-5)
