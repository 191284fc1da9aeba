"""DenseNet (Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, arXiv 1608.06993)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

GROWTH = 32  # the paper's k: maps added by each layer
STEM = 2 * GROWTH
BOTTLENECK = 4  # multiple of k, the maps between the two convolutions of a layer (DenseNet-B)
EPS = 1.001e-5  # as in Keras; with 1e-5, as in torchvision and the authors' code, outputs agree to seven digits


class DenseNet(nn.Module):
    """Blocks in which each layer reads the maps of all earlier layers; transitions between them halve maps and sides.

    (N, channels, H, W) float32, sides of at least 32 -> (N, classes)

    `layers` is the number of layers in each block: (6, 12, 24, 16) is DenseNet-121, DenseNet-BC with k = 32 (table 1 of
    the paper).
    """

    def __init__(self, layers: tuple[int, ...] = (6, 12, 24, 16), channels: int = 3, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(channels, STEM, 7, stride=2, padding=3, bias=False),
                norm=nn.BatchNorm2d(STEM, eps=EPS),
                activation=nn.ReLU(inplace=True),
                pool=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        self.body = nn.Sequential()
        maps = STEM
        for number, count in enumerate(layers, start=1):
            self.body.add_module(f"block{number}", DenseBlock(maps, count))
            maps += count * GROWTH
            if number < len(layers):
                self.body.add_module(f"transition{number}", Transition(maps, maps // 2))
                maps //= 2
        self.norm = nn.BatchNorm2d(maps, eps=EPS)
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(maps, classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (N, 64, H / 4, W / 4)
        x = self.body(x)  # (N, 1024, H / 32, W / 32) in DenseNet-121
        x = self.pool(self.activation(self.norm(x)))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


class DenseBlock(nn.Sequential):
    """Layers that each append `GROWTH` maps to their input.

    (N, maps, H, W) -> (N, maps + layers * GROWTH, H, W)
    """

    def __init__(self, maps: int, layers: int) -> None:
        super().__init__(
            OrderedDict((f"layer{index + 1}", DenseLayer(maps + index * GROWTH)) for index in range(layers))
        )


class DenseLayer(nn.Module):
    """Normalisation, a 1x1 convolution to a bottleneck, a 3x3 one to `GROWTH` maps, concatenated with the input.

    (N, maps, H, W) -> (N, maps + GROWTH, H, W)
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(maps, eps=EPS)
        self.conv1 = nn.Conv2d(maps, BOTTLENECK * GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * GROWTH, eps=EPS)
        self.conv2 = nn.Conv2d(BOTTLENECK * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(torch.relu(self.norm1(x)))
        new = self.conv2(torch.relu(self.norm2(new)))
        return torch.cat((x, new), dim=1)


class Transition(nn.Sequential):
    """A 1x1 convolution that reduces the maps, then 2x2 mean pooling.

    (N, in_channels, H, W) -> (N, out_channels, H // 2, W // 2)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, eps=EPS)
        self.activation = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
