"""Branches are aligned at their ends, as Keras lists their layers."""

from torch import nn

from convoy.models.blocks import Branches, ConvNorm2d
from convoy.models.pretrained.keras import by_depth


def test_layers_farther_from_the_end_come_first_and_equals_in_the_branches_order() -> None:
    short, pooled = ConvNorm2d(8, 8, 1), ConvNorm2d(8, 8, 1)
    first, second = ConvNorm2d(8, 8, 1), ConvNorm2d(8, 8, 3)
    stem, last = nn.Conv2d(3, 8, 3), nn.Linear(24, 2)
    branches = Branches(short, nn.Sequential(first, second), nn.Sequential(nn.AvgPool2d(3), pooled))
    network = nn.Sequential(stem, branches, nn.ReLU(), nn.Flatten(), last)
    beside = [short.conv, second.conv, pooled.conv, short.norm, second.norm, pooled.norm]
    assert by_depth(network) == [stem, first.conv, first.norm, *beside, last]


def test_fork_within_a_branch_is_one_layer_farther_from_the_end() -> None:
    short, trunk = ConvNorm2d(8, 8, 1), ConvNorm2d(8, 8, 1)
    left, right = ConvNorm2d(8, 8, (1, 3)), ConvNorm2d(8, 8, (3, 1))
    network = Branches(short, nn.Sequential(trunk, Branches(left, right)))
    order = [trunk.conv, trunk.norm, left.conv, right.conv, short.conv, left.norm, right.norm, short.norm]
    assert by_depth(network) == order
