"""Occlusion maps: how much less sure a network is with a part of the image covered (Zeiler and Fergus, arXiv 1311.2901,
section 4.2)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from convoy.models.visualize import activation_maximization, hooks
from convoy.models.visualize.activation_maximization import Tick
from convoy.models.visualize.network import Size, Subject
from convoy.models.visualize.target import Target


def occlusion(subject: Subject, picture: Tensor, target: Target, patch: int, stride: int, tick: Tick) -> Tensor:
    """By how much the target's probability falls, (h, w), -1..1: at each pixel the mean of all patches that cover it.
    Below 0 it rises: what was covered speaks against the class.

    picture  (1, h, w, C)
    patch    side in pixels of the square that covers, `stride` pixels from one place to the next
    tick     called after each patch of the `places` there are

    The cover has the mean colour of the training images, with which the network has least to do.
    """
    size = (picture.shape[1], picture.shape[2])
    fallen, covered = torch.zeros(size), torch.zeros(size)
    spots = places(size, patch, stride)
    cover = torch.tensor(subject.description.mean)
    with torch.no_grad():
        for batch in activation_maximization.batches(len(spots), size):
            pictures = picture.repeat(len(batch), 1, 1, 1)
            for image, place in zip(pictures, batch, strict=True):
                image[_window(spots[place], patch)] = cover
            values = target.probability(hooks.logits(subject, pictures))
            for place, value in zip(batch, values.tolist(), strict=True):
                fallen[_window(spots[place], patch)] += target.confidence - value
                covered[_window(spots[place], patch)] += 1
                tick()
    return fallen / covered


def places(size: Size, patch: int, stride: int) -> list[tuple[int, int]]:
    """Top and left of every patch, row by row; the last ones end where the image does."""
    return [(top, left) for top in _starts(size[0], patch, stride) for left in _starts(size[1], patch, stride)]


def _starts(side: int, patch: int, stride: int) -> Iterator[int]:
    last = max(0, side - patch)
    yield from range(0, last, stride)
    yield last


def _window(place: tuple[int, int], patch: int) -> tuple[slice, slice]:
    top, left = place
    return slice(top, top + patch), slice(left, left + patch)
