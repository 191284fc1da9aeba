"""Layers that several networks are made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv2dSame(nn.Conv2d):
    """A convolution padded with zeros until its output has ceil(H / stride) rows and ceil(W / stride) columns.

    (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))

    Where the padding is odd, the one row or column more is at the bottom and the right, as in TensorFlow: with a stride
    that is not what a symmetric padding gives, and published weights know the difference.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, dilation=dilation, groups=groups, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Conv2d's own name
        rows, columns = (self._padding(side, axis) for axis, side in enumerate(input.shape[-2:]))
        if any(rows) or any(columns):
            input = F.pad(input, (*columns, *rows))  # noqa: A001
        return super().forward(input)

    def _padding(self, side: int, axis: int) -> tuple[int, int]:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
        stride = self.stride[axis]
        # With stride 1 nothing depends on the side, so that a free size stays free in an exported graph.
        missing = reach if stride == 1 else max(0, (-(-side // stride) - 1) * stride + reach + 1 - side)
        return missing // 2, missing - missing // 2


class ConvNorm2d(nn.Module):
    """Convolution without bias, batch normalisation, and ReLU where there is an `activation`.

    (N, in_channels, H, W) -> (N, out_channels, H', W') as the convolution's arithmetic says; `same` pads for
    ceil(H / stride), otherwise `padding` is laid on every side. Where `scale` is off, the normalisation only shifts (a
    ReLU and a convolution behind it can take any scale over).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        groups: int = 1,
        eps: float = 1e-3,
        momentum: float = 0.01,
        bias: bool = False,
        same: bool = False,
        scale: bool = True,
        activation: bool = True,
    ) -> None:
        super().__init__()
        if same:
            self.conv: nn.Conv2d = Conv2dSame(in_channels, out_channels, kernel, stride, groups=groups, bias=bias)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)
        self.norm: nn.Module = (nn.BatchNorm2d if scale else ShiftNorm2d)(out_channels, eps=eps, momentum=momentum)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.activation(self.norm(self.conv(x)))
        return answer


class ShiftNorm2d(nn.BatchNorm2d):
    """Batch normalisation with a bias and no scale of its own (Ioffe and Szegedy, arXiv 1502.03167, section 3, gamma
    fixed at 1).

    (N, maps, H, W) -> the same
    """

    def __init__(self, maps: int, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__(maps, eps=eps, momentum=momentum)
        del self.weight
        self.register_parameter("weight", None)


class Branches(nn.ModuleList):
    """The same input through each of several branches, their maps one behind the other (the Inception module of
    Szegedy et al., arXiv 1409.4842, section 4).

    (N, in_channels, H, W) -> (N, the branches' maps together, H', W')
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)
