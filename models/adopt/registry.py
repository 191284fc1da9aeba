"""Whose weights can be adopted: one row per architecture and library that publishes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from models.adopt import preprocessing
from models.adopt.keras import Entry, Flattened, registration_order
from models.classification.resnet import Bottleneck, ResNet
from models.classification.vgg import VGG
from models.registry import Argument


@dataclass(frozen=True)
class Published:
    """How Keras has a network.

    preprocessing   of the published ImageNet weights
    order           our layers with weights in the order of Keras' `model.layers`, which is by depth below the output
                    and then by creation
    arguments       with which our network is Keras'
    """

    preprocessing: preprocessing.Name
    order: Callable[[nn.Module], list[Entry]] = registration_order
    arguments: Mapping[str, Argument] = field(default_factory=dict)


def _vgg(network: nn.Module) -> list[Entry]:
    assert isinstance(network, VGG)
    first, *rest = registration_order(network.classifier)
    assert isinstance(first, nn.Linear)
    return [*registration_order(network.features), Flattened(first, network.grid), *rest]


def _resnet(network: nn.Module) -> list[Entry]:
    """A shortcut's convolution is as far above the output as the last one beside it, and made before it."""
    assert isinstance(network, ResNet)
    modules: list[nn.Module] = [network.stem]
    for block in network.modules():
        if isinstance(block, Bottleneck):
            modules += [block.step1, block.step2, block.shortcut, block.step3]
    return [entry for module in (*modules, network.classifier) for entry in registration_order(module)]


KERAS: dict[str, Published] = {
    "vgg16": Published("caffe", _vgg),
    "vgg19": Published("caffe", _vgg),
    "resnet50": Published("caffe", _resnet, {"form": "v1"}),
    "resnet101": Published("caffe", _resnet, {"form": "v1"}),
    "resnet152": Published("caffe", _resnet, {"form": "v1"}),
    "densenet121": Published("imagenet"),
    "densenet169": Published("imagenet"),
    "densenet201": Published("imagenet"),
    "mobilenet": Published("symmetric"),
}
