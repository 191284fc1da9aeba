"""The handwriting in `digits` and `digit-scenes`: 1,797 real digits of 8x8 pixels, bundled with scikit-learn.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak, 1998), each pixel
0..16. They are split once, stratified by digit: 70 % train, 10 % validation, 20 % test. Every data set made from them
keeps that split.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from convoy.models.data.dataset import SplitName

SPLIT_SEED = 1998
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2
MARGIN = 2  # pixels without ink around the 8x8, so that strokes end softly


@cache
def strokes() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the ink (1797, 8, 8), 0..1, and the digits (1797,)."""
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)


@cache
def indices(split: SplitName) -> NDArray[np.int64]:
    """Returns which of the 1,797 belong to a split; deterministic."""
    _, digits = strokes()
    rest, test = train_test_split(
        np.arange(len(digits)), test_size=TEST_SHARE, stratify=digits, random_state=SPLIT_SEED
    )
    train, validation = train_test_split(
        rest, test_size=VALIDATION_SHARE / (1 - TEST_SHARE), stratify=digits[rest], random_state=SPLIT_SEED
    )
    return np.sort({"train": train, "validation": validation, "test": test}[split])


def render(
    ink: NDArray[np.float32], side: int, scale: float, contrast: float, degrees: float = 0
) -> NDArray[np.float32]:
    """Renders one 8x8 digit in the centre of a square, as coverage 0..1.

    ink       (8, 8), 0..1
    side      of the square that is returned, in pixels
    scale     output pixels per ink pixel
    contrast  1 keeps the bicubic greys; more narrows the edge of the stroke, which stays at coverage 0.5
    degrees   counter-clockwise rotation of the digit
    """
    sin, cos = np.sin(np.radians(degrees)) / scale, np.cos(np.radians(degrees)) / scale
    middle = side / 2
    centre = MARGIN + 4
    # Maps a pixel of the square to a pixel of the padded ink.
    affine = (cos, -sin, centre - (cos - sin) * middle, sin, cos, centre - (sin + cos) * middle)
    padded = Image.fromarray(np.pad(ink, MARGIN))
    grey = padded.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    coverage = 0.5 + contrast * (np.asarray(grey, dtype=np.float32) - 0.5)
    return coverage.clip(0, 1).astype(np.float32)
