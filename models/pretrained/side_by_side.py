"""Keras' order of layers in a network whose branches run side by side."""

from torch import nn

from convoy.models.blocks import Branches
from convoy.models.pretrained.keras import Entry, registration_order


def by_depth(network: nn.Module) -> list[Entry]:
    """The layers with weights, the one farthest above the output first.

    Keras sorts `model.layers` by the number of layers up to the output along the longest way, so branches are aligned
    at their ends. Of those equally far up, the first branch's comes first, which is the order of registration here.
    """
    found, _ = _above(network, 0)
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]


def _above(module: nn.Module, depth: int) -> tuple[list[tuple[int, Entry]], int]:
    """The layers inside, each with its depth, and the depth of whatever answers to the module."""
    if isinstance(module, Branches):
        ends = [_above(branch, depth + 1) for branch in module]
        return [pair for found, _ in ends for pair in found], max(above for _, above in ends)
    children = list(module.children())
    if not children or registration_order(module) == [module]:
        return [(depth, entry) for entry in registration_order(module)], depth + 1
    found: list[tuple[int, Entry]] = []
    for child in reversed(children):
        inside, depth = _above(child, depth)
        found = inside + found
    return found, depth
