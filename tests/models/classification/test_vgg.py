"""VGG is columns D and E of the paper's table."""

import pytest
import torch
from torch import nn

from convoy.models import registry
from convoy.models.analysis.torch_reader import Count, count
from convoy.models.classification.vgg import VGG
from convoy.models.errors import BadTraining


def on_meta(name: str, classes: int = 1000, size: tuple[int, int] | None = None) -> nn.Module:
    with torch.device("meta"):
        return registry.build(name, channels=3, classes=classes, size=size)


@pytest.mark.parametrize(("name", "numbers"), [("vgg16", 138_357_544), ("vgg19", 143_667_240)])
def test_network_has_the_published_number_of_parameters(name: str, numbers: int) -> None:
    assert count(on_meta(name)) == Count(trainable=numbers, fixed=0)


@pytest.mark.parametrize(("name", "layers"), [("vgg16", 16), ("vgg19", 19)])
def test_name_counts_the_layers_with_weights(name: str, layers: int) -> None:
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in on_meta(name).modules()) == layers


def test_stacks_have_the_papers_widths_and_halve_the_sides() -> None:
    network = on_meta("vgg16")
    assert isinstance(network, VGG)
    x = torch.empty(1, 3, 224, 224, device="meta")
    shapes = []
    for stack in network.features:
        x = stack(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]


@pytest.mark.parametrize("size", [(64, 64), (33, 95)])
def test_small_images_make_a_small_first_dense_layer(size: tuple[int, int]) -> None:
    network = on_meta("vgg16", classes=10, size=size)
    assert network(torch.empty(2, 3, *size, device="meta")).shape == (2, 10)
    cells = (size[0] // 32) * (size[1] // 32)
    assert sum(p.numel() for p in network.get_submodule("classifier.0").parameters()) == 4096 * (512 * cells + 1)


def test_image_too_small_for_five_poolings_is_refused() -> None:
    with pytest.raises(BadTraining, match="size is 31x64, want at least 32x32"):
        on_meta("vgg16", size=(31, 64))
