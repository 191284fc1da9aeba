"""The table of architectures: constructor, task, input and default training settings of each."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from convoy.models.errors import BadTraining
from convoy.models.grammar import DEFAULT
from convoy.models.settings import Recipe
from convoy.service.errors import meant
from convoy.service.metadata import Axis, InputSpec, Task, TensorInput, image_tensor

if TYPE_CHECKING:
    from torch import nn


Argument = int | float | str


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    network   its class, as "classification.resnet:ResNet" below `convoy.models`: torch is not imported until a network
              is built. The class accepts `channels`, `classes` and the keyword arguments. It is a module that maps
              (N, channels, H, W) float32, or tensors with other sides, to logits, (N, classes) or (N, classes, H, W).
              If it accepts images of any size, the sides must be multiples of its attribute `multiple`. With auxiliary
              heads, it returns (logits, auxiliary logits, ...) in training mode and has the attribute
              `auxiliary_weight`, the weight of their loss
    input     how an image is fitted to the input; the data set determines the colour. Or a tensor; the data set
              determines the meaning of its axes
    paper     the source
    sized     whether the shapes of its weights depend on the input's size. The class then also accepts `size`, (height,
              width) or the sides of the tensor without its channels
    fixed     arguments of the class that define this architecture
    arguments further arguments that a user may change, with their defaults
    """

    network: str
    task: Task
    input: InputSpec | TensorInput
    recipe: Recipe
    paper: str
    sized: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Argument] = field(default_factory=dict)

    def network_class(self) -> "type[nn.Module]":
        network: type[nn.Module] = imported(self.network)
        return network


_CROP_224 = InputSpec(colour="RGB", height=224, width=224, fit="crop")
_CROP_299 = InputSpec(colour="RGB", height=299, width=299, fit="crop")
_ANY_SIZE = InputSpec(colour="RGB", fit="pad")
# Papers with several networks; each adds what defines it.
_VGG = Architecture(
    "classification.vgg:VGG",
    task="classification",
    input=_CROP_224,
    recipe=Recipe(epochs=74, optimizer="sgd", learning_rate=0.01, weight_decay=5e-4, batch_size=64),
    paper="Simonyan and Zisserman 2014, arXiv 1409.1556",
    sized=True,
)
_RESNET = Architecture(
    "classification.resnet:ResNet",
    task="classification",
    input=_CROP_224,
    recipe=Recipe(epochs=90, optimizer="sgd", learning_rate=0.05, weight_decay=1e-4),
    paper="He et al. 2015, arXiv 1512.03385",
    arguments={"form": "v1"},
)
_DENSENET = Architecture(
    "classification.densenet:DenseNet",
    task="classification",
    input=_CROP_224,
    recipe=Recipe(epochs=90, optimizer="sgd", learning_rate=0.05, weight_decay=1e-4),
    paper="Huang et al. 2016, arXiv 1608.06993",
)
_FCN = Architecture(
    "segmentation.fcn:FCN",
    task="segmentation",
    input=_ANY_SIZE,
    recipe=Recipe(epochs=60, learning_rate=3e-4, batch_size=8),
    paper="Long et al. 2014, arXiv 1411.4038",
    arguments={"width": 64},
)

ARCHITECTURES: dict[str, Architecture] = {
    "lenet5": Architecture(
        "classification.lenet5:LeNet5",
        task="classification",
        input=InputSpec(colour="L", height=32, width=32),
        recipe=Recipe(epochs=20, learning_rate=3e-3, patience=20),
        paper="LeCun et al. 1998",
    ),
    "lenet1989": Architecture(
        "classification.lenet1989:LeNet1989",
        task="classification",
        input=InputSpec(colour="L", height=28, width=28),
        recipe=Recipe(epochs=40, learning_rate=1e-2, patience=40),
        paper="LeCun et al. 1989, NIPS 2",
        sized=True,
    ),
    "convpool": Architecture(
        "classification.convpool:ConvPool",
        task="classification",
        input=InputSpec(colour="L", height=28, width=28),
        recipe=Recipe(epochs=20, patience=20),
        paper="LeCun et al. 1998, in the form of Jia et al. 2014, arXiv 1408.5093",
        sized=True,
    ),
    "alexnet": Architecture(
        "classification.alexnet:AlexNet",
        task="classification",
        input=InputSpec(colour="RGB", height=227, width=227, fit="crop"),
        recipe=Recipe(epochs=90, optimizer="sgd", learning_rate=0.01, weight_decay=5e-4, batch_size=128),
        paper="Krizhevsky et al. 2012",
        sized=True,
    ),
    "locally_connected": Architecture(
        "classification.locally_connected:DeepFace",
        fixed={"kernels": (5, 5, 3, 3, 3), "maps": (16, 16, 16, 16, 16), "dense": 128},
        task="classification",
        input=InputSpec(colour="L", height=32, width=32),
        recipe=Recipe(epochs=20, patience=20),
        paper="Taigman et al. 2014, CVPR",
        sized=True,
    ),
    "maxout": Architecture(
        "classification.maxout:Maxout",
        task="classification",
        input=InputSpec(colour="L", height=32, width=32),
        recipe=Recipe(epochs=20, patience=20),
        paper="Goodfellow et al. 2013, arXiv 1302.4389",
        sized=True,
        arguments={"width": 24, "pieces": 2},
    ),
    "pattern": Architecture(
        "classification.pattern:Pattern",
        task="classification",
        input=InputSpec(colour="RGB", height=32, width=32),
        recipe=Recipe(epochs=20, patience=20),
        paper="Karpathy et al., CS231n",
        sized=True,
        arguments={"pattern": DEFAULT, "widths": "", "dense": ""},
    ),
    "spatial_pyramid": Architecture(
        "classification.spatial_pyramid:SpatialPyramidNet",
        task="classification",
        input=_ANY_SIZE,
        recipe=Recipe(epochs=12, patience=12),
        paper="He et al. 2014, arXiv 1406.4729",
        arguments={"width": 16},
    ),
    "vgg16": replace(_VGG, fixed={"layers": (2, 2, 3, 3, 3)}),
    "vgg19": replace(_VGG, fixed={"layers": (2, 2, 4, 4, 4)}),
    "resnet18": replace(_RESNET, fixed={"layers": (2, 2, 2, 2), "bottleneck": False, "form": "v1.5"}, arguments={}),
    "resnet34": replace(_RESNET, fixed={"layers": (3, 4, 6, 3), "bottleneck": False, "form": "v1.5"}, arguments={}),
    "resnet50": replace(_RESNET, fixed={"layers": (3, 4, 6, 3)}),
    "resnet101": replace(_RESNET, fixed={"layers": (3, 4, 23, 3)}),
    "resnet152": replace(_RESNET, fixed={"layers": (3, 8, 36, 3)}),
    "densenet121": replace(_DENSENET, fixed={"layers": (6, 12, 24, 16)}),
    "densenet169": replace(_DENSENET, fixed={"layers": (6, 12, 32, 32)}),
    "densenet201": replace(_DENSENET, fixed={"layers": (6, 12, 48, 32)}),
    "mobilenet": Architecture(
        "classification.mobilenet:MobileNet",
        task="classification",
        input=_CROP_224,
        recipe=Recipe(epochs=90, optimizer="sgd", learning_rate=0.05, weight_decay=4e-5),
        paper="Howard et al. 2017, arXiv 1704.04861",
        arguments={"alpha": 1.0},
    ),
    "googlenet": Architecture(
        "classification.googlenet:GoogLeNet",
        task="classification",
        input=_CROP_224,
        recipe=Recipe(epochs=60, optimizer="sgd", learning_rate=0.01, weight_decay=2e-4),
        paper="Szegedy et al. 2014, arXiv 1409.4842",
        sized=True,
    ),
    "inception_v3": Architecture(
        "classification.inception_v3:InceptionV3",
        task="classification",
        input=_CROP_299,
        recipe=Recipe(epochs=100, optimizer="sgd", learning_rate=0.045, weight_decay=4e-5),
        paper="Szegedy et al. 2015, arXiv 1512.00567",
        arguments={"form": "keras"},
    ),
    "inception_resnet_v2": Architecture(
        "classification.inception_resnet_v2:InceptionResNetV2",
        task="classification",
        input=_CROP_299,
        recipe=Recipe(epochs=100, optimizer="sgd", learning_rate=0.045, weight_decay=4e-5),
        paper="Szegedy et al. 2016, arXiv 1602.07261",
    ),
    "xception": Architecture(
        "classification.xception:Xception",
        task="classification",
        input=_CROP_299,
        recipe=Recipe(epochs=100, optimizer="sgd", learning_rate=0.045, weight_decay=1e-5),
        paper="Chollet 2016, arXiv 1610.02357",
    ),
    "conv1d": Architecture(
        "classification.conv1d:Conv1d",
        task="classification",
        input=TensorInput(name="waveform", dtype="float32", axes=(Axis(name="channel", size=3), Axis(name="time"))),
        recipe=Recipe(epochs=10, learning_rate=1e-2, batch_size=16, patience=10),
        paper="Wang et al. 2016, arXiv 1611.06455",
        arguments={"width": 32},
    ),
    "conv3d": Architecture(
        "classification.conv3d:Conv3d",
        task="classification",
        input=TensorInput(
            name="clip",
            dtype="uint8",
            axes=(
                Axis(name="time", size=8),
                Axis(name="height", size=32),
                Axis(name="width", size=32),
                Axis(name="channel", size=3),
            ),
        ),
        recipe=Recipe(epochs=8, learning_rate=5e-3, patience=8),
        paper="Tran et al. 2014, arXiv 1412.0767",
        sized=True,
        arguments={"width": 8, "dropout": 0.2},
    ),
    "unet": Architecture(
        "segmentation.unet:UNet",
        task="segmentation",
        input=_ANY_SIZE,
        recipe=Recipe(epochs=6, learning_rate=3e-3, batch_size=8),
        paper="Ronneberger et al. 2015, arXiv 1505.04597",
        arguments={"width": 16, "depth": 3},
    ),
    "fcn32s": replace(_FCN, fixed={"stride": 32}),
    "fcn16s": replace(_FCN, fixed={"stride": 16}),
    "fcn8s": replace(_FCN, fixed={"stride": 8}),
    "segnet": Architecture(
        "segmentation.segnet:SegNet",
        task="segmentation",
        input=_ANY_SIZE,
        recipe=Recipe(epochs=60, batch_size=8),
        paper="Badrinarayanan et al. 2015, arXiv 1511.00561",
        arguments={"width": 64},
    ),
    "deeplab_v3": Architecture(
        "segmentation.deeplab_v3:DeepLabV3",
        task="segmentation",
        input=_ANY_SIZE,
        recipe=Recipe(epochs=60, batch_size=8),
        paper="Chen et al. 2017, arXiv 1706.05587",
        arguments={"width": 64, "output_stride": 16, "form": "paper"},
    ),
}


def architecture(name: str) -> Architecture:
    """Returns the row of a name. Raises BadTraining, listing the known names."""
    if name not in ARCHITECTURES:
        raise BadTraining(f"architecture {name!r}, want one of: {', '.join(ARCHITECTURES)}{meant(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build(
    name: str,
    channels: int,
    classes: int,
    arguments: Mapping[str, Argument] | None = None,
    size: tuple[int, ...] | None = None,
) -> "nn.Module":
    """Returns a new network of that architecture, with its default arguments overridden by `arguments`.

    `size` is the input's sides, if not the architecture's own. Raises BadTraining for an argument or a size that the
    architecture does not accept.
    """
    row = architecture(name)
    options = merged(name, arguments or {})
    if row.sized:
        options["size"] = size or sides(row.input)
    try:
        return row.network_class()(channels=channels, classes=classes, **row.fixed, **options)
    except ValueError as error:
        raise BadTraining(f"{name}: {error}") from None


def merged(name: str, arguments: Mapping[str, Argument]) -> dict[str, Any]:
    """Returns the architecture's default arguments, overridden by `arguments`, each converted to its default's type.

    Text is converted to a number where the default is one. Raises BadTraining.
    """
    defaults = architecture(name).arguments
    for key, value in arguments.items():
        if key not in defaults:
            expected = f"want one of: {', '.join(defaults)}" if defaults else "it has none"
            raise BadTraining(f"{key} = {value!r} is no argument of {name}, {expected}")
    return {key: _as(key, arguments.get(key, default), type(default)) for key, default in defaults.items()}


def sides(spec: InputSpec | TensorInput) -> tuple[int, ...] | None:
    """Returns an input's height and width, or a tensor's sides without the channels; None if any side is free."""
    tensor = image_tensor(spec) if isinstance(spec, InputSpec) else spec
    sizes = tuple(axis.size for axis in tensor.axes if axis.name != "channel" and axis.size is not None)
    return None if tensor.free else sizes


def input_spec(
    name: str, network: "nn.Module", colour: Literal["RGB", "L"], size: tuple[int, int] | None = None
) -> InputSpec:
    """Returns the input specification of this network; `size` is (height, width), if not the architecture's own.

    Raises BadTraining for a size if the network accepts any size, and if its input is not an image.
    """
    own = architecture(name).input
    if not isinstance(own, InputSpec):
        raise BadTraining(f"{name} accepts tensors, not images")
    check_size(name, size)
    spec = msgspec.structs.replace(own, colour=colour)
    if spec.fit == "pad":
        return msgspec.structs.replace(spec, multiple=getattr(network, "multiple", 1))
    return spec if size is None else msgspec.structs.replace(spec, height=size[0], width=size[1])


def check_size(name: str, size: tuple[int, int] | None) -> None:
    """Raises BadTraining for a size if the network accepts any size."""
    own = architecture(name).input
    if size is not None and isinstance(own, InputSpec) and own.fit == "pad":
        raise BadTraining(f"size {size[0]}x{size[1]}: {name} accepts images of any size")


def imported(path: str) -> Any:
    """Imports and returns the object that "classification.resnet:ResNet" names, below `convoy.models`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"convoy.models.{module}"), name)


def _as(key: str, value: Argument, kind: type[Any]) -> Argument:
    try:
        return msgspec.convert(value, kind, strict=False)  # type: ignore[no-any-return]
    except msgspec.ValidationError:
        raise BadTraining(f"{key} = {value!r}, want {_KINDS[kind]}") from None


_KINDS = {int: "an integer", float: "a number", str: "text"}
