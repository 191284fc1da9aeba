"""U-Net (Ronneberger, Fischer, Brox: Convolutional Networks for Biomedical Image Segmentation, arXiv 1505.04597)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """A contracting path, an expansive path, and skip connections between equal levels.

    (N, channels, H, W) float32, H and W multiples of `multiple` = 2^depth -> (N, classes, H, W)

    `width` is the number of maps at full resolution (64 in the paper), doubled `depth` times on the way down (4 in the
    paper). Departures: the convolutions are padded, so that the class map has the image's size and the skips need no
    cropping; each is followed by batch normalisation, so that training from scratch takes minutes; there is no dropout.
    """

    def __init__(self, channels: int = 3, classes: int = 2, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.multiple = 1 << depth
        self.down = nn.ModuleList(map(DoubleConv2d, [channels, *widths[:-2]], widths[:-1]))
        self.bottom = DoubleConv2d(widths[-2], widths[-1])
        self.up = nn.ModuleList(map(Up, reversed(widths[:-1])))
        self.output = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"image is {height}x{width}, want sides that are multiples of {self.multiple}")
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for up in self.up:
            x = up(x, skips.pop())
        logits: Tensor = self.output(x)
        return logits


class DoubleConv2d(nn.Sequential):
    """Two padded 3x3 convolutions, each with batch normalisation and ReLU.

    (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """A 2x2 transposed convolution that halves the maps, concatenation with the skip, and a double convolution.

    (N, 2 * maps, H, W) and the skip (N, maps, 2 * H, 2 * W) -> (N, maps, 2 * H, 2 * W)
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * maps, maps, 2, stride=2)
        self.merge = DoubleConv2d(2 * maps, maps)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        merged: Tensor = self.merge(torch.cat((skip, self.up(x)), dim=1))
        return merged
