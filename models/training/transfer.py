"""Training that starts from the weights of another network: its body is taken over, its head for the classes is new."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import nn

from convoy.models import checkpoint, registry
from convoy.models.checkpoint import Description
from convoy.models.data.dataset import DataSet, Split, SplitName
from convoy.models.data.registry import DATA, split_of
from convoy.models.errors import BadTraining
from convoy.models.parameters import count, moving_statistics
from convoy.models.registry import Argument


class Taken(NamedTuple):
    """`description` says how pixels go in, as the taken weights expect them; `moved` and `fresh` are names of
    parameters and buffers."""

    description: Description
    moved: list[str]
    fresh: list[str]


def head(description: Description) -> frozenset[str]:
    """Names of the parameters and buffers of the head: of every module, wherever in the network, that has one whose
    shape follows from how many classes there are.

    That asks the architecture itself: it is built once with one class more. So a head for as many classes, though other
    ones, is a head, and a layer of another shape for another reason is none.
    """
    with torch.device("meta"):
        own, other = (_shapes(description, len(description.labels) + more) for more in (0, 1))
    modules = {name.rpartition(".")[0] for name in own if own[name] != other.get(name)}
    return frozenset(name for name in own if name.rpartition(".")[0] in modules)


def coloured(data: DataSet, name: str, expects: Description, strict: bool) -> DataSet:
    """The data in the colours that a network with those weights takes: one's own grey pictures as RGB, where it wants
    that. `name` is what the data are noted as, `strict` as in `data_set`."""
    if name in DATA or data.colour != "L" or expects.input is None or expects.input.colour != "RGB":
        return data

    def split(which: SplitName) -> Split:
        return split_of(name, which, data.task, "RGB", data.labels, strict)

    return replace(data, colour="RGB", mean=3 * data.mean, std=3 * data.std, split=split)


def take(source: Path, description: Description, network: nn.Module) -> Taken:
    """Copy the weights of a checkpoint into a fresh network of the same architecture, but for the head, which stays as
    it is; the head comes along where the classes are the very same.

    Raises BadCheckpoint, and BadTraining where a part of the body does not fit, naming it.
    """
    given, other = checkpoint.load(source)
    _check(source, "architecture", given.architecture, description.architecture)
    _check(source, "arguments", given.arguments, description.arguments)
    if given.takes.channels != description.takes.channels:
        own = description.takes.channels
        raise BadTraining(f"{source} takes {given.takes.channels} channels, {description.data} has {own}")
    weights, target = other.state_dict(), network.state_dict()
    new = frozenset() if given.labels == description.labels else head(description)
    moved = [name for name in target if name not in new]
    for name in moved:
        if name not in weights or weights[name].shape != target[name].shape:
            was = "nothing" if name not in weights else _by(weights[name].shape)
            raise BadTraining(
                f"{source} has {was} for {name}, want {_by(target[name].shape)}: another size of the input?"
            )
    network.load_state_dict({name: weights[name] for name in moved} | {name: target[name] for name in new})
    pixels = msgspec.structs.replace(description, mean=given.mean, std=given.std, channel_order=given.channel_order)
    return Taken(pixels, moved, [name for name in target if name in new])


def defaults(source: Path, architecture: str) -> tuple[dict[str, Argument], tuple[int, int] | None]:
    """Arguments of the architecture, and height and width of the input, as the weights were trained with them; None
    where that takes any size. Raises BadCheckpoint, BadTraining."""
    given, _ = checkpoint.load(source)
    _check(source, "architecture", given.architecture, architecture)
    spec = given.input
    size = None if spec is None or spec.height is None or spec.width is None else (spec.height, spec.width)
    return given.arguments, size


def told(taken: Taken, source: str, network: nn.Module) -> str:
    """In words, what was taken and what is new."""
    numbers = {**dict(network.named_parameters()), **moving_statistics(network)}
    moved = sum(numbers[name].numel() for name in taken.moved if name in numbers)
    new = ", ".join(name for name in taken.fresh if name in numbers) or "nothing, the classes are the same"
    return f"taken from {source}: {moved:,} of {count(network).total:,} numbers; new: {new}"


def _shapes(description: Description, classes: int) -> dict[str, torch.Size]:
    network = registry.build(
        description.architecture,
        description.takes.channels,
        classes,
        description.arguments,
        registry.sides(description.spec),
    )
    return {name: value.shape for name, value in network.state_dict().items()}


def _check(source: Path, name: str, was: object, wanted: object) -> None:
    if was != wanted:
        raise BadTraining(f"{source} has {name} {was!r}, this run has {wanted!r}")


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a number"
