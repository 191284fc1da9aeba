"""Networks whose every weight is known, so that what a picture of them must show is known too."""

import torch
from torch import Tensor, nn

from convoy.models.checkpoint import Description
from convoy.models.visualize.subjects import ImageSubject
from convoy.service.metadata import InputSpec, Task


def subject(
    network: nn.Module,
    side: int | None,
    colour: str = "L",
    labels: tuple[str, ...] = ("no", "yes"),
    task: Task = "classification",
    mean: float = 0.5,
) -> ImageSubject:
    """A network that takes squares of a side, or images of any size, as pixels from 0 to 1 minus the mean."""
    channels = 3 if colour == "RGB" else 1
    spec = InputSpec(colour=colour, fit="pad") if side is None else InputSpec(colour=colour, height=side, width=side)
    description = Description(
        architecture="handmade",
        arguments={},
        task=task,
        input=spec,
        data="",
        labels=list(labels),
        palette=None,
        mean=[mean] * channels,
        std=[1.0] * channels,
    )
    return ImageSubject("handmade", description, network.eval().requires_grad_(False))


class OneFilter(nn.Module):
    """One convolution without padding, `filters`; logits are the means of its maps."""

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        count, inputs, height, width = filters.shape
        self.conv = nn.Conv2d(inputs, count, (height, width), bias=False)
        self.conv.weight.data = filters

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean(dim=(2, 3))


class SpotFinder(nn.Module):
    """Says yes the more, the brighter a 3x3 spot anywhere in the image is; the rectifier writes over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.conv.weight.data = torch.full((1, 1, 3, 3), 1 / 9)
        self.conv.bias.data = torch.tensor([-0.3])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        yes = 200 * self.relu(self.conv(x)).mean(dim=(2, 3))
        return torch.cat([-yes, yes], dim=1)


class CornerReader(nn.Module):
    """Looks at the upper left quarter of the image only: yes where it is bright."""

    def forward(self, x: Tensor) -> Tensor:
        yes = 8 * x[:, :, : x.shape[2] // 2, : x.shape[3] // 2].mean(dim=(1, 2, 3))[:, None]
        return torch.cat([-yes, yes], dim=1)


class Blind(nn.Module):
    """Answers the same to everything."""

    def forward(self, x: Tensor) -> Tensor:
        return (0 * x.mean(dim=(1, 2, 3)))[:, None] + torch.tensor([0.0, 1.0])


class BrightPixels(nn.Module):
    """Segmentation: a pixel is `yes` where it and its neighbours are bright. Sides are multiples of 4."""

    multiple = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.conv.weight.data = torch.full((1, 1, 3, 3), 1 / 9)
        self.output = nn.Conv2d(1, 2, 1, bias=False)
        self.output.weight.data = torch.tensor([-8.0, 8.0]).view(2, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.conv(x))


def spot(row: int, column: int, side: int = 24) -> Tensor:
    """A dark picture (1, side, side, 1) with one bright spot of 5x5 around a place."""
    picture = torch.full((1, side, side, 1), 0.2)
    picture[:, row - 2 : row + 3, column - 2 : column + 3] = 1.0
    return picture


def peak(values: Tensor) -> tuple[int, int]:
    """Row and column of the middle of what is within a tenth of the highest value."""
    rows, columns = torch.nonzero(values >= 0.9 * values.max(), as_tuple=True)
    return round(float(rows.float().mean())), round(float(columns.float().mean()))
