"""`digit-scenes`: handwritten digits scattered over a textured background, with the class of every pixel.

A split of scenes uses only the strokes of the same split of `digits`. A scene depends only on its split and index, so
any of them can be made again.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from convoy.models.data.builtin import digits
from convoy.models.data.builtin.generated import CachedSplit, enlarged
from convoy.models.data.dataset import DataSet, SplitName

SEED = 2015
COUNTS: dict[SplitName, int] = {"train": 1200, "validation": 96, "test": 192}
SIZES = ((64, 64), (64, 80), (80, 64), (64, 96), (96, 64), (80, 80))  # height and width, in rotation
DIGIT_SIDES = (16, 28)  # pixels, minimum and maximum
PIXELS_PER_DIGIT = 900  # density of the scene
CONTRAST = 3.0

PALETTE = [
    (16, 16, 20),
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (250, 190, 212),
    (0, 128, 128),
]


@dataclass(frozen=True)
class Scene:
    """`image` (H, W, 3) RGB; `mask` (H, W), 0 for the background, else 1 + digit; `strokes`, the indices of its
    handwriting."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    strokes: list[int]


def load() -> DataSet:
    """Returns colour scenes of six sizes, two to six digits each, with eleven classes."""
    return DataSet(
        name="digit-scenes",
        task="segmentation",
        colour="RGB",
        labels=["background", *(str(digit) for digit in range(10))],
        palette=PALETTE,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        split=_split,
    )


def draw(split: SplitName, index: int, size: tuple[int, int]) -> Scene:
    """Returns the scene of a split and an index, of height and width `size`; deterministic."""
    random = np.random.default_rng((SEED, list(COUNTS).index(split), index))
    height, width = size
    light = bool(random.integers(2))  # light backgrounds have dark digits, and vice versa
    canvas = _texture(random, height, width, light)
    mask = np.zeros(size, np.uint8)
    ink, classes = digits.strokes()
    used: list[int] = []
    count = height * width // PIXELS_PER_DIGIT
    # Twice as many candidates as needed: for some there is no free place.
    for stroke in random.choice(digits.indices(split), size=2 * count, replace=False):
        if len(used) == count:
            break
        scale = random.uniform(*DIGIT_SIDES) / 8
        side = round(scale * 9)  # 9, not 8: one more ink pixel for the soft ends of strokes
        place = _free_place(random, mask, side)
        if place is None:
            continue
        coverage = digits.render(ink[stroke], side, scale, CONTRAST, random.uniform(-12, 12))[..., None]
        canvas[place] += coverage * (_colour(random, not light) - canvas[place])
        mask[place][coverage[..., 0] > 0.5] = 1 + classes[stroke]
        used.append(int(stroke))
    image = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return Scene(image, mask, used)


@cache
def _split(name: SplitName) -> CachedSplit:
    """Returns a split of 45 KB per scene."""
    sizes = [SIZES[index % len(SIZES)] for index in range(COUNTS[name])]

    def make(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        scene = draw(name, index, sizes[index])
        return scene.image, scene.mask

    return CachedSplit(sizes, make)


def _texture(random: np.random.Generator, height: int, width: int, light: bool) -> NDArray[np.float32]:
    canvas = np.broadcast_to(_colour(random, light), (height, width, 3)).copy()
    for cell, strength in ((24, 0.14), (6, 0.07)):
        coarse = random.normal(0, strength, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        canvas += enlarged(coarse, height, width)
    return canvas + random.normal(0, 0.02, (height, width, 1)).astype(np.float32)


def _colour(random: np.random.Generator, light: bool) -> NDArray[np.float32]:
    low, high = (0.65, 1.0) if light else (0.0, 0.35)
    return random.uniform(low, high, 3).astype(np.float32)


def _free_place(random: np.random.Generator, mask: NDArray[np.uint8], side: int) -> tuple[slice, slice] | None:
    height, width = mask.shape
    for _ in range(50):
        top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
        place = slice(top, top + side), slice(left, left + side)
        if not mask[place].any():
            return place
    return None
