"""Maxout pools across channels, and no kernel grows beyond its norm."""

import pytest
import torch
from torch.nn import functional as F

from convoy.models import registry
from convoy.models.classification.maxout import MAX_NORM, MaxoutConv2d, MaxoutLinear
from convoy.models.errors import BadTraining


def test_a_map_is_the_largest_of_its_pieces() -> None:
    layer = MaxoutConv2d(2, 3, 3, pieces=4, padding=1).eval()
    x = torch.randn(2, 2, 5, 6)
    linear = F.conv2d(x, layer.weight, layer.bias, padding=1)
    expected = torch.stack([linear[:, 4 * unit : 4 * unit + 4].max(dim=1).values for unit in range(3)], dim=1)
    torch.testing.assert_close(layer(x), expected)


def test_a_dense_unit_is_the_largest_of_its_pieces() -> None:
    layer = MaxoutLinear(7, 3, pieces=2).eval()
    x = torch.randn(4, 7)
    linear = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), torch.maximum(linear[:, 0::2], linear[:, 1::2]))


def test_two_pieces_can_be_a_rectifier_and_an_absolute_value() -> None:
    layer = MaxoutLinear(1, 2, pieces=2).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.0], [1.0], [-1.0]]))
        layer.bias.zero_()
    x = torch.tensor([[-3.0], [0.0], [2.0]])
    assert layer(x).tolist() == [[0, 3], [0, 0], [2, 2]]


def test_training_cuts_long_kernels_to_the_largest_norm_and_leaves_short_ones() -> None:
    layer = MaxoutConv2d(2, 2, 3, pieces=2)
    with torch.no_grad():
        layer.weight[0].mul_(1e3)
    before = layer.weight.detach().clone()
    layer.eval()(torch.zeros(1, 2, 5, 5))
    assert torch.equal(layer.weight, before)
    layer.train()(torch.zeros(1, 2, 5, 5)).sum().backward()
    norms = layer.weight.detach().flatten(1).norm(dim=1)
    assert float(norms[0]) == pytest.approx(MAX_NORM, rel=1e-4)
    torch.testing.assert_close(layer.weight[0] / norms[0], before[0] / before[0].norm())
    assert torch.equal(layer.weight[1:], before[1:])


def test_answers_do_not_change_outside_training() -> None:
    network = registry.build("maxout", channels=1, classes=10).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


def test_width_and_pieces_are_arguments() -> None:
    network = registry.build("maxout", 1, 10, {"width": 2, "pieces": 3}, size=(20, 40))
    assert network.get_parameter("features.conv1.weight").shape == (6, 1, 5, 5)
    assert network(torch.zeros(2, 1, 20, 40)).shape == (2, 10)
    with pytest.raises(BadTraining, match="maxout: pool3 has a 3x3 window, but its input is 2x7 left"):
        registry.build("maxout", 1, 10, size=(12, 32))
