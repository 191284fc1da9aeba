"""`permuted-digits`: the images of `digits` with their pixels in another order, the same for all.

Nothing is lost: whoever knows the order can put each image together again. Only which pixels are neighbours says
nothing any more. A fully connected layer cannot tell the difference, for it never knew who is beside whom; a
convolution can.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convoy.models.data.builtin import digits
from convoy.models.data.dataset import DataSet

SEED = 1989


def load() -> DataSet:
    """The splits, labels and pixel range of `digits`; its changes to training images are made before the pixels
    move."""
    plain = digits.load()
    assert plain.augment is not None
    jitter = plain.augment

    def augment(images: Tensor) -> Tensor:
        order = torch.from_numpy(_order())
        together = torch.empty_like(images.flatten(2))
        together[..., order] = images.flatten(2)
        return jitter(together.view_as(images)).flatten(2)[..., order].view_as(images)

    return replace(plain, name="permuted-digits", split=PermutedSplit, augment=augment)


class PermutedSplit(digits.DigitsSplit):
    """Images (32, 32, 1) and the digit each one is."""

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        image, digit = super().__getitem__(index)
        return permuted(image), digit


def permuted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (32, 32, 1) with its pixels in the other order."""
    return image.reshape(-1)[_order()].reshape(image.shape)


@cache
def _order() -> NDArray[np.int64]:
    """Which pixel of the plain image each one of the permuted image is."""
    return np.random.default_rng(SEED).permutation(digits.SIDE**2)
