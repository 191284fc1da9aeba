"""Random weights with which every layer has a meaningful output, for use where no trained weights are available."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BIAS = 0.1
LIFT = 1.0  # added to the output of batch normalisation


@torch.no_grad()
def randomise(network: nn.Module, images: Tensor) -> None:
    """Scales the weights of each layer in turn, in place, so that its outputs over `images` have unit variance.

    images   a batch in the network's input format, of several different images

    Layer-sequential unit-variance initialisation (Mishkin and Matas, arXiv 1511.06422). Batch normalisation gets the
    statistics of these images. Biases get small random values, around 1 for normalisation. With default initial
    weights, a deep network's output is the same for every image or overflows, so comparing two outputs proves nothing.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.uniform_(-BIAS, BIAS, generator=generator)
    hooks = [layer.register_forward_hook(_settle) for layer in network.modules()]
    network.eval()
    network(images)
    for hook in hooks:
        hook.remove()


def _settle(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    if isinstance(layer, _BatchNorm):
        (x,) = inputs
        axes = [axis for axis in range(x.dim()) if axis != 1]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(x.mean(axes))
        layer.running_var.copy_(x.var(axes, correction=0))
        # A ReLU that cuts off half of the values enlarges small differences by a fifth: over fifty layers, rounding
        # errors dominate the output (Yang et al., arXiv 1902.08129). With the lift, most values pass.
        if layer.bias is not None:
            layer.bias.add_(LIFT)
        return layer.forward(x)
    weight = layer._parameters.get("weight")
    if weight is None or weight.dim() < 2:
        return None
    deviation = float(output.std())
    if deviation > 0:
        weight.div_(deviation)
        return layer.forward(*inputs)
    return None
