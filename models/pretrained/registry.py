"""The table of published weights that can be adopted: one row per architecture and library that publishes it.

Functions are named with their module in this package, which is imported when a file is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convoy.models import registry
from convoy.models.pretrained.preprocessing import PixelForm
from convoy.models.registry import Argument

if TYPE_CHECKING:
    from torch import nn

    from convoy.models.pretrained.keras import Entry
    from convoy.models.pretrained.torchvision import Rename


@dataclass(frozen=True)
class Published:
    """A network published by Keras.

    pixels          the preprocessing of the published ImageNet weights
    order           the function that returns our layers with weights in the order of Keras' `model.layers`: by depth
                    below the output, then by creation
    arguments       arguments that make our network equal to Keras'
    """

    pixels: PixelForm
    order: str = "keras:registration_order"
    arguments: Mapping[str, Argument] = field(default_factory=dict)

    def entries(self, network: "nn.Module") -> "list[Entry]":
        found: list[Entry] = registry.imported(f"pretrained.{self.order}")(network)
        return found


@dataclass(frozen=True)
class PublishedState:
    """A network published by torchvision.

    rename          the function that converts its names of tensors to ours
    head            its name of the last layer
    arguments       arguments that make our network equal to torchvision's
    pixels          the preprocessing of the published ImageNet weights
    """

    rename: str
    head: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    pixels: PixelForm = "imagenet"

    def renaming(self) -> "Rename":
        found: Rename = registry.imported(f"pretrained.{self.rename}")
        return found


KERAS: dict[str, Published] = {
    "vgg16": Published("caffe", "layer_order:vgg"),
    "vgg19": Published("caffe", "layer_order:vgg"),
    "resnet50": Published("caffe", "layer_order:resnet", {"form": "v1"}),
    "resnet101": Published("caffe", "layer_order:resnet", {"form": "v1"}),
    "resnet152": Published("caffe", "layer_order:resnet", {"form": "v1"}),
    "densenet121": Published("imagenet"),
    "densenet169": Published("imagenet"),
    "densenet201": Published("imagenet"),
    "mobilenet": Published("symmetric"),
    "inception_v3": Published("symmetric", "layer_order:by_depth", {"form": "keras"}),
    "inception_resnet_v2": Published("symmetric", "layer_order:by_depth"),
    "xception": Published("symmetric"),
}

TORCHVISION: dict[str, PublishedState] = {
    "vgg16": PublishedState("tensor_names:flat_stacks", head="classifier.6"),
    "vgg19": PublishedState("tensor_names:flat_stacks", head="classifier.6"),
    "resnet18": PublishedState("tensor_names:resnet", head="fc"),
    "resnet34": PublishedState("tensor_names:resnet", head="fc"),
    "resnet50": PublishedState("tensor_names:resnet", head="fc", arguments={"form": "v1.5"}),
    "resnet101": PublishedState("tensor_names:resnet", head="fc", arguments={"form": "v1.5"}),
    "resnet152": PublishedState("tensor_names:resnet", head="fc", arguments={"form": "v1.5"}),
    "densenet121": PublishedState("tensor_names:densenet", head="classifier"),
    "densenet169": PublishedState("tensor_names:densenet", head="classifier"),
    "densenet201": PublishedState("tensor_names:densenet", head="classifier"),
    "deeplab_v3": PublishedState(
        "tensor_names:deeplab_v3", head="classifier.4", arguments={"form": "torchvision", "output_stride": 8}
    ),
    # torchvision's network converts imagenet-preprocessed pixels to -1..1 itself.
    "inception_v3": PublishedState(
        "tensor_names:inception_v3", head="fc", arguments={"form": "torchvision"}, pixels="symmetric"
    ),
}
