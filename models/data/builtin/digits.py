"""`digits`: real handwriting as 32x32 grey images, white on black, one digit each; and `permuted-digits`, the same
images with their pixels in a different order, the same for all.

The handwriting in `digits` and `digit-scenes` are 1,797 real digits of 8x8 pixels, bundled with scikit-learn: the test
part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak, 1998), each pixel 0..16. They are
split once, stratified by digit: 70 % train, 10 % validation, 20 % test. Every data set made from them keeps that split.

The permutation loses no information: it can be undone. Only the neighbourhood of pixels no longer has a meaning. That
makes no difference to a fully connected layer, which does not use the neighbourhood; it does to a convolution.
"""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from convoy.models.data.augmentation import jitter
from convoy.models.data.builtin.generated import CachedSplit
from convoy.models.data.dataset import DataSet, Sample, SplitName, Target

SIDE = 32
SCALE = 3.0  # a digit then fills 24x24, with a border of four pixels
CONTRAST = 1.0  # unchanged greys: sharper edges look better but reduce accuracy

PERMUTATION_SEED = 1989

SPLIT_SEED = 1998
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2
MARGIN = 2  # pixels without ink around the 8x8, so that strokes end softly


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
        split=_split,
        augment=partial(jitter, degrees=10, scale=0.1, shift=0.06),
    )


def draw(stroke: int, side: int) -> tuple[NDArray[np.uint8], int]:
    """Returns one of the 1,797 digits as a (side, side, 1) image, white on black, and its class."""
    ink, classes = strokes()
    coverage = render(ink[stroke], side, SCALE * side / SIDE, CONTRAST)
    return np.rint(coverage * 255).astype(np.uint8)[..., None], int(classes[stroke])


def load_permuted() -> DataSet:
    """Returns the splits, labels and pixel range of `digits`; its augmentation is applied before the permutation."""
    plain = load()
    assert plain.augment is not None
    jitter = plain.augment

    def augment(images: Tensor) -> Tensor:
        order = torch.from_numpy(_order())
        together = torch.empty_like(images.flatten(2))
        together[..., order] = images.flatten(2)
        return jitter(together.view_as(images)).flatten(2)[..., order].view_as(images)

    return replace(plain, name="permuted-digits", split=_permuted_split, augment=augment)


def permuted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns an image (32, 32, 1) with its pixels permuted."""
    return image.reshape(-1)[_order()].reshape(image.shape)


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


@cache
def _split(name: SplitName) -> CachedSplit:
    """Returns a split of 1 KB per digit."""
    drawn = indices(name)
    return CachedSplit([(SIDE, SIDE)] * len(drawn), lambda index: draw(drawn[index], SIDE))


@cache
def _permuted_split(name: SplitName) -> CachedSplit:
    plain = _split(name)

    def permuted_digit(index: int) -> tuple[Sample, Target]:
        image, digit = plain[index]
        return permuted(image), digit

    return CachedSplit(plain.sizes, permuted_digit)


@cache
def _order() -> NDArray[np.int64]:
    """Returns the index in the plain image of each pixel of the permuted image."""
    return np.random.default_rng(PERMUTATION_SEED).permutation(SIDE**2)
