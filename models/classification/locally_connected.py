"""Convolutions without shared weights (Taigman, Yang, Ranzato, Wolf: DeepFace, CVPR 2014)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models.blocks import output_size


class DeepFace(nn.Module):
    """Two convolutions, three locally connected layers and two dense ones: C1-M2-C3-L4-L5-L6-F7-F8.

    (N, channels, H, W) float32, (H, W) = `size` -> (N, classes)

    In an aligned face, each position shows a different part, so only C1 and C3 share weights. The defaults are the
    paper's (section 3): `kernels` and `maps` of C1, C3, L4, L5 and L6, and the width of F7. They have 118,923,774
    parameters, where the paper states more than 120 million. M2 is padded, which the paper does not mention, because
    its maps otherwise would not be the paper's 71x71. Departure: the features of F7 are not normalised.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 4030,
        size: tuple[int, int] = (152, 152),
        kernels: tuple[int, int, int, int, int] = (11, 9, 9, 7, 5),
        maps: tuple[int, int, int, int, int] = (32, 16, 16, 16, 16),
        dense: int = 4096,
    ) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            OrderedDict(
                c1=nn.Conv2d(channels, maps[0], kernels[0]),  # (N, 32, 142, 142)
                relu1=nn.ReLU(inplace=True),
                m2=nn.MaxPool2d(3, stride=2, padding=1),  # (N, 32, 71, 71)
                c3=nn.Conv2d(maps[0], maps[1], kernels[1]),  # (N, 16, 63, 63)
                relu3=nn.ReLU(inplace=True),
            )
        )
        self.l4 = _local("l4", maps[1], maps[2], output_size(self.shared, size), kernels[2])
        self.l5 = _local("l5", maps[2], maps[3], self.l4.output_size, kernels[3], stride=2)
        self.l6 = _local("l6", maps[3], maps[4], self.l5.output_size, kernels[4])
        height, width = self.l6.output_size
        self.f7 = nn.Linear(maps[4] * height * width, dense)
        self.dropout = nn.Dropout(0.5)
        self.f8 = nn.Linear(dense, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        x = self.l4(x).relu()  # (N, 16, 55, 55)
        x = self.l5(x).relu()  # (N, 16, 25, 25)
        x = self.l6(x).relu()  # (N, 16, 21, 21)
        x = self.f7(x.flatten(1)).relu()
        logits: Tensor = self.f8(self.dropout(x))
        return logits


class LocallyConnected2d(nn.Module):
    """A convolution with its own kernel and bias at every position.

    (N, in_channels, H, W), (H, W) = `size` -> (N, out_channels, *output_size)

    `weight` is (H' W', out_channels, in_channels kernel kernel), positions in row-major order. Raises ValueError if the
    kernel does not fit into `size`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: tuple[int, int], kernel: int, stride: int = 1
    ) -> None:
        super().__init__()
        if min(size) < kernel:
            raise ValueError(f"a {kernel}x{kernel} kernel without shared weights gets {size[0]}x{size[1]} pixels")
        self.kernel, self.stride = kernel, stride
        self.output_size = (size[0] - kernel) // stride + 1, (size[1] - kernel) // stride + 1
        positions, inputs = self.output_size[0] * self.output_size[1], in_channels * kernel * kernel
        self.weight = nn.Parameter(torch.empty(positions, out_channels, inputs))
        self.bias = nn.Parameter(torch.zeros(out_channels, *self.output_size))
        nn.init.normal_(self.weight, std=(2 / inputs) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel, stride=self.stride)  # (N, inputs, positions)
        # One matrix product per position reads every weight once, whatever the batch size.
        values = self.weight @ patches.permute(2, 1, 0)  # (positions, out_channels, N)
        return torch.unflatten(values.permute(2, 1, 0), 2, self.output_size) + self.bias


def _local(
    name: str, in_channels: int, out_channels: int, size: tuple[int, int], kernel: int, stride: int = 1
) -> LocallyConnected2d:
    try:
        return LocallyConnected2d(in_channels, out_channels, size, kernel, stride)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
