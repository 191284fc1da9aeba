"""Networks with random weights with which every layer has a meaningful output, to analyse and test a network before
training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convoy.models import checkpoint, registry
from convoy.models.checkpoint import Description
from convoy.models.data.builtin.generated import generated
from convoy.models.registry import Argument
from convoy.service.metadata import InputSpec, TensorInput

IMAGES = 4  # images that the random weights are scaled on

BIAS = 0.1
LIFT = 1.0  # added to the output of batch normalisation


def untrained(
    name: str,
    path: Path,
    classes: int,
    size: tuple[int, int] | None = None,
    arguments: Mapping[str, Argument] | None = None,
) -> Description:
    """Writes a checkpoint of an architecture with random weights that distinguish images; the result is deterministic.

    `size` and `arguments` are as for `registry.build`. Raises BadTraining.
    """
    torch.manual_seed(0)
    row = registry.architecture(name)
    merged = registry.merged(name, arguments or {})
    channels = row.input.channels
    network = registry.build(name, channels, classes, merged, size)
    description = Description(
        architecture=name,
        arguments=merged,
        task=row.task,
        input=registry.input_spec(name, network, row.input.colour, size) if isinstance(row.input, InputSpec) else None,
        tensor=row.input if isinstance(row.input, TensorInput) else None,
        data="",
        labels=[f"class {index}" for index in range(classes)],
        palette=None,
        mean=[0.5] * channels,
        std=[0.25] * channels,
    )
    randomise(network, description.normalisation()(_inputs(description)))
    checkpoint.save(path, description, network)
    return description


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


def _inputs(description: Description) -> torch.Tensor:
    split = generated(description.spec)
    if description.input is None:
        same_size = [index for index in range(len(split)) if split.size(index) == split.size(0)]
        return torch.from_numpy(np.stack([split[index][0] for index in same_size[:IMAGES]]))
    first, multiple = split[0][0], description.input.multiple
    height, width = (-(-side // multiple) * multiple for side in first.shape[:2])
    images = [np.pad(split[index][0], ((0, height), (0, width), (0, 0)), mode="wrap") for index in range(IMAGES * 3)]
    return torch.from_numpy(np.stack([image[:height, :width] for image in images[::3]]))


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
