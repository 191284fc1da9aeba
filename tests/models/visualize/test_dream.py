import numpy as np
import pytest
import torch

from convoy.models.errors import BadView
from convoy.models.settings import AscentSettings
from convoy.models.visualize import hooks
from convoy.models.visualize.ascent import response
from convoy.models.visualize.dream import dream, sizes
from convoy.models.visualize.subjects import Pixels, as_images, as_pictures
from tests.models.visualize.handmade import OneFilter, subject
from tests.models.visualize.test_ascent import FILTERS

CLIMB = AscentSettings(steps=5, rate=0.02, jitter=2, blur=0.0, space="pixels")
SEEN = subject(OneFilter(FILTERS), None)


def photograph() -> Pixels:
    row, column = np.mgrid[0:40, 0:56]
    return (128 + 60 * np.sin(row / 9) * np.cos(column / 7)).astype(np.uint8)[..., None]


def dreamt(octaves: int, seed: int = 0, channels: tuple[int, ...] = (0, 1)) -> list[torch.Tensor]:
    layer = hooks.layers(SEEN, (40, 56))[0]
    return list(dream(SEEN, photograph(), layer, list(channels), sizes((40, 56), octaves, 1.4), CLIMB, seed))


def test_octaves_grow_by_the_scale_to_the_whole_size() -> None:
    assert sizes((200, 400), 3, 2.0) == [(50, 100), (100, 200), (200, 400)]
    with pytest.raises(BadView, match="4 octaves of 2 make 40x56 as small as 5x7, want fewer --octaves"):
        sizes((40, 56), 4, 2.0)


def test_dream_has_the_size_of_the_photograph_and_takes_steps_in_each_octave() -> None:
    steps = dreamt(3)
    assert [step.shape[1:3] for step in steps[::5]] == [(20, 29), (29, 40), (40, 56)]
    assert len(steps) == 15
    assert steps[-1].shape == (1, 40, 56, 1)


def test_layer_answers_the_dream_more_than_the_photograph_which_is_still_there() -> None:
    before, after = as_pictures(photograph()), as_pictures(*as_images(dreamt(2)[-1]))
    first, last = (float(response(hooks.outputs_of(SEEN, ["conv"], each)["conv"])) for each in (before, after))
    assert last > 2 * first
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.5


def test_channels_of_the_dream_are_those_that_grow() -> None:
    def stripes(channels: tuple[int, ...]) -> float:
        picture = dreamt(1, channels=channels)[-1][0, ..., 0] - as_pictures(photograph())[0, ..., 0]
        return float(picture.diff(dim=1).abs().mean() / picture.diff(dim=0).abs().mean())

    assert stripes((0,)) > 1.5
    assert stripes((1,)) < 1 / 1.5


def test_same_seed_gives_the_same_dream() -> None:
    first, again, other = (dreamt(2, seed)[-1] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
