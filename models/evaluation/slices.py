"""Slices of images by size, to show whether small images score worse."""

import bisect
import math
from collections.abc import Sequence
from itertools import pairwise

from convoy.models.errors import BadTraining

NAMES = ("small", "medium", "large")


def side(size: Sequence[int]) -> float:
    """Returns the size of an image (height, width): the side in pixels of a square of the same area."""
    return math.sqrt(size[0] * size[1])


def thirds(sides: Sequence[float]) -> list[float]:
    """Returns the sides that bound the smallest third and two thirds of the images. Images of one size stay together,
    so the thirds may be unequal; no bounds if all have one size."""
    ordered = sorted(sides)
    bounds = [ordered[math.ceil(len(ordered) * share) - 1] for share in (1 / 3, 2 / 3)]
    return sorted({bound for bound in bounds if bound < ordered[-1]})


def parse(text: str) -> list[float]:
    """Parses bounds such as `32,96`, ascending sides in pixels. Raises BadTraining."""
    words = text.split(",")
    bounds = [float(word) for word in words if word.strip().isdecimal()]
    if len(bounds) < len(words) or bounds[0] < 1 or any(a >= b for a, b in pairwise(bounds)):
        raise BadTraining(f"--slices {text!r}, want ascending sides in pixels with commas between, such as 32,96")
    return bounds


def place(side: float, bounds: Sequence[float]) -> int:
    """Returns the index of an image's slice: up to the first bound, up to the second, and so on."""
    return bisect.bisect_left(bounds, side)


def names(bounds: Sequence[float]) -> list[str]:
    """Returns the slices' names, in order: one more than there are bounds."""
    if not bounds:
        return ["all"]
    texts = [f"{bound:.4g}" for bound in bounds]
    spans = [f"up to {texts[0]}", *(f"{low} to {high}" for low, high in pairwise(texts))]
    spans = [f"{span} px" for span in [*spans, f"above {texts[-1]}"]]
    if len(spans) == len(NAMES):
        return [f"{name}, {span}" for name, span in zip(NAMES, spans, strict=True)]
    return spans
