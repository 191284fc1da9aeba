"""From a file of weights that another library saved to a network of ours and all that its checkpoint will say."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from models import registry
from models.adopt import keras, keras_file, preprocessing
from models.adopt.preprocessing import PREPROCESSING
from models.adopt.registry import KERAS, Published
from models.checkpoint import Description
from models.errors import BadWeights
from models.registry import Argument
from models.run import commit

CHANNELS = 3


def adopt(
    architecture: str,
    path: Path,
    labels: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    arguments: Mapping[str, Argument] | None = None,
    pixels: preprocessing.Name | None = None,
) -> tuple[Description, nn.Module]:
    """A network of that architecture with the weights in a file of Keras, in eval mode, and its description.

    The file says how many classes there are; without `labels` they are called `class 0` and so on. `size` (height,
    width) and `arguments` are the architecture's own unless given; `pixels` is how the weights expect them, by default
    as the published ones do. Raises BadWeights where the file is not of this network, BadTraining for what the
    architecture does not have.
    """
    row = _row(architecture)
    given = dict(row.arguments) | dict(arguments or {})
    layers = keras_file.read(path)
    with torch.device("meta"):
        entries = row.order(registry.build(architecture, CHANNELS, 1000, given, size))
    classes = keras.classes(layers, entries)
    network = registry.build(architecture, CHANNELS, classes, given, size)
    keras.copy(layers, network, row.order(network))
    mean, std, order = PREPROCESSING[pixels or row.preprocessing]
    description = Description(
        architecture=architecture,
        arguments=registry.merged(architecture, given),
        task=registry.architecture(architecture).task,
        input=registry.input_spec(architecture, network, "RGB", size),
        data="",
        labels=_labels(labels, classes),
        palette=None,
        mean=list(mean),
        std=list(std),
        channel_order=order,
        commit=commit(),
    )
    return description, network.eval()


def _row(architecture: str) -> Published:
    registry.architecture(architecture)
    if architecture not in KERAS:
        raise BadWeights(f"Keras has no {architecture}, want one of: {', '.join(KERAS)}")
    return KERAS[architecture]


def _labels(labels: Sequence[str] | None, classes: int) -> list[str]:
    if labels is None:
        return [f"class {index}" for index in range(classes)]
    if len(labels) != classes:
        raise BadWeights(f"{len(labels)} labels for a network of {classes} classes, want one for each")
    return list(labels)
