"""U-Net: any width and depth, any sides that are multiples of 2^depth."""

import pytest
import torch

from convoy.models.segmentation.unet import UNet


@pytest.mark.parametrize(("depth", "height", "width"), [(1, 6, 10), (2, 12, 8), (3, 24, 40), (4, 16, 48)])
def test_class_map_has_the_size_of_the_image(depth: int, height: int, width: int) -> None:
    network = UNet(channels=3, classes=5, width=4, depth=depth).eval()
    assert network.multiple == 2**depth
    assert network(torch.zeros(2, 3, height, width)).shape == (2, 5, height, width)


@pytest.mark.parametrize(("height", "width"), [(20, 16), (16, 20), (15, 15)])
def test_other_sides_are_refused_with_the_multiple_that_is_wanted(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height}x{width}, want sides that are multiples of 8"):
        UNet(width=4, depth=3)(torch.zeros(1, 3, height, width))


def test_maps_double_on_the_way_down_from_width() -> None:
    network = UNet(channels=1, classes=2, width=6, depth=3)
    assert [block[0].out_channels for block in network.down] == [6, 12, 24]
    assert network.bottom[0].out_channels == 48


def test_paper_sized_network_has_the_known_parameter_count() -> None:
    # Width 64, depth 4, one channel, two classes: the paper's 31,030,593 + 65 of the second class, less the 2,944
    # biases under the 18 normalisations, which have a weight and a bias for each of the same 2,944 * 2 maps instead.
    maps = 2 * (64 + 128 + 256 + 512) * 2 + 2 * 1024
    convolutions = 31_030_593 + 65 - maps
    assert sum(p.numel() for p in UNet(1, 2, width=64, depth=4).parameters()) == convolutions + 2 * maps


def test_every_level_reaches_the_output() -> None:
    network = UNet(width=4, depth=2)
    network(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in network.named_parameters() if "weight" in n)
