"""Inception-v3 (Szegedy et al.: Rethinking the Inception Architecture for Computer Vision, arXiv 1512.00567)."""

from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn

from convoy.models.blocks import Branches, ConvNorm2d

Form = Literal["keras", "torchvision"]
# Feature maps and kernel of a convolution.
Layer = tuple[int, int | tuple[int, int]]


class InceptionV3(nn.Module):
    """Eleven Inception modules.

    (N, channels, H, W) float32, at least 75x75, 299x299 in the paper -> (N, classes)

    `form` selects the published weights that fit. In "keras" (TensorFlow's, the paper's own) batch normalisation has no
    scale, and mean pooling at the edge ignores the padding; "torchvision" has a scale and counts the padding's zeros.

    Departures, shared by all published weights: the first pooling is followed by a 1x1 convolution to 80 maps, a 3x3
    one to 192 and a second pooling, where table 1 has 3x3 convolutions to 80, 192 (stride 2) and 288; the first module
    has 256 output maps, not 288. The auxiliary head of section 4 is omitted, as by Chollet (arXiv 1610.02357, 4.3): it
    only regularises training and does not affect the output.
    """

    def __init__(self, channels: int = 3, classes: int = 1000, form: str = "keras") -> None:
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"form = {form!r}, want one of: {', '.join(get_args(Form))}")
        conv = Convolutions(scale=form == "torchvision", zeros_count=form == "torchvision")
        self.stem = Stem(channels, conv)  # (N, 192, 35, 35)
        self.mixed = nn.Sequential(
            figure_5(192, 32, conv),  # (N, 256, 35, 35)
            figure_5(256, 64, conv),  # (N, 288, 35, 35)
            figure_5(288, 64, conv),
            reduction_1(288, conv),  # (N, 768, 17, 17)
            figure_6(768, 128, conv),
            figure_6(768, 160, conv),
            figure_6(768, 160, conv),
            figure_6(768, 192, conv),
            reduction_2(768, conv),  # (N, 1280, 8, 8)
            figure_7(1280, conv),  # (N, 2048, 8, 8)
            figure_7(2048, conv),
        )
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed(self.stem(x))
        logits: Tensor = self.output(self.dropout(x.mean(dim=(2, 3))))
        return logits


class Convolutions:
    """Builds the modules' branches: chains of normalised convolutions that keep the map size or end by halving it."""

    def __init__(self, scale: bool = False, zeros_count: bool = False) -> None:
        self.single = partial(ConvNorm2d, scale=scale)
        self.zeros_count = zeros_count

    def __call__(self, in_channels: int, *layers: Layer, halve: bool = False) -> nn.Sequential:
        """Builds one convolution per layer; with `halve`, the last one has stride 2 and no padding."""
        chain = nn.Sequential()
        for index, (maps, kernel) in enumerate(layers):
            if halve and index == len(layers) - 1:
                chain.append(self.single(in_channels, maps, kernel, stride=2))
            else:
                chain.append(self.single(in_channels, maps, kernel, padding=_half(kernel)))
            in_channels = maps
        return chain

    def pooled(self, in_channels: int, maps: int) -> nn.Sequential:
        """Builds 3x3 mean pooling, then a 1x1 convolution."""
        average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=self.zeros_count)
        return nn.Sequential(average, self.single(in_channels, maps, 1))


class Stem(nn.Sequential):
    """The layers before the modules, (N, channels, 299, 299) -> (N, 192, 35, 35)."""

    def __init__(self, channels: int, conv: Convolutions) -> None:
        super().__init__(
            conv.single(channels, 32, 3, stride=2),  # (N, 32, 149, 149)
            conv.single(32, 32, 3),  # (N, 32, 147, 147)
            conv.single(32, 64, 3, padding=1),
            nn.MaxPool2d(3, stride=2),  # (N, 64, 73, 73)
            conv.single(64, 80, 1),
            conv.single(80, 192, 3),  # (N, 192, 71, 71)
            nn.MaxPool2d(3, stride=2),
        )


def figure_5(in_channels: int, pool_maps: int, conv: Convolutions) -> Branches:
    """A 5x5 convolution as two 3x3 ones: (N, in_channels, H, W) -> (N, 224 + pool_maps, H, W)."""
    return Branches(
        conv(in_channels, (64, 1)),
        conv(in_channels, (48, 1), (64, 5)),  # stays 5x5, as in the published weights
        conv(in_channels, (64, 1), (96, 3), (96, 3)),
        conv.pooled(in_channels, pool_maps),
    )


def reduction_1(in_channels: int, conv: Convolutions) -> Branches:
    """Parallel convolutions and pooling that halve the map size (figure 10).

    (N, in_channels, H, W) -> (N, 480 + in_channels, H', W')
    """
    return Branches(
        conv(in_channels, (384, 3), halve=True),
        conv(in_channels, (64, 1), (96, 3), (96, 3), halve=True),
        nn.MaxPool2d(3, stride=2),
    )


def figure_6(in_channels: int, maps: int, conv: Convolutions) -> Branches:
    """7x7 convolutions as rows and columns: (N, in_channels, H, W) -> (N, 768, H, W); `maps` is the inner width."""
    row, column = (1, 7), (7, 1)
    return Branches(
        conv(in_channels, (192, 1)),
        conv(in_channels, (maps, 1), (maps, row), (192, column)),
        conv(in_channels, (maps, 1), (maps, column), (maps, row), (maps, column), (192, row)),
        conv.pooled(in_channels, 192),
    )


def reduction_2(in_channels: int, conv: Convolutions) -> Branches:
    """Parallel convolutions and pooling that halve the map size.

    (N, in_channels, H, W) -> (N, 512 + in_channels, H', W')
    """
    return Branches(
        conv(in_channels, (192, 1), (320, 3), halve=True),
        conv(in_channels, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), halve=True),
        nn.MaxPool2d(3, stride=2),
    )


def figure_7(in_channels: int, conv: Convolutions) -> Branches:
    """3x3 convolutions split into a row and a column in parallel: (N, in_channels, H, W) -> (N, 2048, H, W)."""

    def fork() -> Branches:
        return Branches(conv(384, (384, (1, 3))), conv(384, (384, (3, 1))))

    return Branches(
        conv(in_channels, (320, 1)),
        conv(in_channels, (384, 1)).append(fork()),
        conv(in_channels, (448, 1), (384, 3)).append(fork()),
        conv.pooled(in_channels, 192),
    )


def _half(kernel: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return height // 2, width // 2
