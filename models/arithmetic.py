"""Output sizes of convolution and pooling layers: floor((side - kernel + 2 padding) / stride) + 1."""

from torch import nn


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
                    f"{name} has a {kernel[0]}x{kernel[1]} window, and of the input {size[0]}x{size[1]} left"
                )
            size = (padded[0] - kernel[0]) // stride[0] + 1, (padded[1] - kernel[1]) // stride[1] + 1
    return size


def _pair(value: object) -> tuple[int, int]:
    assert isinstance(value, int | tuple)
    return (value, value) if isinstance(value, int) else value
