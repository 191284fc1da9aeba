"""Every architecture by name: how it is built, what it is for, what it takes, and how it is trained by default."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
from torch import nn

from models.classification.lenet5 import LeNet5
from models.errors import BadTraining
from models.segmentation.unet import UNet
from service.metadata import InputSpec, Task

Optimizer = Literal["sgd", "adamw"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a network is trained. `learning_rate` is the highest one; `patience` counts epochs without progress."""

    epochs: int
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 32
    patience: int = 10


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    build     takes `channels`, `classes` and the keyword arguments, answers a module: (N, channels, H, W) float32 to
              logits, (N, classes) or (N, classes, H, W). Where `input` has a free size, the module's attribute
              `multiple` says of what the sides must be multiples
    input     how an image reaches it; the data set decides on the colour
    arguments what `build` takes besides, with the defaults
    """

    build: Callable[..., nn.Module]
    task: Task
    input: InputSpec
    recipe: Recipe
    arguments: Mapping[str, int]


ARCHITECTURES: dict[str, Architecture] = {
    "lenet5": Architecture(
        LeNet5,
        task="classification",
        input=InputSpec(colour="L", height=32, width=32),
        recipe=Recipe(epochs=40, learning_rate=3e-3, patience=40),
        arguments={},
    ),
    "unet": Architecture(
        UNet,
        task="segmentation",
        input=InputSpec(colour="RGB", fit="pad"),
        recipe=Recipe(epochs=6, learning_rate=3e-3, batch_size=8),
        arguments={"width": 16, "depth": 3},
    ),
}


def architecture(name: str) -> Architecture:
    """The row of a name. Raises BadTraining, naming those there are."""
    if name not in ARCHITECTURES:
        raise BadTraining(f"architecture {name!r}, want one of: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build(name: str, channels: int, classes: int, arguments: Mapping[str, int]) -> nn.Module:
    """A fresh network of that architecture."""
    return architecture(name).build(channels=channels, classes=classes, **arguments)


def input_spec(name: str, network: nn.Module, colour: Literal["RGB", "L"]) -> InputSpec:
    """How an image reaches this network."""
    spec = msgspec.structs.replace(architecture(name).input, colour=colour)
    multiple = getattr(network, "multiple", 1)
    return msgspec.structs.replace(spec, multiple=multiple) if spec.fit == "pad" else spec
