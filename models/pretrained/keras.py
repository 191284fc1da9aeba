"""Keras weights, copied layer by layer in Keras' order, also where it differs from the order of registration."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convoy.models.blocks import Branches
from convoy.models.classification.resnet import Bottleneck, ResNet
from convoy.models.classification.vgg import VGG
from convoy.models.errors import BadWeights
from convoy.models.pretrained.keras_file import CONVOLUTION, DENSE, DEPTHWISE, NORM, SEPARABLE, Layers


class Flattened(NamedTuple):
    """A linear layer after a flattened (channels, height, width) map, which Keras flattens as (height, width,
    channels)."""

    linear: nn.Linear
    shape: tuple[int, int, int]


# The counterpart of one Keras layer. The Sequential is a depthwise convolution followed by a pointwise one.
Entry = nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.Sequential | Flattened


def registration_order(network: nn.Module) -> list[Entry]:
    """Returns the layers with weights in registration order, which is Keras' order for a network without branches."""
    if isinstance(network, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or _is_separable(network):
        return [network]  # type: ignore[list-item]
    return [entry for child in network.children() for entry in registration_order(child)]


def classes(layers: Layers, entries: Sequence[Entry]) -> int:
    """Returns the number of classes of the file's last layer; `entries` are of the same network with any number.

    Raises BadWeights if the file has no such layer.
    """
    head = layers.get(_kind(entries[-1]))
    if not head:
        raise BadWeights(f"the file has no {_kind(entries[-1])} layer: {_NO_TOP}")
    return head[-1].shapes[0][-1]


def copy(layers: Layers, network: nn.Module, entries: Sequence[Entry]) -> None:
    """Copies each layer into its entry. `entries` are all layers of the network with weights, in the order of Keras'
    `model.layers`; `layers` is consumed.

    Raises BadWeights if a layer is missing, left over or has another shape.
    """
    names = {id(module): name for name, module in network.named_modules()}
    filled: set[int] = set()
    for entry in entries:
        name, slots = names[id(_module(entry))], _slots(entry)
        if not layers.get(_kind(entry)):
            shapes = _listed(slot.shape for slot in slots)
            hint = "" if any(layers.values()) else f": {_NO_TOP}"
            raise BadWeights(f"the file has no {_kind(entry)} layer left for {name}, want {shapes}{hint}")
        layer = layers[_kind(entry)].popleft()
        if layer.shapes != [slot.shape for slot in slots]:
            expected = _listed(slot.shape for slot in slots)
            raise BadWeights(f"layer {layer.name!r} of the file is {_listed(layer.shapes)}, want {expected} for {name}")
        with torch.no_grad():
            for slot, array in zip(slots, layer.weights, strict=True):
                slot.target.copy_(slot.arrange(torch.from_numpy(array)))
        filled |= {id(slot.target) for slot in slots}
    for layer in (layer for queue in layers.values() for layer in queue):
        raise BadWeights(f"layer {layer.name!r} of the file, {_listed(layer.shapes)}, has no place in this network")
    tensors = {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if tensor.ndim}
    assert filled == {id(tensor) for tensor in tensors.values()}, "the order left a layer of the network out"


def vgg(network: nn.Module) -> list[Entry]:
    assert isinstance(network, VGG)
    first, *rest = registration_order(network.classifier)
    assert isinstance(first, nn.Linear)
    return [*registration_order(network.features), Flattened(first, network.grid), *rest]


def resnet(network: nn.Module) -> list[Entry]:
    """Returns the layers by depth. A shortcut's convolution has the depth of the last one beside it, but is created
    before it."""
    assert isinstance(network, ResNet)
    modules: list[nn.Module] = [network.stem]
    for block in network.modules():
        if isinstance(block, Bottleneck):
            modules += [block.step1, block.step2, block.shortcut, block.step3]
    return [entry for module in (*modules, network.classifier) for entry in registration_order(module)]


def by_depth(network: nn.Module) -> list[Entry]:
    """Returns the layers of a network with parallel branches, those farthest above the output first.

    Keras sorts `model.layers` by the length of the longest path to the output, so branches are aligned at their ends.
    At equal distance, the earlier branch comes first, as in registration order here.
    """
    entries, _ = _above(network, 0)
    return [entry for _, entry in sorted(entries, key=lambda pair: -pair[0])]


class _Slot(NamedTuple):
    """A tensor of our network, its shape in Keras, and the conversion from Keras' layout."""

    target: Tensor
    shape: tuple[int, ...]
    arrange: Callable[[Tensor], Tensor]


_NO_TOP = "it was saved without its classifier, want include_top=True"


def _slots(entry: Entry) -> list[_Slot]:
    match entry:
        case nn.Sequential():
            return [slot for convolution in entry for slot in _slots(convolution)]  # type: ignore[arg-type]
        case nn.BatchNorm2d():
            tensors = (entry.weight, entry.bias, entry.running_mean, entry.running_var)
            return [_vector(tensor) for tensor in tensors if tensor is not None]  # no weight: no scale
    bias: Tensor | None = entry.linear.bias if isinstance(entry, Flattened) else entry.bias
    return [_kernel(entry), *([] if bias is None else [_vector(bias)])]


def _kernel(entry: Entry) -> _Slot:
    match entry:
        case Flattened(linear, (channels, height, width)):
            unfolded = (height, width, channels, linear.out_features)
            folded = (linear.in_features, linear.out_features)
            return _Slot(linear.weight, folded, lambda kernel: kernel.reshape(unfolded).permute(3, 2, 0, 1).flatten(1))
        case nn.Linear():
            return _Slot(entry.weight, (entry.in_features, entry.out_features), lambda kernel: kernel.T)
    assert isinstance(entry, nn.Conv2d)
    weight = entry.weight
    out, inputs, height, width = weight.shape
    if _kind(entry) == DEPTHWISE:
        shape = (height, width, entry.in_channels, out // entry.in_channels)
        return _Slot(weight, shape, lambda kernel: kernel.permute(2, 3, 0, 1).reshape(weight.shape))
    return _Slot(weight, (height, width, inputs, out), lambda kernel: kernel.permute(3, 2, 0, 1))


def _vector(tensor: Tensor) -> _Slot:
    return _Slot(tensor, tuple(tensor.shape), lambda values: values)


def _kind(entry: Entry) -> str:
    match entry:
        case nn.BatchNorm2d():
            return NORM
        case nn.Sequential():
            return SEPARABLE
        case nn.Conv2d():
            return DEPTHWISE if _is_depthwise(entry) else CONVOLUTION
    return DENSE


def _module(entry: Entry) -> nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.Sequential:
    return entry.linear if isinstance(entry, Flattened) else entry


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


def _is_separable(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and len(module) == 2 and _is_pair(*module)


def _is_pair(first: nn.Module, second: nn.Module) -> bool:
    return _is_depthwise(first) and isinstance(second, nn.Conv2d) and second.kernel_size == (1, 1)


def _listed(shapes: Iterable[tuple[int, ...]]) -> str:
    return " ".join("x".join(map(str, shape)) for shape in shapes)


def _above(module: nn.Module, depth: int) -> tuple[list[tuple[int, Entry]], int]:
    """Returns the layers inside, each with its depth, and the depth of the layer before the module."""
    if isinstance(module, Branches):
        ends = [_above(branch, depth + 1) for branch in module]
        return [pair for entries, _ in ends for pair in entries], max(above for _, above in ends)
    children = list(module.children())
    if not children or registration_order(module) == [module]:
        return [(depth, entry) for entry in registration_order(module)], depth + 1
    entries: list[tuple[int, Entry]] = []
    for child in reversed(children):
        inside, depth = _above(child, depth)
        entries = inside + entries
    return entries, depth
