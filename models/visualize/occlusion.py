"""Occlusion maps: the drop in confidence when a part of the image is covered (Zeiler and Fergus, arXiv 1311.2901,
section 4.2)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from convoy.models.visualize import activation_maximization, hooks
from convoy.models.visualize.activation_maximization import Tick
from convoy.models.visualize.network import Size, Subject
from convoy.models.visualize.target import Target


def occlusion(subject: Subject, picture: Tensor, target: Target, patch: int, stride: int, tick: Tick) -> Tensor:
    """Returns the drop in the target's probability, (h, w), -1..1: at each pixel the mean over all patches that cover
    it. A negative value is a rise: the covered part is evidence against the class.

    picture  (1, h, w, C)
    patch    side in pixels of the covering square, which moves by `stride` pixels
    tick     called after each patch of `places`

    The cover has the mean colour of the training images, which is the most neutral for the network.
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
    """Returns top and left of every patch in row-major order; the last ones are aligned with the image's edge."""
    return [(top, left) for top in _starts(size[0], patch, stride) for left in _starts(size[1], patch, stride)]


def _starts(side: int, patch: int, stride: int) -> Iterator[int]:
    last = max(0, side - patch)
    yield from range(0, last, stride)
    yield last


def _window(place: tuple[int, int], patch: int) -> tuple[slice, slice]:
    top, left = place
    return slice(top, top + patch), slice(left, left + patch)
