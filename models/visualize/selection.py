"""Which channels, layers and classes are shown where the user says nothing, and what the user's words mean."""

import difflib
import re
from collections.abc import Sequence

from torch import Tensor, nn

from convoy.models.errors import BadView
from convoy.models.visualize.hooks import Layer


def channels(text: str | None, count: int, layer: str, most: int) -> list[int]:
    """The channels of `3`, `0-15` or `1,4,8-11`; without a text the first ones. Raises BadView."""
    return _listed("--channels", text, count, f"layer {layer!r} has {count} channels", most)


def inputs(text: str | None, count: int, layer: str, most: int) -> list[int]:
    """Likewise the maps over which a layer's filters lie."""
    return _listed("--inputs", text, count, f"the filters of layer {layer!r} lie over {count} maps", most)


def label(text: str, labels: Sequence[str]) -> int:
    """The class of a label; or of a number, where no label is that. Raises BadView, naming near ones."""
    found = [index for index, name in enumerate(labels) if name == text]
    if len(found) == 1:
        return found[0]
    if found:
        numbers = " and ".join(map(str, found))
        raise BadView(f"--class {text!r} is the label of classes {numbers}, want the number of one")
    if text.isdecimal() and int(text) < len(labels):
        return int(text)
    near = difflib.get_close_matches(text, labels, 5, 0.4) or labels[:10]
    raise BadView(f"--class {text!r} is none of the {len(labels)} labels, such as: {', '.join(near)}")


def filters_of(layer: Layer) -> Tensor | None:
    """The weight (filters, inputs, *sides) of a layer that convolves, None of others."""
    weight = getattr(layer.module, "weight", None)
    if not isinstance(weight, Tensor) or not (weight.dim() == 4 or isinstance(layer.module, nn.Conv1d | nn.Conv3d)):
        return None
    # An up-convolution has its inputs first.
    return weight.transpose(0, 1) if getattr(layer.module, "transposed", False) else weight


def spread(there: Sequence[Layer], count: int) -> list[Layer]:
    """So many of the layers that convolve, evenly from the first to the last; one is that in the middle."""
    convolving = [layer for layer in there if layer.is_map and filters_of(layer) is not None]
    found = convolving or [layer for layer in there if layer.is_map]
    if not found:
        raise BadView("no layer of this network answers maps")
    if count == 1:
        return [found[len(found) // 2]]
    last = len(found) - 1
    return [found[place] for place in sorted({round(turn * last / (count - 1)) for turn in range(count)})]


def last_with_places(there: Sequence[Layer], classes: int, per_pixel: bool) -> Layer:
    """Where a class-activation map is taken: the last layer whose maps have more than one place (Selvaraju et al.: the
    best of meaning and of detail).

    Of a segmentation network the last of those with the fewest places, its bottleneck (Vinogradova et al., arXiv
    2002.11434, section 3): behind it the answer's own pixels take over. Raises BadView.
    """
    maps = [layer for layer in there if layer.is_map and layer.shape[1] * layer.shape[2] > 1]
    if per_pixel:
        maps = [layer for layer in maps if layer.shape[0] != classes] or maps
        fewest = min((layer.shape[1] * layer.shape[2] for layer in maps), default=0)
        maps = [layer for layer in maps if layer.shape[1] * layer.shape[2] == fewest]
    if not maps:
        raise BadView("no layer of this network answers maps of more than one place")
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
