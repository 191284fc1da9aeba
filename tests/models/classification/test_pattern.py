"""A network built from a pattern has the layers, the widths and the sizes that the pattern says."""

from pathlib import Path

import pytest
import torch
from torch import nn

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.pattern import Pattern
from convoy.models.errors import BadTraining
from convoy.models.grammar import DEFAULT
from convoy.service.cli import run


def build(pattern: str, size: tuple[int, int] = (32, 32), channels: int = 1, **arguments: str) -> Pattern:
    network = registry.build("pattern", channels, 10, {"pattern": pattern, **arguments}, size)
    assert isinstance(network, Pattern)
    return network


def layers(network: Pattern) -> list[str]:
    names = []
    for name, layer in network.layers.named_children():
        match layer:
            case nn.Conv2d():
                names.append(f"{name} {layer.in_channels}-{layer.out_channels}")
            case nn.Linear():
                names.append(f"{name} {layer.in_features}-{layer.out_features}")
            case nn.MaxPool2d():
                names.append(name)
    return names


def test_linear_classifier() -> None:
    network = build("INPUT -> [[CONV -> RELU]*0 -> POOL]*0 -> [FC -> RELU]*0 -> FC")
    assert layers(network) == ["fc1 1024-10"]
    assert [type(layer) for layer in network.layers] == [nn.Flatten, nn.Linear]
    x, y = torch.randn(2, 3, 1, 32, 32)
    sum_of_answers = network(x) + network(y) - network(torch.zeros(3, 1, 32, 32))
    torch.testing.assert_close(network(x + y), sum_of_answers, atol=1e-4, rtol=1e-4)


def test_multilayer_perceptron() -> None:
    network = build("INPUT -> [FC -> RELU]*2 -> FC", dense="64,32")
    assert layers(network) == ["fc1 1024-64", "fc2 64-32", "fc3 32-10"]


def test_one_convolution() -> None:
    network = build("INPUT -> CONV -> RELU -> FC", channels=3, widths="8")
    assert layers(network) == ["conv1 3-8", "fc1 8192-10"]
    assert count(network).total == 8 * 28 + 10 * 8193


def test_two_convolutions_each_with_pooling() -> None:
    network = build("INPUT -> [CONV -> RELU -> POOL]*2 -> FC -> RELU -> FC")
    assert layers(network) == ["conv1 1-32", "pool1", "conv2 32-64", "pool2", "fc1 4096-128", "fc2 128-10"]
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Flatten", "Linear", "ReLU", "Linear"]


def test_vgg_like() -> None:
    network = build(DEFAULT, channels=3, widths="32,64,128", dense="256,128")
    assert layers(network) == [
        *("conv1 3-32", "conv2 32-32", "pool1"),
        *("conv3 32-64", "conv4 64-64", "pool2"),
        *("conv5 64-128", "conv6 128-128", "pool3"),
        *("fc1 2048-256", "fc2 256-128", "fc3 128-10"),
    ]
    assert sum(isinstance(layer, nn.ReLU) for layer in network.layers) == 8


def test_missing_widths_double_and_missing_dense_ones_stay() -> None:
    network = build("INPUT -> [CONV -> RELU -> POOL]*4 -> [FC -> RELU]*3 -> FC", widths="200", dense="64")
    assert layers(network) == [
        *("conv1 1-200", "pool1", "conv2 200-400", "pool2", "conv3 400-512", "pool3", "conv4 512-512", "pool4"),
        *("fc1 2048-64", "fc2 64-64", "fc3 64-64", "fc4 64-10"),
    ]
    assert layers(build("INPUT -> [CONV -> RELU -> POOL]*2 -> FC", widths="600"))[2] == "conv2 600-600"


def test_odd_sides_lose_a_row_and_dense_layers_follow_the_size() -> None:
    network = build("INPUT -> [CONV -> RELU -> POOL]*2 -> FC", size=(13, 30), widths="4,4")
    assert layers(network)[-1] == f"fc1 {4 * 3 * 7}-10"
    assert network(torch.zeros(2, 1, 13, 30)).shape == (2, 10)


def test_optional_pooling_is_left_out_where_a_side_is_1() -> None:
    network = build("INPUT -> [CONV -> RELU -> POOL?]*4 -> FC", size=(4, 9), widths="2,3,4,5")
    assert layers(network) == ["conv1 1-2", "pool1", "conv2 2-3", "pool2", "conv3 3-4", "conv4 4-5", "fc1 10-10"]
    assert network(torch.zeros(1, 1, 4, 9)).shape == (1, 10)


def test_size_that_runs_out_is_refused_by_the_layer_and_its_column() -> None:
    with pytest.raises(BadTraining) as refused:
        build("INPUT -> [CONV -> RELU -> POOL]*6 -> FC", size=(32, 40))
    assert str(refused.value) == "pattern, column 27: pool6 gets 1x1 pixels, want at least 2x2"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"widths": "32,x"}, "widths = '32,x', want numbers from 1 to 65536 with commas between"),
        ({"widths": "32,,64"}, "widths = '32,,64', want numbers"),
        ({"widths": "0"}, "widths = '0', want numbers"),
        ({"dense": "-3"}, "dense = '-3', want numbers"),
        ({"dense": "9999999999"}, "dense = '9999999999', want numbers"),
        ({"widths": "1,2,3,4"}, "widths = '1,2,3,4': 4 numbers, the pattern has a place for 3"),
        ({"dense": "1,2,3"}, "dense = '1,2,3': 3 numbers, the pattern has a place for 2"),
    ],
)
def test_bad_widths_are_refused(arguments: dict[str, str], complaint: str) -> None:
    with pytest.raises(BadTraining) as refused:
        build(DEFAULT, **arguments)
    assert str(refused.value).startswith(complaint)


def test_pattern_comes_from_the_command_line_and_goes_into_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = "INPUT -> [CONV -> RELU -> POOL]*2 -> FC"
    command = ["train", "pattern", "--data", "tiny-digits", "--epochs", "1", "--output", str(tmp_path)]
    assert run([*command, "--set", f"pattern={pattern}", "--set", "widths=4,8"]) == 0
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state["network.layers.conv2.weight"].shape == (8, 4, 3, 3)
    assert run([*command, "--set", "pattern=INPUT -> CONV -> FC"]) == 2
    assert "pattern, column 18: FC after CONV, want RELU" in capsys.readouterr().err
