"""Images by their size: whether a network does worse on small ones."""

import bisect
import math
from collections.abc import Sequence
from itertools import pairwise

from convoy.models.errors import BadTraining

NAMES = ("small", "medium", "large")


def side(size: Sequence[int]) -> float:
    """How large an image of that height and width is: the side in pixels of a square of the same area."""
    return math.sqrt(size[0] * size[1])


def thirds(sides: Sequence[float]) -> list[float]:
    """The sides up to which images are the smallest third and the smallest two thirds; images of one size stay
    together, so the thirds may be unequal. None where all are of one size."""
    ordered = sorted(sides)
    bounds = [ordered[math.ceil(len(ordered) * share) - 1] for share in (1 / 3, 2 / 3)]
    return sorted({bound for bound in bounds if bound < ordered[-1]})


def parse(text: str) -> list[float]:
    """The bounds in `32,96`, ascending sides in pixels. Raises BadTraining."""
    words = text.split(",")
    bounds = [float(word) for word in words if word.strip().isdecimal()]
    if len(bounds) < len(words) or bounds[0] < 1 or any(a >= b for a, b in pairwise(bounds)):
        raise BadTraining(f"--slices {text!r}, want ascending sides in pixels with commas between, such as 32,96")
    return bounds


def place(side: float, bounds: Sequence[float]) -> int:
    """The number of the slice that an image belongs to: up to the first bound, up to the second, and so on."""
    return bisect.bisect_left(bounds, side)


def names(bounds: Sequence[float]) -> list[str]:
    """What the slices are called, in order: one more than there are bounds."""
    if not bounds:
        return ["all"]
    texts = [f"{bound:.4g}" for bound in bounds]
    spans = [f"up to {texts[0]}", *(f"{low} to {high}" for low, high in pairwise(texts))]
    spans = [f"{span} px" for span in [*spans, f"above {texts[-1]}"]]
    if len(spans) == len(NAMES):
        return [f"{name}, {span}" for name, span in zip(NAMES, spans, strict=True)]
    return spans
