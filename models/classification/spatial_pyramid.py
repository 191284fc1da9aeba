"""Spatial pyramid pooling: dense layers after feature maps of any size (He, Zhang, Ren, Sun, arXiv 1406.4729)."""

import torch
from torch import Tensor, nn

from convoy.models.blocks import ConvNorm2d

BINS = (1, 2, 4)


class SpatialPyramidNet(nn.Module):
    """Five convolutions, a spatial pyramid and two dense layers, for an image of any size.

    (N, channels, H, W) float32 -> (N, classes)

    The paper adds the pyramid to known networks. This one is small, with `width` maps at first, and reduces the size by
    strides, which leave at least one pixel of any image.
    """

    multiple = 1

    def __init__(self, channels: int = 3, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm2d(channels, width, 3, padding=1),
            ConvNorm2d(width, 2 * width, 3, stride=2, padding=1),  # (N, 2 width, ceil(H / 2), ceil(W / 2))
            ConvNorm2d(2 * width, 2 * width, 3, padding=1),
            ConvNorm2d(2 * width, 4 * width, 3, stride=2, padding=1),  # (N, 4 width, ceil(H / 4), ceil(W / 4))
            ConvNorm2d(4 * width, 4 * width, 3, padding=1),
        )
        self.pyramid = SpatialPyramid(BINS)
        self.dense = nn.Linear(4 * width * self.pyramid.places, 128)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pyramid(self.features(x))  # (N, 84 width)
        x = self.dropout(self.dense(x).relu())
        logits: Tensor = self.output(x)
        return logits


class SpatialPyramid(nn.Module):
    """The maximum of each map in each bin, for grids of n x n bins that cover the map, one grid per n in `bins`.

    (N, maps, H, W) -> (N, maps * places), the grids concatenated, each bin by bin for each map

    Bin (i, j) spans the rows floor(i H / n) to ceil((i + 1) H / n), and the columns in the same way (section 2.3 and
    appendix A of the paper), so no bin is empty: if H < n, neighbours overlap.
    """

    def __init__(self, bins: tuple[int, ...]) -> None:
        super().__init__()
        self.bins = bins
        self.places = sum(n * n for n in bins)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([_largest(_largest(x, n).mT, n).mT.flatten(1) for n in self.bins], dim=1)


def _largest(x: Tensor, n: int) -> Tensor:
    """(N, maps, H, W) -> (N, maps, n, W)"""
    height = x.shape[2]
    # Slices, since an exported graph can compute their bounds from the height; exported adaptive pooling needs a fixed
    # height.
    spans = [(i * height // n, ((i + 1) * height + n - 1) // n) for i in range(n)]
    return torch.cat([x[:, :, start:end].amax(2, keepdim=True) for start, end in spans], dim=2)
