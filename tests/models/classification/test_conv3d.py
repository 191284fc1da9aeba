"""The network of clips and volumes is as large as the paper's, and fits any size it is built for."""

import math

import pytest
import torch

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.conv3d import STAGES, Conv3d, places


def test_parameters_are_those_of_the_paper() -> None:
    """78,409,573 without normalisation, whose four numbers a map are a departure."""
    with torch.device("meta"):
        network = Conv3d(channels=3, classes=101)
    maps = 64 * sum(sum(stage) for stage in STAGES)
    assert count(network).total == 78_409_573 + 4 * maps
    assert count(network).fixed == 2 * maps


def test_paper_s_sizes_stand_behind_each_pooling() -> None:
    """Figure 3 and section 3.1: time is left alone by the first pooling, and halved by the others."""
    with torch.device("meta"):
        network = Conv3d()
        x = torch.zeros(1, 3, 16, 112, 112)
        found = []
        for layer in network.features:
            x = layer(x)
            if isinstance(layer, torch.nn.MaxPool3d):
                found.append(tuple(x.shape[1:]))
    assert found == [(64, 16, 56, 56), (128, 8, 28, 28), (256, 4, 14, 14), (512, 2, 7, 7), (512, 1, 4, 4)]


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 17, 33), (8, 32, 32), (16, 31, 64)])
def test_dense_layers_fit_the_size_it_is_built_for(size: tuple[int, int, int]) -> None:
    network = Conv3d(channels=2, classes=4, size=size, width=2).eval()
    maps = network.features(torch.randn(2, 2, *size))
    assert math.prod(maps.shape[2:]) == places(size)
    assert network(torch.randn(2, 2, *size)).shape == (2, 4)


def test_registry_builds_it_for_the_clips_it_is_told_of() -> None:
    network = registry.build("conv3d", channels=1, classes=4, size=(4, 16, 24), arguments={"width": 2}).eval()
    assert network(torch.randn(3, 1, 4, 16, 24)).shape == (3, 4)
