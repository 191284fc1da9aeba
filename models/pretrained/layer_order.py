"""Our layers with weights in Keras' order, for networks in which it differs from the order of registration."""

from torch import nn

from convoy.models.blocks import Branches
from convoy.models.classification.resnet import Bottleneck, ResNet
from convoy.models.classification.vgg import VGG
from convoy.models.pretrained.keras import Entry, Flattened, registration_order


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
    found, _ = _above(network, 0)
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]


def _above(module: nn.Module, depth: int) -> tuple[list[tuple[int, Entry]], int]:
    """Returns the layers inside, each with its depth, and the depth of the layer before the module."""
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
