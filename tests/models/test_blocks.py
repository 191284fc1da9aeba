"""Layers that networks share, and output sizes, are as their docstrings say."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from convoy.models.analysis.torch_reader import Count, count
from convoy.models.blocks import Conv2dSame, ConvNorm2d, ShiftNorm2d, output_size
from convoy.models.graph import Pixels


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("side", [1, 4, 7, 8])
def test_same_padding_gives_the_ceiling(side: int, kernel: int, stride: int) -> None:
    answer = Conv2dSame(1, 2, kernel, stride)(torch.zeros(1, 1, side, side + 1))
    assert answer.shape == (1, 2, -(-side // stride), -(-(side + 1) // stride))


def test_odd_padding_is_at_the_bottom_and_the_right() -> None:
    layer = Conv2dSame(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(layer.weight)
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Windows start at 0 and 2; the second one reaches a row or column past the end.
    expected = [[image[0, 0, r : r + 3, c : c + 3].sum().item() for c in (0, 2)] for r in (0, 2)]
    assert layer(image)[0, 0].tolist() == expected


def test_normalisation_without_scale_only_shifts() -> None:
    layer = ShiftNorm2d(2, eps=0.0).eval()
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.bias is not None
    layer.running_mean.copy_(torch.tensor([1.0, 2.0]))
    layer.running_var.copy_(torch.tensor([4.0, 9.0]))
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -0.5]))
        assert layer(torch.tensor([3.0, 8.0]).reshape(1, 2, 1, 1)).flatten().tolist() == pytest.approx([1.5, 1.5])


def test_moving_statistics_count_as_fixed_parameters() -> None:
    assert count(ConvNorm2d(3, 8, 3)) == Count(trainable=3 * 8 * 9 + 2 * 8, fixed=2 * 8)
    assert count(ConvNorm2d(3, 8, 3, scale=False)).total == 3 * 8 * 9 + 3 * 8


def test_channels_reach_the_network_in_its_order() -> None:
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 1, 1, 3)
    mean, std = [0.1, 0.2, 0.3], [1.0, 0.5, 0.25]
    rgb = Pixels(mean, std)(image).flatten().tolist()
    bgr = Pixels(mean, std, "BGR")(image).flatten().tolist()
    assert rgb == pytest.approx([(10 / 255 - 0.1) / 1, (20 / 255 - 0.2) / 0.5, (30 / 255 - 0.3) / 0.25], abs=1e-6)
    assert bgr == pytest.approx(rgb[::-1], abs=1e-6)


LAYERS = nn.Sequential(
    OrderedDict(
        conv=nn.Conv2d(1, 2, (5, 3), stride=(3, 2), padding=(0, 1)),
        relu=nn.ReLU(),
        pool=nn.MaxPool2d(3, stride=2, padding=1),
        last=nn.Conv2d(2, 1, 2),
    )
)


@pytest.mark.parametrize("size", [(40, 17), (41, 18), (39, 64), (11, 9)])
def test_size_is_that_of_the_layers_answer(size: tuple[int, int]) -> None:
    assert output_size(LAYERS, size) == LAYERS(torch.zeros(1, 1, *size)).shape[2:]


def test_window_that_does_not_fit_is_refused_by_its_layer() -> None:
    with pytest.raises(ValueError, match="last has a 2x2 window, but its input is 1x5 left"):
        output_size(LAYERS, (5, 17))
    with pytest.raises(ValueError, match="conv has a 5x3 window"):
        output_size(LAYERS, (4, 17))
