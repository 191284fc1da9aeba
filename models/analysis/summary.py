"""Summaries of architectures, checkpoints and ONNX files: layers, shapes, costs and receptive fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from convoy.models import checkpoint, paths, registry, runtime
from convoy.models.analysis import onnx_reader, torch_reader
from convoy.models.analysis.operators import FREE_SIDE, Graph, by
from convoy.models.analysis.rows import Anatomy, anatomy
from convoy.models.errors import BadTraining, EmptyOutput, ImpossibleLayer
from convoy.models.registry import Architecture, Argument
from convoy.service.errors import ConvoyError
from convoy.service.metadata import InputSpec, TensorInput

Size = tuple[int, ...]


class Totals(NamedTuple):
    """Cost of a network at one image size; parameters are counted as in `convoy.models.analysis.torch_reader.count`."""

    parameters: int
    multiply_adds: int


def totals(
    name: str,
    size: Size | None = None,
    classes: int | None = None,
    channels: int | None = None,
    arguments: Mapping[str, Argument] | None = None,
) -> Totals:
    """Returns an architecture's totals without allocating weights. Raises as `inspect_architecture`."""
    whole = inspect_architecture(name, size, classes, channels, arguments)
    return Totals(whole.parameters, whole.multiply_adds)


def useful_threads(
    name: str, size: Size | None, classes: int, channels: int, arguments: Mapping[str, Argument], batch: int
) -> int:
    """Returns the number of threads that pay for a forward pass of `batch` inputs of this size, as in
    `convoy.models.runtime.useful_threads`. Any number for a size that the network refuses: its first pass says why."""
    try:
        cost = totals(name, size, classes, channels, arguments)
    except ConvoyError:
        return runtime.MAX_THREADS
    return runtime.useful_threads(cost.multiply_adds * batch)


def inspect_architecture(
    name: str,
    size: Size | None = None,
    classes: int | None = None,
    channels: int | None = None,
    arguments: Mapping[str, Argument] | None = None,
) -> Anatomy:
    """Analyses an architecture at its own image size, or at `size`, on the meta device: nothing is allocated.

    Raises BadTraining for invalid arguments, and ImpossibleLayer, naming the layer whose output would be empty.
    """
    row = registry.architecture(name)
    channels = channels or row.input.channels
    classes = classes or _classes(row)
    sides = sides_of(name, row.input, size)
    with torch.device("meta"):
        try:
            network = registry.build(name, channels, classes, arguments, size)
        except BadTraining as refusal:
            if size is None:
                raise
            # Built for its own size, the network reveals which layer the other size is too small for.
            try:
                _graph(name, registry.build(name, channels, classes, arguments), channels, sides)
            except EmptyOutput:
                raise
            except ImpossibleLayer:  # a mismatch with the weights for its own size, unrelated to the other size
                raise refusal from None
            raise
        return anatomy(_graph(name, network, channels, sides))


def inspect_file(path: Path, size: Size | None = None) -> Anatomy:
    """Analyses a checkpoint or an ONNX file, by its suffix. Raises BadNetworkFile, BadCheckpoint, ImpossibleLayer."""
    paths.check_network(path)
    if path.suffix == ".onnx":
        try:
            return anatomy(onnx_reader.read(path, size))
        except ImpossibleLayer as error:
            raise ImpossibleLayer(f"{path.name}: {error.message}") from error
    description, network = checkpoint.load(path)
    sides = sides_of(path.name, description.spec, size)
    return anatomy(_graph(path.name, network.to("meta"), description.as_tensor.channels, sides))


def sides_of(name: str, spec: InputSpec | TensorInput, size: Size | None) -> Size:
    """Returns `size`, or the sides of the input, with FREE_SIDE for free ones."""
    if isinstance(spec, InputSpec):
        own = [spec.height, spec.width]
    else:
        own = [axis.size for axis in spec.axes if axis.name != "channel"]
    if size is not None and len(size) != len(own):
        raise BadTraining(f"size {by(size)}: {name} accepts an input of {len(own)} sides")
    return size or tuple(side or FREE_SIDE for side in own)


def _graph(name: str, network: nn.Module, channels: int, sides: tuple[int, ...]) -> Graph:
    try:
        return torch_reader.read(network.eval(), (1, channels, *sides))
    except ImpossibleLayer as error:
        raise type(error)(f"{name} at {by(sides)}: {error.message}") from error
    except ValueError as error:  # raised by a network that does not accept the image
        raise BadTraining(f"{name}: {error}") from None


def _classes(row: Architecture) -> int:
    if row.task == "segmentation":
        return 21  # as in Pascal VOC, with the background
    return 1000 if isinstance(row.input, InputSpec) and row.input.channels == 3 else 10
