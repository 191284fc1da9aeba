"""The classic digits network: two convolutions with pooling, and a dense classifier."""

import pytest
import torch
from torch.nn import functional as F

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.convpool import ConvPool
from convoy.models.errors import BadTraining


def test_parameters_are_431080_for_digits() -> None:
    with torch.device("meta"):
        network = registry.build("convpool", channels=1, classes=10)
    assert count(network) == (20 * 26 + 50 * 501 + 500 * 801 + 10 * 501, 0) == (431_080, 0)


def test_shapes_are_those_of_the_example() -> None:
    network = ConvPool()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("features.conv1", "features.pool1", "features.conv2", "features.pool2", "dense", "output"):
        network.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: shapes.__setitem__(name.split(".")[-1], tuple(out.shape[1:]))
        )
    network(torch.zeros(2, 1, 28, 28))
    assert shapes == {
        "conv1": (20, 24, 24),
        "pool1": (20, 12, 12),
        "conv2": (50, 8, 8),
        "pool2": (50, 4, 4),
        "dense": (500,),
        "output": (10,),
    }


def test_every_layer_but_the_output_is_rectified() -> None:
    network = ConvPool()
    image = torch.randn(2, 1, 28, 28)
    x = image
    for name in ("conv1", "conv2"):
        x = F.max_pool2d(network.get_submodule(f"features.{name}")(x).relu(), 2)
    assert torch.equal(network(image), network.output(network.dense(x.flatten(1)).relu()))


def test_dense_layer_follows_the_size() -> None:
    assert ConvPool(3, 4, size=(32, 17))(torch.zeros(2, 3, 32, 17)).shape == (2, 4)
    with pytest.raises(BadTraining, match="convpool: conv2 has a 5x5 window, but its input is 3x12 left"):
        registry.build("convpool", 1, 10, size=(10, 28))
