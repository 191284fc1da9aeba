"""Preprocessing that published weights expect of pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from convoy.models import registry
from convoy.models.registry import Argument

if TYPE_CHECKING:
    from torch import nn

    from convoy.models.graph import ChannelOrder
    from convoy.models.pretrained.keras import Entry
    from convoy.models.pretrained.torchvision import Rename


PixelForm = Literal["plain", "imagenet", "caffe", "symmetric"]


class Preprocessing(NamedTuple):
    """`mean` and `std` are per channel in image order, red first, for pixels in 0..1, regardless of `order`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: "ChannelOrder" = "RGB"


PREPROCESSING: dict[PixelForm, Preprocessing] = {
    "plain": Preprocessing((0, 0, 0), (1, 1, 1)),
    "imagenet": Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # ImageNet's mean colour in 0..255; OpenCV, which Caffe read files with, has blue first.
    "caffe": Preprocessing((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3, "BGR"),
    "symmetric": Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
MEANING: dict[PixelForm, str] = {
    "plain": "0..1",
    "imagenet": "0..1, less the mean of ImageNet's pictures, over their deviation",
    "caffe": "0..255, blue first, less the mean colour of ImageNet's pictures",
    "symmetric": "-1..1",
}


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
        entries: list[Entry] = registry.imported(f"pretrained.{self.order}")(network)
        return entries


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
        rename: Rename = registry.imported(f"pretrained.{self.rename}")
        return rename


KERAS: dict[str, Published] = {
    "vgg16": Published("caffe", "keras:vgg"),
    "vgg19": Published("caffe", "keras:vgg"),
    "resnet50": Published("caffe", "keras:resnet", {"form": "v1"}),
    "resnet101": Published("caffe", "keras:resnet", {"form": "v1"}),
    "resnet152": Published("caffe", "keras:resnet", {"form": "v1"}),
    "densenet121": Published("imagenet"),
    "densenet169": Published("imagenet"),
    "densenet201": Published("imagenet"),
    "mobilenet": Published("symmetric"),
    "inception_v3": Published("symmetric", "keras:by_depth", {"form": "keras"}),
    "inception_resnet_v2": Published("symmetric", "keras:by_depth"),
    "xception": Published("symmetric"),
}

TORCHVISION: dict[str, PublishedState] = {
    "vgg16": PublishedState("torchvision:flat_stacks", head="classifier.6"),
    "vgg19": PublishedState("torchvision:flat_stacks", head="classifier.6"),
    "resnet18": PublishedState("torchvision:resnet", head="fc"),
    "resnet34": PublishedState("torchvision:resnet", head="fc"),
    "resnet50": PublishedState("torchvision:resnet", head="fc", arguments={"form": "v1.5"}),
    "resnet101": PublishedState("torchvision:resnet", head="fc", arguments={"form": "v1.5"}),
    "resnet152": PublishedState("torchvision:resnet", head="fc", arguments={"form": "v1.5"}),
    "densenet121": PublishedState("torchvision:densenet", head="classifier"),
    "densenet169": PublishedState("torchvision:densenet", head="classifier"),
    "densenet201": PublishedState("torchvision:densenet", head="classifier"),
    "deeplab_v3": PublishedState(
        "torchvision:deeplab_v3", head="classifier.4", arguments={"form": "torchvision", "output_stride": 8}
    ),
    # torchvision's network converts imagenet-preprocessed pixels to -1..1 itself.
    "inception_v3": PublishedState(
        "torchvision:inception_v3", head="fc", arguments={"form": "torchvision"}, pixels="symmetric"
    ),
}
