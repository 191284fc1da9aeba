"""Maxout networks (Goodfellow, Warde-Farley, Mirza, Courville, Bengio, arXiv 1302.4389)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from convoy.models.blocks import output_size

MAX_NORM = 1.9365  # of the weights of one piece, as in the code published with the paper


class Maxout(nn.Module):
    """Three convolutional maxout layers with pooling, a dense maxout layer and a linear one.

    (N, channels, H, W) float32, (H, W) = `size` -> (N, classes)

    A small version of the networks of section 5: `width` units per position in the first layer and twice as many in the
    next two, of `pieces` linear pieces each. Dropout removes a fifth of the pixels and half of the inputs of the dense
    layers. The paper also applies it to the other convolutions' inputs, which is too much for so few maps.
    """

    def __init__(
        self, channels: int = 1, classes: int = 10, size: tuple[int, int] = (32, 32), width: int = 24, pieces: int = 2
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                drop=nn.Dropout(0.2),
                conv1=MaxoutConv2d(channels, width, 5, pieces, padding=2),  # (N, width, 32, 32)
                pool1=nn.MaxPool2d(3, stride=2),  # (N, width, 15, 15)
                conv2=MaxoutConv2d(width, 2 * width, 5, pieces, padding=2),  # (N, 2 width, 15, 15)
                pool2=nn.MaxPool2d(3, stride=2),  # (N, 2 width, 7, 7)
                conv3=MaxoutConv2d(2 * width, 2 * width, 3, pieces, padding=1),  # (N, 2 width, 7, 7)
                pool3=nn.MaxPool2d(3, stride=2),  # (N, 2 width, 3, 3)
            )
        )
        height, columns = output_size(self.features, size)
        self.dense = MaxoutLinear(2 * width * height * columns, 4 * width, pieces)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1)
        x = self.dense(self.dropout(x))
        logits: Tensor = self.output(self.dropout(x))
        return logits


class MaxoutConv2d(nn.Conv2d):
    """A convolution in which every map is the pixelwise maximum of its `pieces` linear maps.

    (N, in_channels, H, W) -> (N, out_channels, H + 2 padding - kernel + 1, W + 2 padding - kernel + 1)

    The kernels of a unit's pieces are adjacent in `weight`. In training no kernel's norm exceeds MAX_NORM.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, pieces: int, padding: int = 0) -> None:
        super().__init__(in_channels, out_channels * pieces, kernel, padding=padding)
        self.pieces = pieces

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # noqa: A002  # the name in nn.Conv2d
        if self.training:
            _shorten(self.weight)
        return torch.unflatten(super().forward(input), 1, (-1, self.pieces)).amax(dim=2)


class MaxoutLinear(nn.Linear):
    """A dense layer in which every unit is the maximum of `pieces` linear functions.

    (N, in_features) -> (N, out_features); `weight` as in MaxoutConv2d
    """

    def __init__(self, in_features: int, out_features: int, pieces: int) -> None:
        super().__init__(in_features, out_features * pieces)
        self.pieces = pieces

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # noqa: A002  # the name in nn.Linear
        if self.training:
            _shorten(self.weight)
        return torch.unflatten(super().forward(input), 1, (-1, self.pieces)).amax(dim=2)


@torch.no_grad()
def _shorten(weight: Tensor) -> None:
    # The paper projects after every step. Projecting before the next step differs only after the last, tiny one.
    weight.copy_(torch.renorm(weight, p=2, dim=0, maxnorm=MAX_NORM))
