"""Xception against its paper."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convoy.models.analysis.torch_reader import Count, count
from convoy.models.classification.xception import MaxPool2dSame, Module, SeparableConv2d, Xception


def test_parameters_are_those_of_table_3() -> None:
    with torch.device("meta"):
        assert count(Xception()) == Count(trainable=22_855_952, fixed=54_528)
    assert sum(Count(22_855_952, 54_528)) == 22_910_480


def test_flows_have_the_shapes_of_figure_5() -> None:
    with torch.device("meta"):
        network = Xception().eval()
        shapes = []
        for part in (*network.entry, *network.middle, *network.exit):
            part.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        assert network(torch.empty(2, 3, 299, 299)).shape == (2, 1000)
    assert shapes[:5] == [(32, 149, 149), (64, 147, 147), (128, 74, 74), (256, 37, 37), (728, 19, 19)]
    assert shapes[5:13] == [(728, 19, 19)] * 8
    assert shapes[13] == (1024, 10, 10)
    assert shapes[-1] == (2048, 10, 10)


def test_there_are_36_convolutions_beside_the_shortcuts() -> None:
    with torch.device("meta"):
        network = Xception()
    separable = [layer for layer in network.modules() if isinstance(layer, SeparableConv2d)]
    plain = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len(separable) == 34
    assert len(plain) - 2 * len(separable) == 2 + 4  # the first two, and a shortcut in each reducing module


def test_separable_convolution_is_a_dense_one_of_rank_one_kernels() -> None:
    layer = SeparableConv2d(3, 5)
    depthwise, pointwise = layer
    kernel = pointwise.weight * depthwise.weight[:, 0]  # (5, 3, 1, 1) * (3, 3, 3)
    image = torch.randn(2, 3, 7, 6)
    torch.testing.assert_close(layer(image), F.conv2d(image, kernel, padding=1))


@pytest.mark.parametrize("height", [3, 4, 7, 8])
@pytest.mark.parametrize("width", [5, 6])
def test_pooling_pads_an_even_side_at_its_end(height: int, width: int) -> None:
    image = torch.randn(1, 2, height, width)
    missing = [(-(-side // 2) - 1) * 2 + 3 - side for side in (width, height)]
    padding = [part for total in missing for part in (total // 2, total - total // 2)]
    expected = F.max_pool2d(F.pad(image, padding, value=-torch.inf), 3, stride=2)
    assert torch.equal(MaxPool2dSame()(image), expected)


def test_shortcut_carries_what_is_not_rectified() -> None:
    module = Module(4, (4, 4, 4)).eval()
    for part in module.body:
        if isinstance(part, SeparableConv2d):
            nn.init.zeros_(part[1].weight)
    image = torch.randn(1, 4, 5, 5)
    assert torch.equal(module(image.clone()), image)


def test_first_module_takes_negative_input_as_it_is_only_where_told() -> None:
    image = -torch.ones(1, 2, 6, 6)
    for activated in (True, False):
        module = Module(2, (3, 3), reduce=True, activated=activated).eval()
        reaches = module.body[0](image).abs().sum() > 0
        assert bool(reaches) is activated
