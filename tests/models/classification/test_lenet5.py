"""LeNet-5 is the one of the paper, layer by layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convoy.models.classification.lenet5 import C3_TABLE, LeNet5, PartialConv2d, Subsampling, scaled_tanh

# Table I of the paper, drawn as it stands there: a row for each S2 map, a column for each C3 map.
TABLE_I = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""


def trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("layer", "count"), [("c1", 156), ("s2", 12), ("c3", 1516), ("s4", 32), ("c5", 48_120), ("f6", 10_164)]
)
def test_layer_has_the_papers_parameters(layer: str, count: int) -> None:
    assert trainable(getattr(LeNet5(), layer)) == count


def test_layers_up_to_f6_have_60000_parameters_and_the_output_850() -> None:
    network = LeNet5()
    assert trainable(network.output) == 850
    assert trainable(network) == 60_000 + 850


def test_c3_connects_the_maps_that_table_i_connects() -> None:
    drawn = TABLE_I.split()
    expected = [tuple(row for row in range(6) if drawn[row][column] == "X") for column in range(16)]
    assert list(C3_TABLE) == expected
    weight = LeNet5().c3.weight
    for column in range(16):
        for row in range(6):
            assert bool(weight[column, row].any()) == (drawn[row][column] == "X"), (row, column)


def test_c3_map_ignores_the_inputs_it_is_not_connected_to() -> None:
    c3 = PartialConv2d(6, C3_TABLE, 5)
    image = torch.randn(1, 6, 14, 14)
    changed = image.clone()
    changed[:, 3] += 1
    moved = (c3(changed) - c3(image)).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert moved.tolist() == [3 in row for row in C3_TABLE]


def test_c3_learns_every_kernel_it_has() -> None:
    c3 = PartialConv2d(6, C3_TABLE, 5)
    c3(torch.randn(2, 6, 14, 14)).square().sum().backward()
    assert c3.kernels.grad is not None
    assert c3.kernels.grad.flatten(1).abs().sum(dim=1).min() > 0


def test_subsampling_is_the_mean_of_four_times_a_coefficient_plus_a_bias() -> None:
    layer = Subsampling(2)
    with torch.no_grad():
        layer.coefficient.copy_(torch.tensor([2.0, -1.0])[:, None, None])
        layer.bias.copy_(torch.tensor([0.5, 0.0])[:, None, None])
    image = torch.tensor([[1.0, 2, 0, 0], [3, 6, 0, 4]])
    out = layer(torch.stack((image, image))[None])
    assert out.tolist() == [[[[6.5, 2.5]], [[-3.0, -1.0]]]]
    assert all(parameter.requires_grad for parameter in layer.parameters())


def test_scaled_tanh_passes_through_one_and_saturates_at_a() -> None:
    values = scaled_tanh(torch.tensor([-1.0, 0.0, 1.0, 100.0]))
    torch.testing.assert_close(values, torch.tensor([-1.0, 0.0, 1.0, 1.7159]), atol=1e-4, rtol=0)


def test_shapes_are_the_papers() -> None:
    network = LeNet5().eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:])))
    network(torch.zeros(2, 1, 32, 32))
    assert shapes == {
        "c1": (6, 28, 28),
        "s2": (6, 14, 14),
        "c3": (16, 10, 10),
        "s4": (16, 5, 5),
        "c5": (120, 1, 1),
        "f6": (84,),
        "output": (10,),
    }


def test_dense_c3_equals_the_sum_of_its_connections() -> None:
    c3 = PartialConv2d(6, C3_TABLE, 5)
    image = torch.randn(1, 6, 9, 9)
    kernels = iter(c3.kernels)
    for i, row in enumerate(C3_TABLE):
        expected = sum(F.conv2d(image[:, j : j + 1], next(kernels)[None, None]) for j in row) + c3.bias[i]
        torch.testing.assert_close(c3(image)[:, i : i + 1], expected, atol=1e-5, rtol=1e-5)
