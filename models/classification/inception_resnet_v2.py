"""Inception-ResNet-v2 (Szegedy et al.: Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning, arXiv 1602.07261)."""

from torch import Tensor, nn

from convoy.models.blocks import Branches
from convoy.models.classification.inception_v3 import Convolutions, Stem


class InceptionResNetV2(nn.Module):
    """Forty Inception modules with residual connections.

    (N, channels, H, W) float32, at least 75x75, 299x299 in the paper -> (N, classes)

    The network is the one of the published weights, which departs from the paper's figures. The stem of Inception-v3
    and a module like its first replace figure 3. There are 10, 20 and 10 modules, of 320, 1088 and 2080 maps, where
    figure 15 has 5, 10 and 5; the last has no ReLU. The branches are those of figures 16 to 19. Normalisation only
    shifts, as in Inception-v3.
    """

    def __init__(self, channels: int = 3, classes: int = 1000) -> None:
        super().__init__()
        conv = Convolutions()
        self.stem = Stem(channels, conv)  # (N, 192, 35, 35)
        self.mixed = nn.Sequential(
            _first(192, conv),  # (N, 320, 35, 35)
            *(Residual(_figure_16(320, conv), 128, 320, scale=0.17) for _ in range(10)),
            _reduction_a(320, conv),  # (N, 1088, 17, 17)
            *(Residual(_figure_17(1088, conv), 384, 1088, scale=0.1) for _ in range(20)),
            _reduction_b(1088, conv),  # (N, 2080, 8, 8)
            *(Residual(_figure_19(2080, conv), 448, 2080, scale=0.2) for _ in range(9)),
            Residual(_figure_19(2080, conv), 448, 2080, scale=1.0, activation=False),
        )
        self.last = conv(2080, (1536, 1))  # (N, 1536, 8, 8)
        self.dropout = nn.Dropout(0.2)  # figure 15
        self.output = nn.Linear(1536, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.mixed(self.stem(x)))
        logits: Tensor = self.output(self.dropout(x.mean(dim=(2, 3))))
        return logits


class Residual(nn.Module):
    """The input plus the scaled output of branches, projected by a 1x1 convolution (section 3.3, figure 20).

    (N, channels, H, W) -> (N, channels, H, W); `maps` is the sum of the branches' maps
    """

    def __init__(self, branches: Branches, maps: int, channels: int, scale: float, activation: bool = True) -> None:
        super().__init__()
        self.branches = branches
        self.widen = nn.Conv2d(maps, channels, 1)
        self.scale = scale
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.activation(x + self.scale * self.widen(self.branches(x)))
        return total


def _first(in_channels: int, conv: Convolutions) -> Branches:
    return Branches(
        conv(in_channels, (96, 1)),
        conv(in_channels, (48, 1), (64, 5)),
        conv(in_channels, (64, 1), (96, 3), (96, 3)),
        conv.pooled(in_channels, 64),
    )


def _figure_16(in_channels: int, conv: Convolutions) -> Branches:
    return Branches(
        conv(in_channels, (32, 1)),
        conv(in_channels, (32, 1), (32, 3)),
        conv(in_channels, (32, 1), (48, 3), (64, 3)),
    )


def _reduction_a(in_channels: int, conv: Convolutions) -> Branches:
    # Figure 7 with k, l, m, n = 256, 256, 384, 384 (table 1).
    return Branches(
        conv(in_channels, (384, 3), halve=True),
        conv(in_channels, (256, 1), (256, 3), (384, 3), halve=True),
        nn.MaxPool2d(3, stride=2),
    )


def _figure_17(in_channels: int, conv: Convolutions) -> Branches:
    return Branches(
        conv(in_channels, (192, 1)),
        conv(in_channels, (128, 1), (160, (1, 7)), (192, (7, 1))),
    )


def _reduction_b(in_channels: int, conv: Convolutions) -> Branches:
    # Figure 18.
    return Branches(
        conv(in_channels, (256, 1), (384, 3), halve=True),
        conv(in_channels, (256, 1), (288, 3), halve=True),
        conv(in_channels, (256, 1), (288, 3), (320, 3), halve=True),
        nn.MaxPool2d(3, stride=2),
    )


def _figure_19(in_channels: int, conv: Convolutions) -> Branches:
    return Branches(
        conv(in_channels, (192, 1)),
        conv(in_channels, (192, 1), (224, (1, 3)), (256, (3, 1))),
    )
