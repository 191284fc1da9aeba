"""Transfer learning: a run starts with another network's body and a new head for its classes."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import nn

from convoy.models import checkpoint, registry
from convoy.models.analysis.torch_reader import count, moving_statistics
from convoy.models.checkpoint import Description
from convoy.models.data.dataset import DataSet, Split, SplitName
from convoy.models.data.registry import DATA, split_of
from convoy.models.errors import BadTraining
from convoy.models.registry import Argument


class Transferred(NamedTuple):
    """`description` includes the preprocessing of the transferred weights; `moved` and `fresh` are names of parameters
    and buffers."""

    description: Description
    moved: list[str]
    fresh: list[str]


def head(description: Description) -> frozenset[str]:
    """Returns the names of the head's parameters and buffers: those of every module with a shape that depends on the
    number of classes.

    To find them, the architecture is built again with one more class. So a head is found even if the other network has
    the same number of classes, and a layer whose shape differs for another reason is not part of it.
    """
    with torch.device("meta"):
        own, other = (_shapes(description, len(description.labels) + more) for more in (0, 1))
    modules = {name.rpartition(".")[0] for name in own if own[name] != other.get(name)}
    return frozenset(name for name in own if name.rpartition(".")[0] in modules)


def in_colours_of(data: DataSet, name: str, expects: Description, strict: bool) -> DataSet:
    """Returns the data in the colours that the weights expect: a user's grey pictures as RGB, if necessary. `name` is
    the recorded name of the data, `strict` as in `data_set`."""
    if name in DATA or data.colour != "L" or expects.input is None or expects.input.colour != "RGB":
        return data

    def split(which: SplitName) -> Split:
        return split_of(name, which, data.task, "RGB", data.labels, strict)

    return replace(data, colour="RGB", mean=3 * data.mean, std=3 * data.std, split=split)


def copy_weights(source: Path, description: Description, network: nn.Module) -> Transferred:
    """Copies the weights of a checkpoint into a new network of the same architecture, except for the head, which is
    copied only if the classes are the same.

    Raises BadCheckpoint, and BadTraining, naming the part, if a part of the body does not fit.
    """
    saved, other = checkpoint.load(source)
    _check(source, "architecture", saved.architecture, description.architecture)
    _check(source, "arguments", saved.arguments, description.arguments)
    if saved.as_tensor.channels != description.as_tensor.channels:
        own = description.as_tensor.channels
        raise BadTraining(f"{source} accepts {saved.as_tensor.channels} channels, {description.data} has {own}")
    weights, target = other.state_dict(), network.state_dict()
    new = frozenset() if saved.labels == description.labels else head(description)
    moved = [name for name in target if name not in new]
    for name in moved:
        if name not in weights or weights[name].shape != target[name].shape:
            was = "nothing" if name not in weights else _by(weights[name].shape)
            raise BadTraining(
                f"{source} has {was} for {name}, want {_by(target[name].shape)}: another size of the input?"
            )
    network.load_state_dict({name: weights[name] for name in moved} | {name: target[name] for name in new})
    pixels = msgspec.structs.replace(description, mean=saved.mean, std=saved.std, channel_order=saved.channel_order)
    return Transferred(pixels, moved, [name for name in target if name in new])


def defaults_from(source: Path, architecture: str) -> tuple[dict[str, Argument], tuple[int, int] | None]:
    """Returns the weights' architecture arguments and input height and width, None if the network accepts any size.
    Raises BadCheckpoint, BadTraining."""
    saved, _ = checkpoint.load(source)
    _check(source, "architecture", saved.architecture, architecture)
    spec = saved.input
    size = None if spec is None or spec.height is None or spec.width is None else (spec.height, spec.width)
    return saved.arguments, size


def summary(transferred: Transferred, source: str, network: nn.Module) -> str:
    """Returns a message with the transferred and the new parts."""
    numbers = {**dict(network.named_parameters()), **moving_statistics(network)}
    moved = sum(numbers[name].numel() for name in transferred.moved if name in numbers)
    new = ", ".join(name for name in transferred.fresh if name in numbers) or "nothing, the classes are the same"
    return f"copied from {source}: {moved:,} of {count(network).total:,} numbers; new: {new}"


def _shapes(description: Description, classes: int) -> dict[str, torch.Size]:
    network = registry.build(
        description.architecture,
        description.as_tensor.channels,
        classes,
        description.arguments,
        registry.sides(description.spec),
    )
    return {name: value.shape for name, value in network.state_dict().items()}


def _check(source: Path, name: str, was: object, value: object) -> None:
    if was != value:
        raise BadTraining(f"{source} has {name} {was!r}, this run has {value!r}")


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a number"
