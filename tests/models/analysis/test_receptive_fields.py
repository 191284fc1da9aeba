"""What a table says of receptive fields is where gradients are not zero."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from convoy.models import registry
from convoy.models.analysis import reach, torch_reader
from convoy.models.analysis.rows import Anatomy, Row, anatomy
from convoy.models.classification.locally_connected import LocallyConnected2d
from convoy.models.registry import Argument

SIDES = (40, 46)
Box = tuple[tuple[int, int], ...]


class Linear(TorchFunctionMode):
    """Lets every gradient through: maxima become means, and activations what they are of small numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.relu, F.hardtanh, torch.relu, Tensor.relu):
            return args[0]
        if func is Tensor.amax:
            return args[0].mean(*args[1:], **kwargs)
        if func is F.max_pool2d:
            kwargs = {name: value for name, value in kwargs.items() if name not in ("dilation", "return_indices")}
            return F.avg_pool2d(*args, **kwargs)
        return func(*args, **kwargs)


def seen(answer: Tensor, image: Tensor, place: tuple[int, ...]) -> Box:
    """The first and the last pixel along each axis that a place of the answer has a gradient of."""
    at = answer[(0, slice(None), *place)]
    (gradient,) = torch.autograd.grad(at.sum(), image, retain_graph=True)
    pixels = gradient[0].abs().sum(dim=0).nonzero()
    return tuple((int(axis.min()), int(axis.max())) for axis in pixels.T)


def agrees(found: Box, row: Row, whole: Anatomy, place: tuple[int, ...]) -> bool:
    """Whether a field begins and ends where the table says; of what lies beyond the image no gradient tells."""
    for (first, last), field, side, at in zip(found, row.fields, whole.sides, place or (0, 0), strict=True):
        start, end = field.at(at)
        if first < start or (start >= 0 and first != start) or last > end or (end < side and last != end):
            return False
    return True


def run(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """The answer of every module without parts, of weights that are all positive, so that no two ways cancel out."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(0.01, 0.02)
    answers: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, answer, name=name: answers.update({name: answer}))
    with Linear():
        network(image)
    return answers


def inspected(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Anatomy:
    with torch.device("meta"):
        return anatomy(torch_reader.read(build().eval(), shape))


def disagreements(build: Callable[[], nn.Module], sides: tuple[int, int], channels: int = 3) -> tuple[list[str], int]:
    """Layers whose field in the table is not that of the gradient at the middle of the map, and of how many."""
    shape = (1, channels, *sides)
    whole = inspected(build, shape)
    network = build().eval().double()
    image = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    answers = run(network, image)
    # A module with several rows answers what the last of them does.
    rows = {row.layer: row for row in whole.rows if row.layer in answers}
    wrong = []
    for layer, row in rows.items():
        assert answers[layer].shape[1:] == row.shape
        place = tuple(size // 2 for size in row.shape[1:])
        found = seen(answers[layer], image, place)
        if not agrees(found, row, whole, place):
            wrong.append(f"{layer} at {place}: {found}, told {row.fields}")
    return wrong, len(rows)


class Ways(nn.Module):
    """Branches with other centres, side by side and added up."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        self.right = nn.Conv2d(3, 2, 2, stride=2)
        self.last = nn.Conv2d(4, 1, 3, dilation=2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        summed: Tensor = self.last(torch.cat((left, left + right), dim=1))
        return summed


class Gate(nn.Module):
    """A branch that sees the whole image scales the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.gate = nn.Conv2d(2, 2, 1)
        self.last = nn.Conv2d(2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * self.gate(x.mean(dim=(2, 3), keepdim=True))
        answer: Tensor = self.last(x)
        return answer


class Turned(nn.Module):
    """Places that are moved into channels, split, turned round, cropped and brought back."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.blocks = nn.PixelUnshuffle(2)
        self.middle = nn.Conv2d(16, 8, 3, padding=1)
        self.back = nn.PixelShuffle(2)
        self.last = nn.Conv2d(2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)[:, :, 3:-1, 1::2]
        x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
        x = self.middle(self.blocks(x))
        x = x.permute(0, 2, 3, 1).reshape(len(x), -1, 8).mT.unflatten(2, x.shape[2:])
        answer: Tensor = self.last(self.back(x))
        return answer


class Blocks(nn.Module):
    """Space to depth and back by reshaping, as it is written where there is no layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        x = self.first(x).reshape(count, 2, height // 2, 2, width // 2, 2)
        x = self.middle(x.permute(0, 1, 3, 5, 2, 4).flatten(1, 3))
        x = x.reshape(count, 2, 2, 2, height // 2, width // 2).permute(0, 1, 4, 2, 5, 3)
        answer: Tensor = self.last(x.reshape(count, 2, height, width))
        return answer


class Halves(nn.Module):
    """Two halves of the map, worked on apart and laid under each other."""

    def __init__(self) -> None:
        super().__init__()
        self.upper = nn.Conv2d(3, 1, 3, padding=1)
        self.lower = nn.Conv2d(3, 1, 3, padding=1)
        self.last = nn.Conv2d(1, 1, (30, 3))

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[2] // 2
        answer: Tensor = self.last(torch.cat((self.upper(x[:, :, :half]), self.lower(x[:, :, half:])), dim=2))
        return answer


def layers(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict((f"layer{index}", module) for index, module in enumerate(modules)))


HAND_MADE: dict[str, Callable[[], nn.Module]] = {
    "strides": lambda: layers(
        nn.Conv2d(3, 2, (5, 3), stride=(3, 2), padding=(0, 1)), nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 2, 2)
    ),
    "dilation": lambda: layers(
        nn.Conv2d(3, 2, 3, dilation=3, padding=2), nn.Conv2d(2, 2, 3, stride=2, dilation=(1, 2))
    ),
    "transposed": lambda: layers(
        nn.Conv2d(3, 2, 3, stride=4), nn.ConvTranspose2d(2, 2, 5, stride=3, padding=1), nn.Conv2d(2, 2, 3)
    ),
    "groups": lambda: layers(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 4, 1, groups=2)),
    "nearest": lambda: layers(nn.Conv2d(3, 2, 3, stride=3), nn.Upsample(scale_factor=3), nn.Conv2d(2, 2, 3, padding=1)),
    "bilinear": lambda: layers(
        nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Upsample(scale_factor=4, mode="bilinear"), nn.Conv2d(2, 2, 3)
    ),
    "bins": lambda: layers(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d((3, 4)), nn.Conv2d(2, 2, 2)),
    "dense": lambda: layers(nn.Conv2d(3, 2, 3, stride=3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
    "unshared": lambda: layers(nn.Conv2d(3, 2, 3, stride=2), LocallyConnected2d(2, 3, (19, 22), 5, stride=2)),
    "ways": Ways,
    "gate": Gate,
    "turned": Turned,
    "blocks": Blocks,
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_field_is_where_the_gradient_is(name: str) -> None:
    wrong, count = disagreements(HAND_MADE[name], SIDES)
    assert count > 1
    assert wrong == []


NETWORKS: list[tuple[str, tuple[int, int], dict[str, Argument]]] = [
    ("lenet5", (32, 32), {}),
    ("convpool", (28, 36), {}),
    ("maxout", (32, 40), {"width": 2}),
    ("spatial_pyramid", (24, 32), {"width": 1}),
    ("resnet18", (96, 64), {}),
    ("mobilenet", (96, 128), {"alpha": 0.1}),
    ("unet", (48, 32), {"width": 2, "depth": 2}),
]


@pytest.mark.parametrize(("name", "sides", "arguments"), NETWORKS, ids=[name for name, *_ in NETWORKS])
def test_field_of_a_network_is_where_the_gradient_is(
    name: str, sides: tuple[int, int], arguments: dict[str, Argument]
) -> None:
    row = registry.architecture(name)
    build = partial(registry.build, name, row.input.channels, 2, arguments, sides if row.sized else None)
    wrong, count = disagreements(build, sides, row.input.channels)
    assert count > 4
    assert wrong == []


def test_parts_laid_under_each_other_are_seen_as_a_whole() -> None:
    (*_, row) = inspected(Halves, (1, 3, 40, 46)).rows
    # Along the joint no field is regular any more: 40 rows and the padding of both halves.
    assert [field.at(0) for field in row.fields] == [(-1, 40), (-1, 3)]
    assert [field.jump for field in row.fields] == [0, 1]


def test_axes_that_cross_are_seen_as_a_whole() -> None:
    class Crossed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x + x.mT, 3)

    (row,) = inspected(Crossed, (1, 3, 9, 9)).rows
    assert [field.at(1) for field in row.fields] == [(0, 8), (0, 8)]


def test_wrong_arithmetic_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "convoy.models.analysis.operators.window",
        lambda kernel, stride, before, _: reach.window(kernel, stride, before),
    )
    wrong, _ = disagreements(HAND_MADE["dilation"], SIDES)
    assert {text.split()[0] for text in wrong} == {"layer0", "layer1"}
