"""Deep dream: a photograph changed to increase a layer's response (Mordvintsev, Olah and Tyka, Inceptionism, 2015)."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from convoy.models.analysis.operators import by
from convoy.models.errors import BadView
from convoy.models.settings import AscentSettings
from convoy.models.visualize import hooks
from convoy.models.visualize.ascent import ascend, response
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.subjects import Pixels, Size, Subject, as_pictures

MIN_SIDE = 8  # pixels of the smallest octave


def sizes(size: Size, octaves: int, scale: float) -> list[Size]:
    """Returns height and width of each octave, smallest first and `size` last, each `scale` times the previous one.
    Raises BadView if the first would be too small."""
    octave_sizes = [tuple(max(1, round(side / scale**octave)) for side in size) for octave in reversed(range(octaves))]
    if min(octave_sizes[0]) < MIN_SIDE:
        raise BadView(
            f"{octaves} octaves of {scale:g} make {by(size)} as small as {by(octave_sizes[0])}, want fewer --octaves"
        )
    return [(height, width) for height, width in octave_sizes]


def dream(
    subject: Subject,
    photograph: Pixels,
    layer: Layer,
    channels: list[int],
    octaves: list[Size],
    settings: AscentSettings,
    seed: int,
) -> Iterator[Tensor]:
    """Yields the picture (1, h, w, C) after each of `settings.steps` steps in each octave, in that octave's size.

    photograph  (H, W, C), the size of the last octave

    What the ascent adds in one octave is enlarged and added to the photograph in the next, so the network amplifies the
    same structure at several sizes.
    """
    whole = as_pictures(photograph)

    def score(pictures: Tensor) -> Tensor:
        return response(hooks.outputs_of(subject, [layer.name], pictures)[layer.name][:, channels])

    added = torch.zeros_like(_resized(whole, octaves[0]))
    for number, size in enumerate(octaves):
        base = _resized(whole, size)
        pictures = (base + _resized(added, size)).clamp(0, 1)
        for pictures in ascend(pictures, score, settings, (seed, 2, number)):  # noqa: B020
            yield pictures
        added = pictures - base


def _resized(pictures: Tensor, size: Size) -> Tensor:
    if pictures.shape[1:3] == size:
        return pictures
    moved = F.interpolate(pictures.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True)
    return moved.permute(0, 2, 3, 1).clamp(-1, 1)
