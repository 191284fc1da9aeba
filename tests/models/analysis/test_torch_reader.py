"""Reading a PyTorch network: what it costs, and what each operation is taken for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convoy.models import registry
from convoy.models.analysis import torch_reader
from convoy.models.analysis.rows import Anatomy, anatomy
from convoy.models.analysis.summary import inspect_architecture, sides_of
from convoy.models.analysis.torch_reader import count
from convoy.models.errors import ImpossibleLayer
from convoy.models.registry import ARCHITECTURES


def taken_apart(network: nn.Module, *shape: int) -> Anatomy:
    return anatomy(torch_reader.read(network.to("meta").eval(), (1, *shape)))


def counted(network: nn.Module, image: Tensor) -> int:
    """Multiply-adds of the modules that have a kernel or a matrix, by a second way: all of it is used once at every
    place of the answer, or of the input where the convolution is transposed."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
        nonlocal total
        places = inputs[0] if isinstance(module, TRANSPOSED) else answer
        total += places[0, 0].numel() * module.get_parameter("weight").numel()

    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)):
            module.register_forward_hook(add)
    with torch.no_grad():
        network(image)
    return total


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Convolutions with tables of connections, and without shared weights: their weights are no such module's.
OWN_WEIGHTS = {"lenet5": 240_000, "lenet1989": 8 * 8 * 12 * 4 * 25, "locally_connected": 147_456 + 20_736 + 2_304}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_costs_are_those_of_its_modules(name: str) -> None:
    row = ARCHITECTURES[name]
    with torch.device("meta"):
        network = registry.build(name, row.input.channels, 7).eval()
        image = torch.empty(1, row.input.channels, *sides_of(name, row.input, None))
        graph = torch_reader.read(network, tuple(image.shape))
        whole = anatomy(graph)
        assert whole.multiply_adds == counted(network, image) + OWN_WEIGHTS.get(name, 0)
    assert whole.parameters == count(network).total
    assert [operation.act.kind for operation in graph.operations if not operation.act.known] == []


@pytest.mark.parametrize(
    ("network", "shape", "multiply_adds"),
    [
        (nn.Conv1d(2, 6, 5, stride=2, groups=2), (2, 21), 9 * 6 * 5),
        (nn.Conv3d(1, 4, (3, 2, 1), padding=(1, 0, 0)), (1, 5, 6, 7), 5 * 5 * 7 * 4 * 6),
        (nn.ConvTranspose1d(3, 4, 6, stride=3), (3, 10), 10 * 3 * 4 * 6),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5), 25 * 4 * 3 * 9),
        (nn.Linear(8, 3), (4, 8), 4 * 8 * 3),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 5, 1)), (3, 8, 8), 36 * (3 * 9 + 15)),
        (nn.Sequential(nn.MaxPool1d(2), nn.AvgPool1d(3), nn.Flatten(), nn.Linear(6, 1)), (2, 20), 6),
    ],
)
def test_multiply_adds_of_a_layer(network: nn.Module, shape: tuple[int, ...], multiply_adds: int) -> None:
    whole = taken_apart(network, *shape)
    assert whole.multiply_adds == multiply_adds
    assert whole.parameters == count(network).total


def test_matrices_made_of_the_image_are_counted_too() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2)  # (N, 3, 20)
            return torch.softmax(x.mT @ x, dim=2) @ x.mT

    whole = taken_apart(Attention(), 3, 4, 5)
    assert whole.multiply_adds == 2 * 20 * 20 * 3
    assert whole.rows[-1].fields[0].at(0) == (0, 3)
    assert whole.rows[-1].fields[1].jump == 0


def test_shared_weights_count_once() -> None:
    shared = nn.Conv2d(2, 2, 3, padding=1)
    whole = taken_apart(nn.Sequential(shared, nn.ReLU(), shared), 2, 6, 6)
    assert whole.parameters == 2 * 2 * 9 + 2
    assert [row.multiply_adds for row in whole.rows] == [36 * 36, 36 * 36]


def test_weights_that_no_answer_needs_are_told_apart() -> None:
    whole = inspect_architecture("googlenet")
    assert whole.idle == {"heads": 6_379_728}
    assert sum(row.parameters for row in whole.rows) == 6_998_552


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d((9, 3), padding=(1, 0))),
            "1: nothing is left by max pooling of 8x6x6 with kernel 9x3, stride 9x3, padding 1x0",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3, dilation=4)),
            "0: nothing is left by a convolution of 3x8x8 with kernel 3x3, stride 1, padding 0, dilation 4",
        ),
        (nn.Sequential(nn.Conv2d(1, 8, 3)), "0: a convolution of 1 maps gets 3"),
        (nn.Sequential(nn.Flatten(), nn.Linear(100, 2)), "1: a dense layer for 100 numbers gets 192"),
        (nn.Sequential(nn.ConstantPad2d(-4, 0.0)), "0: "),
        (nn.Sequential(nn.Unfold(9)), "0: nothing is left by patches of 3x8x8 with kernel 9x9, stride 1, padding 0"),
        (nn.Sequential(nn.Unflatten(1, (3, 2))), "0: "),
    ],
)
def test_impossible_arithmetic_names_the_layer(network: nn.Module, message: str) -> None:
    with pytest.raises(ImpossibleLayer) as refused:
        taken_apart(network, 3, 8, 8)
    assert refused.value.message.startswith(message)


def test_pooling_that_may_stand_over_the_end_is_not_refused() -> None:
    pool: Callable[..., nn.Module] = nn.MaxPool2d
    assert taken_apart(pool(3, stride=2, ceil_mode=True), 1, 2, 2).rows[0].shape == (1, 1, 1)
    with pytest.raises(ImpossibleLayer):
        taken_apart(pool(3, stride=2), 1, 2, 2)
