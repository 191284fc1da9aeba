"""DenseNets are those of the paper's table 1."""

import pytest
import torch
from torch import nn

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.densenet import DenseLayer, DenseNet


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return registry.build(name, channels=3, classes=1000)


@pytest.mark.parametrize(
    ("name", "total"), [("densenet121", 8_062_504), ("densenet169", 14_307_880), ("densenet201", 20_242_984)]
)
def test_network_has_the_published_number_of_parameters(name: str, total: int) -> None:
    assert count(on_meta(name)).total == total


@pytest.mark.parametrize(("name", "layers"), [("densenet121", 121), ("densenet169", 169), ("densenet201", 201)])
def test_name_counts_the_layers_with_weights(name: str, layers: int) -> None:
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in on_meta(name).modules()) == layers


def test_blocks_grow_and_transitions_halve_as_in_the_papers_table() -> None:
    network = on_meta("densenet121")
    assert isinstance(network, DenseNet)
    x = network.stem(torch.empty(1, 3, 224, 224, device="meta"))
    shapes = [tuple(x.shape[1:])]
    for part in network.body:
        x = part(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (64, 56, 56),
        (256, 56, 56),
        (128, 28, 28),
        (512, 28, 28),
        (256, 14, 14),
        (1024, 14, 14),
        (512, 7, 7),
        (1024, 7, 7),
    ]


def test_layer_hands_on_what_it_was_given_and_its_own_maps_behind() -> None:
    layer = DenseLayer(8).eval()
    x = torch.randn(1, 8, 5, 5)
    y = layer(x)
    assert y.shape == (1, 8 + 32, 5, 5)
    assert torch.equal(y[:, :8], x)
