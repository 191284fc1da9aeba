"""The first LeNet is the one of the paper: what it counts is counted here from what every layer does, not how."""

import pytest
import torch
from torch import Tensor, nn

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.lenet5 import scaled_tanh
from convoy.models.classification.lenet1989 import LeNet1989
from convoy.models.errors import BadTraining

# Table 1 of the paper: a row for each H2 map, a column for each H3 map.
TABLE_1 = """
XXX.XX......
.XXXXX......
......XXX.XX
.......XXXXX
"""
INPUTS = {"h1": (1, 28, 28), "h2": (4, 24, 24), "h3": (4, 12, 12), "h4": (12, 8, 8), "output": (192,)}


@pytest.fixture(scope="module")
def connected() -> dict[str, Tensor]:
    """By layer: whether unit i depends on unit j of the layer before, (units, units before)."""
    torch.manual_seed(0)
    network = LeNet1989()
    return {name: depends(network.get_submodule(name), shape) for name, shape in INPUTS.items()}


def depends(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    jacobian = torch.func.jacrev(lambda x: layer(x[None]).flatten())(torch.randn(shape))
    return jacobian.flatten(1) != 0


def test_free_parameters_are_2578() -> None:
    network = LeNet1989()
    by_layer = {name: count(network.get_submodule(name)).trainable for name in INPUTS}
    assert by_layer == {"h1": 104, "h2": 8, "h3": 512, "h4": 24, "output": 1930}
    assert count(network) == (2578, 0)


def test_units_are_4635_with_the_pixels_and_the_one_that_feeds_the_biases(connected: dict[str, Tensor]) -> None:
    units = {name: len(layer) for name, layer in connected.items()}
    assert units == {"h1": 4 * 24 * 24, "h2": 4 * 12 * 12, "h3": 12 * 8 * 8, "h4": 12 * 4 * 4, "output": 10}
    assert 28 * 28 + sum(units.values()) + 1 == 4635


def test_connections_are_98442_with_a_bias_a_unit(connected: dict[str, Tensor]) -> None:
    assert sum(int(layer.sum()) + len(layer) for layer in connected.values()) == 98_442


def test_h3_sees_the_h2_maps_of_table_1(connected: dict[str, Tensor]) -> None:
    maps = connected["h3"].reshape(12, 64, 4, 144).any(dim=3).any(dim=1)
    drawn = [[mark == "X" for mark in row] for row in TABLE_1.split()]
    assert maps.T.tolist() == drawn


def test_halves_do_not_meet_before_the_output() -> None:
    network = LeNet1989()
    image = torch.randn(1, 1, 28, 28)
    half = network.h4(network.h3(network.h2(network.h1(image))))
    with torch.no_grad():
        network.h1.weight[:2] += 1
    changed = network.h4(network.h3(network.h2(network.h1(image))))
    assert torch.equal(half[:, 6:], changed[:, 6:])
    assert not torch.isclose(half[:, :6], changed[:, :6]).any(dim=(2, 3)).all()


def test_every_layer_but_the_output_is_squashed() -> None:
    network = LeNet1989()
    image = torch.randn(2, 1, 28, 28)
    x = image
    for name in ("h1", "h2", "h3", "h4"):
        x = scaled_tanh(network.get_submodule(name)(x))
    assert torch.equal(network(image), network.output(x.flatten(1)))


def test_another_size_is_taken_down_to_16x16() -> None:
    assert LeNet1989(classes=3, size=(16, 40))(torch.zeros(2, 1, 16, 40)).shape == (2, 3)
    with pytest.raises(BadTraining, match="lenet1989: size 15x28, want at least 16x16"):
        registry.build("lenet1989", 1, 10, size=(15, 28))
