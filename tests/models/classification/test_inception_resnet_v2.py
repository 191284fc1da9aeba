"""Inception-ResNet-v2 against its paper."""

import torch
from torch import nn

from convoy.models.analysis.torch_reader import count
from convoy.models.blocks import Branches
from convoy.models.classification.inception_resnet_v2 import InceptionResNetV2, Residual


def test_parameters_with_and_without_moving_statistics() -> None:
    with torch.device("meta"):
        assert count(InceptionResNetV2()) == (55_813_192, 60_544)
    assert 55_813_192 + 60_544 == 55_873_736


def test_grids_are_the_papers_with_the_published_maps() -> None:
    with torch.device("meta"):
        network = InceptionResNetV2().eval()
        shapes: list[tuple[int, ...]] = []
        for part in (network.stem, *network.mixed, network.last):
            part.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        assert network(torch.empty(2, 3, 299, 299)).shape == (2, 1000)
    assert shapes[0] == (192, 35, 35)
    assert shapes[1:12] == [(320, 35, 35)] * 11
    assert shapes[12:33] == [(1088, 17, 17)] * 21
    assert shapes[33:44] == [(2080, 8, 8)] * 11
    assert shapes[44] == (1536, 8, 8)


def test_smaller_images_are_classified() -> None:
    with torch.device("meta"):
        assert InceptionResNetV2(classes=5).eval()(torch.empty(1, 3, 75, 80)).shape == (1, 5)


def test_residuals_are_scaled_and_the_last_is_not_rectified() -> None:
    with torch.device("meta"):
        residuals = [part for part in InceptionResNetV2().mixed if isinstance(part, Residual)]
    assert [part.scale for part in residuals] == [0.17] * 10 + [0.1] * 20 + [0.2] * 9 + [1.0]
    assert [isinstance(part.activation, nn.ReLU) for part in residuals] == [True] * 39 + [False]


def test_residual_adds_its_share_to_the_input() -> None:
    image = torch.randn(1, 2, 3, 3)
    module = Residual(Branches(nn.Identity(), nn.Identity()), 4, 2, scale=0.25, activation=False)
    expected = image + 0.25 * module.widen(torch.cat((image, image), dim=1))
    torch.testing.assert_close(module(image), expected)
    module.activation = nn.ReLU(inplace=True)
    torch.testing.assert_close(module(image), expected.clamp(min=0))
