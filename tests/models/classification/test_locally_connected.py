"""Layers with a kernel at every position, and DeepFace, which has three of them."""

import pytest
import torch
from torch.nn import functional as F

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.locally_connected import DeepFace, LocallyConnected2d
from convoy.models.errors import BadTraining


@pytest.mark.parametrize("stride", [1, 2])
def test_every_position_has_a_kernel_and_a_bias_of_its_own(stride: int) -> None:
    layer = LocallyConnected2d(2, 3, (6, 9), kernel=3, stride=stride)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(4, 2, 6, 9)
    rows, columns = layer.output_size
    assert (rows, columns) == ((6 - 3) // stride + 1, (9 - 3) // stride + 1)
    expected = torch.empty(4, 3, rows, columns)
    for i in range(rows):
        for j in range(columns):
            patch = x[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            kernels = layer.weight[i * columns + j].reshape(3, 2, 3, 3)
            for n in range(4):
                for o in range(3):
                    expected[n, o, i, j] = (patch[n] * kernels[o]).sum() + layer.bias[o, i, j]
    torch.testing.assert_close(layer(x), expected)


def test_with_equal_weights_everywhere_it_is_a_convolution() -> None:
    layer = LocallyConnected2d(2, 5, (7, 8), kernel=3, stride=2)
    kernel, bias = torch.randn(5, 2, 3, 3), torch.randn(5)
    with torch.no_grad():
        layer.weight.copy_(kernel.reshape(1, 5, 18))
        layer.bias.copy_(bias[:, None, None])
    x = torch.randn(3, 2, 7, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, bias, stride=2))


def test_gradient_of_a_position_comes_from_its_own_patch_only() -> None:
    layer = LocallyConnected2d(1, 1, (5, 5), kernel=3)
    layer(torch.randn(2, 1, 5, 5))[:, :, 1, 1].sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum(dim=(1, 2)).nonzero().flatten().tolist() == [4]


def test_deepface_has_the_papers_maps_and_the_parameters_that_follow_from_them() -> None:
    with torch.device("meta"):
        network = DeepFace().eval()
        shapes: dict[str, tuple[int, ...]] = {}
        names = ("shared.c1", "shared.m2", "shared.c3", "l4", "l5", "l6", "f7", "f8")
        for name in names:
            network.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name: shapes.__setitem__(name.split(".")[-1], tuple(out.shape[1:]))
            )
        network(torch.empty(1, 3, 152, 152))
    assert shapes == {
        "c1": (32, 142, 142),
        "m2": (32, 71, 71),
        "c3": (16, 63, 63),
        "l4": (16, 55, 55),
        "l5": (16, 25, 25),
        "l6": (16, 21, 21),
        "f7": (4096,),
        "f8": (4030,),
    }
    positions = {
        "l4": 55 * 55 * 16 * (16 * 9 * 9 + 1),
        "l5": 25 * 25 * 16 * (16 * 7 * 7 + 1),
        "l6": 21 * 21 * 16 * (16 * 5 * 5 + 1),
    }
    assert {name: count(network.get_submodule(name)).total for name in positions} == positions
    assert count(network).total == 118_923_774
    assert sum(positions.values()) > 0.6 * count(network).total


def test_every_layer_but_the_last_is_rectified() -> None:
    network = DeepFace(1, 10, size=(32, 32), kernels=(5, 5, 3, 3, 3), dense=32).eval()
    least: dict[str, float] = {}
    for name in ("shared.m2", "l4", "l5", "l6", "f7", "f8"):
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: least.__setitem__(name, float(inputs[0].detach().min()))
        )
    logits = network(torch.randn(8, 1, 32, 32))
    assert least == dict.fromkeys(least, 0.0)
    assert len(least) == 6
    assert logits.min() < 0


def test_row_is_a_small_one_for_images_of_32x32() -> None:
    with torch.device("meta"):
        assert count(registry.build("locally_connected", channels=1, classes=10)).total == 181_978


def test_size_that_runs_out_is_refused() -> None:
    with pytest.raises(
        BadTraining, match="locally_connected: l4: a 3x3 kernel without shared weights gets 1x10 pixels"
    ):
        registry.build("locally_connected", 1, 10, size=(14, 32))
