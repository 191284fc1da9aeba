"""torchvision weights, a state dict in a `.pth` file, copied by name: torchvision's names of tensors are converted to
Convoy's, by network."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from convoy.models.blocks import ConvNorm2d
from convoy.models.classification.vgg import VGG
from convoy.models.errors import BadWeights

# Maps a tensor's name in the file to its name in our network; None if serving does not use it.
Rename = Callable[[str, nn.Module], str | None]
State = dict[str, Tensor]

COUNTER = "num_batches_tracked"  # does not affect the output, and older files lack it


def read(path: Path) -> State:
    """Reads the tensors in a file by name, without running any code in it. Raises BadWeights."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the unpickler raises many types for an invalid file, with messages about unpickling
        raise BadWeights(f"{path} is {_WANTED}") from None
    if not (isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values())):
        raise BadWeights(f"{path} is {_WANTED}")
    return {name: value for name, value in content.items() if not name.endswith(COUNTER)}


def classes(state: State, head: str) -> int:
    """Returns the number of classes of the file's last layer, `head`. Raises BadWeights if it is missing."""
    name = f"{head}.weight"
    if name not in state:
        raise BadWeights(f"the file has no tensor {name!r}, want a whole network with its classifier")
    return len(state[name])


def copy(state: State, network: nn.Module, rename: Rename) -> None:
    """Copies every tensor to its place. Raises BadWeights if one is missing, left over or has another shape."""
    missing = {name: value for name, value in network.state_dict().items() if not name.endswith(COUNTER)}
    for name, value in state.items():
        own_name = rename(name, network)
        if own_name is None:
            continue
        if own_name not in missing:
            raise BadWeights(f"tensor {name!r} of the file, {_shape(value)}, has no place in this network")
        target = missing.pop(own_name)
        if target.shape != value.shape:
            raise BadWeights(f"tensor {name!r} of the file is {_shape(value)}, want {_shape(target)} for {own_name}")
        target.copy_(value)
    for name, value in missing.items():
        raise BadWeights(f"the file has no tensor for {name}, want one of {_shape(value)}")


_WANTED = (
    "neither HDF5 nor a state dict: want a .weights.h5 or .h5 file of Keras "
    "(of a .keras file, what `model.save_weights` writes), or a .pth file of tensors by name"
)


def renamed(*rules: tuple[str, str]) -> Rename:
    """Returns a function that replaces the first of these regular expressions that matches the start of a name; other
    names do not change."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str, network: nn.Module) -> str:
        for pattern, replacement in compiled:
            if match := pattern.match(name):
                return match.expand(replacement) + name[match.end() :]
        return name

    return rename


def flat_stacks(name: str, network: nn.Module) -> str:
    """Renames VGG's features: torchvision's are one chain, Convoy's are a chain of stacks."""
    assert isinstance(network, VGG)
    places = [f"features.{place}" for place, _ in network.features.named_modules() if "." in place]
    match = re.match(r"features\.(\d+)", name)
    return places[int(match[1])] + name[match.end() :] if match and int(match[1]) < len(places) else name


def inception_v3(name: str, network: nn.Module) -> str | None:
    """Renames the convolutions: torchvision's have names, Convoy's are numbered in the same order."""
    if name.startswith("AuxLogits."):
        return None
    names = [place for place, module in network.named_modules() if isinstance(module, ConvNorm2d)]
    places = dict(zip(_INCEPTION_V3, names, strict=True)) | {"fc": "output"}
    layer, _, tensor = name.rpartition(".")
    match = re.fullmatch(r"(.+)\.(conv|bn)", layer)
    if match and match[1] in places:
        return f"{places[match[1]]}.{'conv' if match[2] == 'conv' else 'norm'}.{tensor}"
    return f"{places.get(layer, layer)}.{tensor}"


_FIGURE_5 = "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
_REDUCTION_1 = "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
_FIGURE_6 = (
    "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 "
    "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5 branch_pool"
)
_REDUCTION_2 = "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"
_FIGURE_7 = (
    "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b "
    "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b branch_pool"
)
_MIXED = {
    **dict.fromkeys(("5b", "5c", "5d"), _FIGURE_5),
    "6a": _REDUCTION_1,
    **dict.fromkeys(("6b", "6c", "6d", "6e"), _FIGURE_6),
    "7a": _REDUCTION_2,
    **dict.fromkeys(("7b", "7c"), _FIGURE_7),
}
_INCEPTION_V3 = [
    *(f"Conv2d_{place}" for place in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")),
    *(f"Mixed_{place}.{branch}" for place, branches in _MIXED.items() for branch in branches.split()),
]

resnet = renamed(
    (r"conv1\.", "stem.conv."),
    (r"bn1\.", "stem.norm."),
    (r"layer(\d)\.(\d+)\.conv(\d)\.", r"stages.stage\1.\2.step\3.conv."),
    (r"layer(\d)\.(\d+)\.bn(\d)\.", r"stages.stage\1.\2.step\3.norm."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.", r"stages.stage\1.\2.shortcut.conv."),
    (r"layer(\d)\.(\d+)\.downsample\.1\.", r"stages.stage\1.\2.shortcut.norm."),
    (r"fc\.", "classifier."),
)
_PYRAMID = renamed(
    (r"classifier\.0\.convs\.([0-3])\.0\.", r"pyramid.branches.\1.conv."),
    (r"classifier\.0\.convs\.([0-3])\.1\.", r"pyramid.branches.\1.norm."),
    (r"classifier\.0\.convs\.4\.1\.", "pyramid.image.conv."),
    (r"classifier\.0\.convs\.4\.2\.", "pyramid.image.norm."),
    (r"classifier\.0\.project\.0\.", "pyramid.project.conv."),
    (r"classifier\.0\.project\.1\.", "pyramid.project.norm."),
    (r"classifier\.1\.", "refine.conv."),
    (r"classifier\.2\.", "refine.norm."),
    (r"classifier\.4\.", "score."),
)
densenet = renamed(
    (r"features\.(conv|norm)0\.", r"stem.\1."),
    # The published files use old names of a layer's parts: norm.1, conv.1, ..
    (r"features\.denseblock(\d+)\.denselayer(\d+)\.(norm|conv)\.?([12])\.", r"body.block\1.layer\2.\3\4."),
    (r"features\.transition(\d)\.", r"body.transition\1."),
    (r"features\.norm5\.", "norm."),
)


def deeplab_v3(name: str, network: nn.Module) -> str | None:
    """Renames a ResNet under `backbone` and the pyramid under `classifier`, and drops a head for training only."""
    if name.startswith("aux_classifier."):
        return None
    body = name.removeprefix("backbone.")
    return _PYRAMID(name, network) if body == name else resnet(body, network)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape))
