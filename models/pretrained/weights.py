"""Adoption of weights that another library saved: builds the network and its checkpoint's description."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import torch
from torch import nn

from convoy.models import paths, registry
from convoy.models.checkpoint import Description
from convoy.models.errors import BadWeights
from convoy.models.pretrained import keras, keras_file, torchvision
from convoy.models.pretrained.registry import KERAS, PREPROCESSING, TORCHVISION, PixelForm, Published, PublishedState
from convoy.models.registry import Argument
from convoy.models.training.run import commit
from convoy.service.text import NoText, decoded

CHANNELS = 3


class Adopted(NamedTuple):
    """`network` is in eval mode; `library` saved its weights; `pixels` is its preprocessing."""

    description: Description
    network: nn.Module
    library: str
    pixels: PixelForm


def adopt(
    architecture: str,
    path: Path,
    labels: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    arguments: Mapping[str, Argument] | None = None,
    pixels: PixelForm | None = None,
) -> Adopted:
    """Returns a network of that architecture with the weights in a file of Keras or torchvision.

    The file determines the number of classes; without `labels` they are named `class 0` and so on. `size` (height,
    width) defaults to the architecture's own, `arguments` and `pixels` to those of the library's published network.
    Raises BadWeights if the file does not fit the network, BadTraining for an option the architecture does not have.
    """
    task = registry.architecture(architecture).task
    paths.check_weights(path)
    library = "Keras" if h5py.is_hdf5(path) else "torchvision"
    row = _row(architecture, library)
    merged = registry.merged(architecture, {**row.arguments, **(arguments or {})})

    def build(classes: int) -> nn.Module:
        return registry.build(architecture, CHANNELS, classes, merged, size)

    from_file = _from_keras(path, row, build) if isinstance(row, Published) else _from_torchvision(path, row, build)
    network, classes = from_file
    name = pixels or row.pixels
    mean, std, order = PREPROCESSING[name]
    description = Description(
        architecture=architecture,
        arguments=merged,
        task=task,
        input=registry.input_spec(architecture, network, "RGB", size),
        data="",
        labels=_labels(labels, classes),
        palette=None,
        mean=list(mean),
        std=list(std),
        channel_order=order,
        commit=commit(),
    )
    return Adopted(description, network.eval(), library, name)


def read_labels(path: Path) -> list[str]:
    """Reads the labels in a text file, one per line, class 0 first. Raises BadWeights."""
    try:
        lines = [line.strip() for line in decoded(path.read_bytes()).rstrip().split("\n")]
    except NoText as error:
        raise BadWeights(f"labels {path}: {error}, one label a line") from None
    if "" in lines:
        raise BadWeights(f"line {lines.index('') + 1} of labels {path} is empty, want one label a line")
    return lines


def _row(architecture: str, library: str) -> Published | PublishedState:
    table: Mapping[str, Published | PublishedState] = KERAS if library == "Keras" else TORCHVISION
    if architecture not in table:
        raise BadWeights(
            f"{architecture} is not among the networks that can be adopted from {library}: {', '.join(table)}"
        )
    return table[architecture]


def _from_keras(path: Path, row: Published, build: Callable[[int], nn.Module]) -> tuple[nn.Module, int]:
    layers = keras_file.read(path)
    with torch.device("meta"):
        entries = row.entries(build(1))
    classes = keras.classes(layers, entries)
    network = build(classes)
    keras.copy(layers, network, row.entries(network))
    return network, classes


def _from_torchvision(path: Path, row: PublishedState, build: Callable[[int], nn.Module]) -> tuple[nn.Module, int]:
    state = torchvision.read(path)
    classes = torchvision.classes(state, row.head)
    network = build(classes)
    torchvision.copy(state, network, row.renaming())
    return network, classes


def _labels(labels: Sequence[str] | None, classes: int) -> list[str]:
    if labels is None:
        return [f"class {index}" for index in range(classes)]
    if len(labels) != classes:
        raise BadWeights(f"{len(labels)} labels for a network of {classes} classes, want one for each")
    return list(labels)
