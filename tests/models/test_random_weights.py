"""Random weights of a deep network tell images apart and do not blow rounding up."""

import pytest
import torch
from torch import nn

from convoy.models.blocks import ConvNorm2d
from convoy.models.random_weights import randomise

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
