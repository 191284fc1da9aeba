"""Checkpoints of any architecture with random weights, to analyse and test a network before training."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from convoy.models import checkpoint, registry
from convoy.models.checkpoint import Description
from convoy.models.data.builtin.generated import generated
from convoy.models.random_weights import randomise
from convoy.models.registry import Argument
from convoy.service.metadata import InputSpec, TensorInput

IMAGES = 4  # images that the random weights are scaled on


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
    given = registry.merged(name, arguments or {})
    channels = row.input.channels
    network = registry.build(name, channels, classes, given, size)
    description = Description(
        architecture=name,
        arguments=given,
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


def _inputs(description: Description) -> torch.Tensor:
    split = generated(description.spec)
    if description.input is None:
        same_size = [index for index in range(len(split)) if split.size(index) == split.size(0)]
        return torch.from_numpy(np.stack([split[index][0] for index in same_size[:IMAGES]]))
    first, multiple = split[0][0], description.input.multiple
    height, width = (-(-side // multiple) * multiple for side in first.shape[:2])
    images = [np.pad(split[index][0], ((0, height), (0, width), (0, 0)), mode="wrap") for index in range(IMAGES * 3)]
    return torch.from_numpy(np.stack([image[:height, :width] for image in images[::3]]))
