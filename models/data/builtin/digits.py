"""`digits`: real handwriting as 32x32 grey images, white on black, one digit each."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from convoy.models.data.augment import jitter
from convoy.models.data.builtin import strokes
from convoy.models.data.dataset import DataSet, SplitName

SIDE = 32
SCALE = 3.0  # a digit then fills 24x24, with a border of four pixels
CONTRAST = 1.0  # unchanged greys: sharper edges look better but reduce accuracy


def load() -> DataSet:
    """Returns 1,257 digits for training, 180 for validation and 360 held out.

    The pixel range is that of LeNet-5's paper: black becomes -0.1 and white 1.175.
    """
    return DataSet(
        name="digits",
        task="classification",
        colour="L",
        labels=[str(digit) for digit in range(10)],
        palette=None,
        mean=[0.1 / 1.275],
        std=[1 / 1.275],
        split=DigitsSplit,
        augment=partial(jitter, degrees=10, scale=0.1, shift=0.06),
    )


class DigitsSplit:
    """Images (32, 32, 1) with their digits."""

    def __init__(self, name: SplitName) -> None:
        self.indices = strokes.indices(name)

    def __len__(self) -> int:
        return len(self.indices)

    def size(self, index: int) -> tuple[int, int]:
        return SIDE, SIDE

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return draw(self.indices[index], SIDE)


def draw(stroke: int, side: int) -> tuple[NDArray[np.uint8], int]:
    """Returns one of the 1,797 digits as a (side, side, 1) image, white on black, and its class."""
    ink, digits = strokes.strokes()
    coverage = strokes.render(ink[stroke], side, SCALE * side / SIDE, CONTRAST)
    return np.rint(coverage * 255).astype(np.uint8)[..., None], int(digits[stroke])
