"""Random weights under which every layer of a network has something to say, for where no trained ones are to be had."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BIAS = 0.1
LIFT = 1.0  # of what batch normalisation answers


@torch.no_grad()
def randomise(network: nn.Module, images: Tensor) -> None:
    """Give each layer of weights outputs of unit variance over `images`, one layer after the other, in place.

    images   a batch as the network takes it, several images that differ

    Layer-sequential unit-variance initialisation (Mishkin and Matas, arXiv 1511.06422); batch normalisation gets the
    statistics of these images, and every bias a small random value, those of normalisation around 1. With weights as
    they come, deep networks answer the same to every image, or numbers that overflow, and a comparison of two such
    answers says nothing.
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
        # A rectifier that cuts half of everything off makes small differences a fifth larger: in fifty layers,
        # rounding becomes an answer of its own (Yang et al., arXiv 1902.08129). Lifted, most of it gets through.
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
