"""Layers that several networks share, and the arithmetic of output sizes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv2dSame(nn.Conv2d):
    """A convolution with zero padding, so that the output has ceil(H / stride) rows and ceil(W / stride) columns.

    (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))

    If the padding is odd, the extra row or column is at the bottom or right, as in TensorFlow. With a stride this is
    not the same as symmetric padding, and published weights depend on it.
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

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # noqa: A002  # the name in nn.Conv2d
        rows, columns = (self._padding(side, axis) for axis, side in enumerate(input.shape[-2:]))
        if any(rows) or any(columns):
            input = F.pad(input, (*columns, *rows))  # noqa: A001
        return super().forward(input)

    def _padding(self, side: int, axis: int) -> tuple[int, int]:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
        stride = self.stride[axis]
        # With stride 1 the padding does not depend on the side, so a free size stays free in an exported graph.
        missing = reach if stride == 1 else max(0, (-(-side // stride) - 1) * stride + reach + 1 - side)
        return missing // 2, missing - missing // 2


class ConvNorm2d(nn.Module):
    """Convolution without bias, batch normalisation, and ReLU if `activation` is set.

    (N, in_channels, H, W) -> (N, out_channels, H', W'), the convolution's output size. `same` pads for
    ceil(H / stride); otherwise every side is padded by `padding`. Without `scale` the normalisation only shifts: a
    following ReLU and convolution can absorb any scale.
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
        activated: Tensor = self.activation(self.norm(self.conv(x)))
        return activated


class ShiftNorm2d(nn.BatchNorm2d):
    """Batch normalisation with a bias but no scale (Ioffe and Szegedy, arXiv 1502.03167, section 3, gamma fixed at 1).

    (N, maps, H, W) -> (N, maps, H, W)
    """

    def __init__(self, maps: int, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__(maps, eps=eps, momentum=momentum)
        del self.weight
        self.register_parameter("weight", None)


class Branches(nn.ModuleList):
    """Parallel branches over one input, concatenated along the channels (the Inception module of Szegedy et al., arXiv
    1409.4842, section 4).

    (N, in_channels, H, W) -> (N, sum of the branches' maps, H', W')
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


def output_size(layers: nn.Sequential, size: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width after `layers` for an input of `size`. Layers without a window keep the size.

    Raises ValueError, naming the layer, if a window is larger than its input.
    """
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (_pair(value) for value in (layer.kernel_size, layer.stride, layer.padding))
            padded = size[0] + 2 * padding[0], size[1] + 2 * padding[1]
            if padded[0] < kernel[0] or padded[1] < kernel[1]:
                raise ValueError(
                    f"{name} has a {kernel[0]}x{kernel[1]} window, but its input is {size[0]}x{size[1]} left"
                )
            size = (padded[0] - kernel[0]) // stride[0] + 1, (padded[1] - kernel[1]) // stride[1] + 1
    return size


def _pair(value: object) -> tuple[int, int]:
    assert isinstance(value, int | tuple)
    return (value, value) if isinstance(value, int) else value
