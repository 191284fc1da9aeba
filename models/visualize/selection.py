"""Selection of channels, layers and classes: parsing of options, and defaults."""

import difflib
import re
from collections.abc import Sequence

from torch import Tensor, nn

from convoy.models.errors import BadView
from convoy.models.visualize.hooks import Layer


def channels(text: str | None, count: int, layer: str, most: int) -> list[int]:
    """Parses channels such as `3`, `0-15` or `1,4,8-11`; without a text, the first ones. Raises BadView."""
    return _listed("--channels", text, count, f"layer {layer!r} has {count} channels", most)


def inputs(text: str | None, count: int, layer: str, most: int) -> list[int]:
    """Parses the input maps of a layer's filters, as `channels` does. Raises BadView."""
    return _listed("--inputs", text, count, f"the filters of layer {layer!r} have {count} input maps", most)


def label(text: str, labels: Sequence[str]) -> int:
    """Returns the class of a label, or of a number if no label matches. Raises BadView, listing similar labels."""
    matches = [index for index, name in enumerate(labels) if name == text]
    if len(matches) == 1:
        return matches[0]
    if matches:
        numbers = " and ".join(map(str, matches))
        raise BadView(f"--class {text!r} is the label of classes {numbers}, want the number of one")
    if text.isdecimal() and int(text) < len(labels):
        return int(text)
    near = difflib.get_close_matches(text, labels, 5, 0.4) or labels[:10]
    raise BadView(f"--class {text!r} is not among the {len(labels)} labels, such as: {', '.join(near)}")


def filters_of(layer: Layer) -> Tensor | None:
    """Returns the weight (filters, inputs, *sides) of a convolution, None for other layers."""
    weight = getattr(layer.module, "weight", None)
    if not isinstance(weight, Tensor) or not (weight.dim() == 4 or isinstance(layer.module, nn.Conv1d | nn.Conv3d)):
        return None
    # A transposed convolution has its inputs first.
    return weight.transpose(0, 1) if getattr(layer.module, "transposed", False) else weight


def spread(layers: Sequence[Layer], count: int) -> list[Layer]:
    """Returns `count` convolutions, evenly spread from the first to the last; a single one is from the middle."""
    convolving = [layer for layer in layers if layer.is_map and filters_of(layer) is not None]
    candidates = convolving or [layer for layer in layers if layer.is_map]
    if not candidates:
        raise BadView("no layer of this network outputs maps")
    if count == 1:
        return [candidates[len(candidates) // 2]]
    last = len(candidates) - 1
    return [candidates[place] for place in sorted({round(turn * last / (count - 1)) for turn in range(count)})]


def last_with_places(layers: Sequence[Layer], classes: int, per_pixel: bool) -> Layer:
    """Returns the layer for a class activation map: the last one whose maps have more than one position (Selvaraju et
    al.: the best compromise between semantics and detail).

    For a segmentation network it is the last of those with the fewest positions, its bottleneck (Vinogradova et al.,
    arXiv 2002.11434, section 3): after it the output's own pixels dominate. Raises BadView.
    """
    maps = [layer for layer in layers if layer.is_map and layer.shape[1] * layer.shape[2] > 1]
    if per_pixel:
        maps = [layer for layer in maps if layer.shape[0] != classes] or maps
        fewest = min((layer.shape[1] * layer.shape[2] for layer in maps), default=0)
        maps = [layer for layer in maps if layer.shape[1] * layer.shape[2] == fewest]
    if not maps:
        raise BadView("no layer of this network outputs maps of more than one position")
    return maps[-1]


def _listed(option: str, text: str | None, count: int, why: str, most: int) -> list[int]:
    if text is None:
        return list(range(min(count, most)))
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < count:
            raise BadView(f"{option} {text!r}, want numbers such as 0-15,20 from 0 to {count - 1}: {why}")
        chosen += [number for number in range(first, last + 1) if number not in chosen]
    return chosen
