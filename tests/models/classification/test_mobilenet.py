"""MobileNet is the paper's table 1, with its width multiplier."""

import pytest
import torch
from torch import nn

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.mobilenet import MobileNet
from convoy.models.errors import BadTraining


def on_meta(alpha: float = 1.0) -> nn.Module:
    with torch.device("meta"):
        return registry.build("mobilenet", channels=3, classes=1000, arguments={"alpha": alpha})


# Trainable and moving statistics of the released networks; the paper's table 6 rounds to 4.2, 2.6, 1.3 and 0.5 million.
@pytest.mark.parametrize(("alpha", "total"), [(1.0, 4_253_864), (0.75, 2_601_976), (0.5, 1_342_536), (0.25, 475_544)])
def test_network_has_the_published_number_of_parameters(alpha: float, total: int) -> None:
    assert count(on_meta(alpha)).total == total


def test_body_halves_the_sides_where_the_papers_table_does() -> None:
    network = on_meta()
    assert isinstance(network, MobileNet)
    x = network.stem(torch.empty(1, 3, 224, 224, device="meta"))
    shapes = [tuple(x.shape[1:])]
    for part in network.body:
        x = part(x)
        shapes.append(tuple(x.shape[1:]))
    assert [maps for maps, *_ in shapes] == [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    assert [side for *_, side in shapes] == [112, 112, 56, 56, 28, 28, *[14] * 6, 7, 7]


def test_relu_stops_at_six() -> None:
    network = registry.build("mobilenet", channels=3, classes=2, arguments={"alpha": 0.25}).eval()
    assert isinstance(network, MobileNet)
    with torch.inference_mode():
        assert network.stem(1000 * torch.randn(1, 3, 32, 32)).max() == 6


def test_width_that_leaves_a_layer_without_maps_is_refused() -> None:
    with pytest.raises(BadTraining, match=r"alpha is 0\.01, want at least 0\.03125"):
        on_meta(0.01)


def test_fresh_network_is_undecided_among_few_classes() -> None:
    torch.manual_seed(0)
    network = registry.build("mobilenet", channels=3, classes=4, arguments={"alpha": 0.25}).train()
    with torch.inference_mode():
        assert network(torch.randn(8, 3, 64, 64)).std() < 2
