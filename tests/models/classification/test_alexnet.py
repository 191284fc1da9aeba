"""AlexNet is the one of the paper: its neurons, its two towers, its normalisation, its initial values."""

import math

import pytest
import torch
from torch import nn

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.alexnet import AlexNet
from convoy.models.errors import BadTraining

# Section 3.5 of the paper, behind the input; what it prints for conv1 is 55 x 48 x 96.
NEURONS_PRINTED = {"conv1": 253_440, "conv2": 186_624, "conv3": 64_896, "conv4": 64_896, "conv5": 43_264}
DENSE_PRINTED = {"fc6": 4096, "fc7": 4096, "fc8": 1000}


@pytest.fixture
def network() -> AlexNet:
    with torch.device("meta"):
        return AlexNet().eval()


def test_neurons_of_each_layer_are_as_printed_but_for_conv1(network: AlexNet) -> None:
    neurons: dict[str, int] = {}
    for name, layer in (*network.features.named_children(), *network.classifier.named_children()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda _, __, out, name=name: neurons.__setitem__(name, out[0].numel()))
    network(torch.empty(1, 3, 227, 227, device="meta"))
    assert neurons == NEURONS_PRINTED | DENSE_PRINTED | {"conv1": 290_400}
    assert 55 * 55 * 96 == 290_400
    assert NEURONS_PRINTED["conv1"] == 55 * 48 * 96


def test_parameters_by_layer(network: AlexNet) -> None:
    # Two towers: a map of conv2, conv4 and conv5 sees one half of the maps before it.
    expected = {
        "features.conv1": 96 * (3 * 11 * 11 + 1),
        "features.conv2": 256 * (48 * 5 * 5 + 1),
        "features.conv3": 384 * (256 * 3 * 3 + 1),
        "features.conv4": 384 * (192 * 3 * 3 + 1),
        "features.conv5": 256 * (192 * 3 * 3 + 1),
        "classifier.fc6": 4096 * (256 * 6 * 6 + 1),
        "classifier.fc7": 4096 * (4096 + 1),
        "classifier.fc8": 1000 * (4096 + 1),
    }
    assert {name: count(network.get_submodule(name)).total for name in expected} == expected
    assert count(network).total == sum(expected.values()) == 60_965_224


def test_towers_meet_in_conv3_only() -> None:
    features = AlexNet(size=(67, 67)).features
    for name, maps, meets in (("conv2", 96, False), ("conv3", 256, True), ("conv4", 384, False), ("conv5", 384, False)):
        layer = features.get_submodule(name)
        x = torch.randn(1, maps, 5, 5)
        changed = x.clone()
        changed[:, : maps // 2] += 1
        first, second = (layer(changed) - layer(x)).abs().amax(dim=(0, 2, 3)).chunk(2)
        assert first.min() > 0
        assert bool(second.max() > 1e-6) is meets, name


def test_responses_are_normalised_as_section_3_3_says() -> None:
    norm = AlexNet(size=(67, 67)).features.get_submodule("norm1")
    x = torch.randn(2, 96, 2, 3) * 50
    k, n, alpha, beta = 2, 5, 1e-4, 0.75
    expected = torch.empty_like(x)
    for i in range(96):
        low, high = max(0, i - n // 2), min(95, i + n // 2)
        expected[:, i] = x[:, i] / (k + alpha * x[:, low : high + 1].square().sum(dim=1)) ** beta
    torch.testing.assert_close(norm(x), expected)
    # Without alpha's correction the sum would weigh a fifth: the difference is to be seen at these values.
    assert not torch.allclose(nn.LocalResponseNorm(n, alpha, beta, k)(x), expected, rtol=1e-2)


def test_rectifiers_that_the_paper_names_start_biased() -> None:
    network = AlexNet(size=(67, 67))
    named = (*network.features.named_children(), *network.classifier.named_children())
    layers = {name: layer for name, layer in named if isinstance(layer, nn.Conv2d | nn.Linear)}
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert {name: layer.bias.unique().tolist() for name, layer in layers.items()} == {
        name: [1.0 if name in ones else 0.0] for name in NEURONS_PRINTED | DENSE_PRINTED
    }
    assert math.isclose(float(layers["conv3"].weight.detach().std()), 0.01, rel_tol=0.02)


def test_layers_come_in_the_papers_order(network: AlexNet) -> None:
    # Section 3.5: normalisation behind the first two rectifiers, pooling behind both normalisations and behind conv5.
    assert [name.rstrip("0123456789") for name, _ in network.features.named_children()] == [
        *("conv", "relu", "norm", "pool"),
        *("conv", "relu", "norm", "pool"),
        *("conv", "relu", "conv", "relu", "conv", "relu", "pool"),
    ]
    kinds = {"conv": nn.Conv2d, "relu": nn.ReLU, "norm": nn.LocalResponseNorm, "pool": nn.MaxPool2d}
    for name, layer in network.features.named_children():
        assert type(layer) is kinds[name.rstrip("0123456789")]
    dense = [nn.Linear, nn.ReLU, nn.Dropout]
    assert [type(layer) for layer in network.classifier] == [*dense, *dense, nn.Linear]


def test_pooling_windows_overlap(network: AlexNet) -> None:
    pools = [layer for layer in network.features if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride) for pool in pools] == [(3, 2)] * 3


def test_size_that_runs_out_is_refused_by_the_layer() -> None:
    with pytest.raises(BadTraining, match="alexnet: pool5 has a 3x3 window, but its input is 2x2 left"):
        registry.build("alexnet", 3, 10, size=(64, 64))
    assert AlexNet(channels=1, classes=5, size=(67, 80)).eval()(torch.zeros(2, 1, 67, 80)).shape == (2, 5)
