"""`permuted-digits`: the images of `digits` with their pixels in a different order, the same for all.

No information is lost: the order can be undone. Only the neighbourhood of pixels no longer has a meaning. The
permutation makes no difference to a fully connected layer, which does not use the neighbourhood; it does to a
convolution.
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
    """Returns the splits, labels and pixel range of `digits`; its augmentation is applied before the permutation."""
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
    """Images (32, 32, 1) with their digits."""

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        image, digit = super().__getitem__(index)
        return permuted(image), digit


def permuted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns an image (32, 32, 1) with its pixels permuted."""
    return image.reshape(-1)[_order()].reshape(image.shape)


@cache
def _order() -> NDArray[np.int64]:
    """Returns the index in the plain image of each pixel of the permuted image."""
    return np.random.default_rng(SEED).permutation(digits.SIDE**2)
