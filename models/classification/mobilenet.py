"""MobileNet (Howard et al.: Efficient Convolutional Neural Networks for Mobile Vision, arXiv 1704.04861)."""

from torch import Tensor, nn

from convoy.models.blocks import Conv2dSame

STEM = 32
# Table 1 of the paper: output maps and stride of each separable convolution.
BODY = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class MobileNet(nn.Module):
    """A 3x3 convolution, thirteen depthwise separable ones, and a global mean.

    (N, channels, H, W) float32 -> (N, classes)

    `alpha` is the paper's width multiplier for the maps of every layer (section 3.3). As in the authors' release, ReLU
    is clipped at 6, and a convolution with a stride is padded at the bottom and right only. The last layer is a 1x1
    convolution of the means, equivalent to the paper's dense layer.
    """

    def __init__(self, channels: int = 3, classes: int = 1000, alpha: float = 1.0) -> None:
        super().__init__()
        if int(STEM * alpha) < 1:
            raise ValueError(f"alpha is {alpha:g}, want at least {1 / STEM:g}: every layer needs a map")
        widths = [int(width * alpha) for width in (STEM, *(width for width, _ in BODY))]
        strides = [stride for _, stride in BODY]
        self.stem = ConvNorm6(Conv2dSame(channels, widths[0], 3, stride=2, bias=False))
        self.body = nn.Sequential(*map(Separable, widths[:-1], widths[1:], strides))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(1e-3)
        self.classifier = nn.Conv2d(widths[-1], classes, 1)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (N, 32, H / 2, W / 2)
        x = self.body(x)  # (N, 1024, H / 32, W / 32)
        logits: Tensor = self.classifier(self.dropout(self.pool(x)))  # (N, classes, 1, 1)
        return logits.flatten(1)


class ConvNorm6(nn.Sequential):
    """A convolution, batch normalisation, and a ReLU clipped at 6."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.conv = convolution
        self.norm = nn.BatchNorm2d(convolution.out_channels, eps=1e-3)
        self.activation = nn.ReLU6(inplace=True)


class Separable(nn.Sequential):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each normalised (figure 3 of the paper).

    (N, in_channels, H, W) -> (N, out_channels, H', W'), H' = H with stride 1 and H // 2 with stride 2, W' the same way
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        # Not exactly "same": the authors' release pads this way for even and odd sides.
        self.pad = nn.ZeroPad2d((0, 1, 0, 1) if stride == 2 else 1)
        self.depthwise = ConvNorm6(nn.Conv2d(in_channels, in_channels, 3, stride, groups=in_channels, bias=False))
        self.pointwise = ConvNorm6(nn.Conv2d(in_channels, out_channels, 1, bias=False))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
