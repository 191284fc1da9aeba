"""Xception (Chollet: Xception: Deep Learning with Depthwise Separable Convolutions, arXiv 1610.02357)."""

from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models.blocks import ConvNorm2d

EPS, MOMENTUM = 1e-3, 0.01  # of every normalisation, as in the published weights
MIDDLE = 8  # modules of the middle flow


class Xception(nn.Module):
    """36 convolutions, all separable except the first two and the shortcuts (figure 5 of the paper).

    (N, channels, H, W) float32, 299x299 in the paper -> (N, classes)

    As in the figure, separable convolutions have no bias and no activation between their two parts (section 4.7), and
    all are normalised. The 22,855,952 parameters of table 3 are the trainable ones for 1,000 classes.
    """

    def __init__(self, channels: int = 3, classes: int = 1000) -> None:
        super().__init__()
        self.entry = nn.Sequential(
            ConvNorm2d(channels, 32, 3, stride=2),  # (N, 32, 149, 149)
            ConvNorm2d(32, 64, 3),  # (N, 64, 147, 147)
            Module(64, (128, 128), reduce=True, activated=True),  # (N, 128, 74, 74)
            Module(128, (256, 256), reduce=True),  # (N, 256, 37, 37)
            Module(256, (728, 728), reduce=True),  # (N, 728, 19, 19)
        )
        self.middle = nn.Sequential(*(Module(728, (728, 728, 728)) for _ in range(MIDDLE)))  # (N, 728, 19, 19)
        self.exit = nn.Sequential(
            Module(728, (728, 1024), reduce=True),  # (N, 1024, 10, 10)
            *_separable(1024, 1536),
            nn.ReLU(inplace=True),
            *_separable(1536, 2048),
            nn.ReLU(inplace=True),  # (N, 2048, 10, 10)
        )
        self.dropout = nn.Dropout(0.5)  # section 4.3
        self.output = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.exit(self.middle(self.entry(x)))
        logits: Tensor = self.output(self.dropout(x.mean(dim=(2, 3))))
        return logits


class SeparableConv2d(nn.Sequential):
    """Depthwise, then pointwise convolution, without bias (section 1.2).

    (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, kernel, padding=kernel // 2, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )


class Module(nn.Module):
    """Separable convolutions, each after a ReLU, with a shortcut around them.

    (N, in_channels, H, W) -> (N, widths[-1], H, W), or (N, widths[-1], ceil(H / 2), ceil(W / 2)) with `reduce`

    With `reduce` the convolutions end with max pooling and the shortcut is a 1x1 convolution, else the identity. If the
    input is `activated`, the first ReLU is omitted.
    """

    def __init__(
        self, in_channels: int, widths: tuple[int, ...], reduce: bool = False, activated: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for maps, width in zip((in_channels, *widths), widths, strict=False):
            # Not in place: the shortcut reads the input before the first ReLU.
            layers += [nn.ReLU(), *_separable(maps, width)]
        if activated:
            del layers[0]
        self.body = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if reduce:
            self.body.append(MaxPool2dSame())
            self.shortcut = ConvNorm2d(in_channels, widths[-1], 1, stride=2, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


class MaxPool2dSame(nn.Module):
    """3x3 max pooling with stride 2 and TensorFlow's "same" padding: an even side is padded at its end.

    (N, maps, H, W) -> (N, maps, ceil(H / 2), ceil(W / 2))
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # With padding 0, `ceil_mode` lets the last window extend past the edge.
        return F.max_pool2d(x, 3, stride=2, padding=(height % 2, width % 2), ceil_mode=True)


def _separable(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
    return SeparableConv2d(in_channels, out_channels), nn.BatchNorm2d(out_channels, eps=EPS, momentum=MOMENTUM)
