"""Clips of motions: the same ones every time, and no single frame tells which motion it is."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from convoy.models.data.augmentation import roll
from convoy.models.data.builtin import clips
from convoy.models.data.builtin.clips import COUNTS, FRAMES, LABELS, SIDE, TENSOR, film
from convoy.models.data.dataset import SplitName

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def test_clip_is_made_again_alone() -> None:
    assert np.array_equal(film("test", 9, "up"), film("test", 9, "up"))
    assert np.array_equal(clips.load().split("test")[9][0], film("test", 9, LABELS[2]))


def test_clips_differ_by_index_and_split() -> None:
    found = [film(split, index, "grow").astype(int) for split in SPLITS for index in range(3)]
    assert all(np.abs(one - other).mean() > 8 for one, other in combinations(found, 2))


@pytest.mark.parametrize("name", SPLITS)
def test_split_has_all_motions_alike(name: SplitName) -> None:
    split = clips.load().split(name)
    assert len(split) == COUNTS[name]
    assert COUNTS[name] % len(LABELS) == 0
    clip, motion = split[5]
    assert LABELS[int(motion)] == "shrink"
    assert clip.shape == split.size(5) == (FRAMES, SIDE, SIDE, 3) == tuple(axis.size for axis in TENSOR.axes)
    assert clip.dtype == np.uint8


def _shift(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[int, int]:
    """By how many pixels, down and across, what moved between two frames has: the peak of their correlation."""
    one, other = (np.fft.fft2(frame.mean(axis=2)) for frame in (first, second))
    correlation = np.fft.ifft2(np.conj(one) * other).real
    down, across = np.unravel_index(correlation.argmax(), correlation.shape)
    return (int(down) + SIDE // 2) % SIDE - SIDE // 2, (int(across) + SIDE // 2) % SIDE - SIDE // 2


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_shape_moves_as_the_label_says(motion: str, axis: int, sign: int) -> None:
    for index in range(4):
        clip = film("test", index, motion).astype(np.float64)
        # The ground stands still: without what is the same in all frames, only the shape is left.
        moving = clip - np.median(clip, axis=0)
        shifts = [_shift(one, other)[axis] for one, other in pairwise(moving)]
        assert sign * np.median(shifts) >= 1, shifts


@pytest.mark.parametrize(("motion", "sign"), [("grow", 1), ("shrink", -1)])
def test_shape_changes_its_size_as_the_label_says(motion: str, sign: int) -> None:
    for index in range(4):
        bright = film("test", index, motion).mean(axis=(1, 2, 3))  # the shape is lighter than the ground
        assert sign * (bright[-1] - bright[0]) > 0


def test_no_single_frame_tells_the_motion() -> None:
    def rows(name: SplitName) -> tuple[NDArray[np.float64], list[object]]:
        split = clips.load().split(name)
        some = range(min(len(split), 560))
        # The brightness of the first frame, in coarse cells.
        frames = [split[index][0][0].mean(axis=2).reshape(8, 4, 8, 4).mean(axis=(1, 3)) for index in some]
        return np.stack(frames).reshape(len(frames), -1) / 255, [split[index][1] for index in some]

    simple = LogisticRegression(max_iter=2000).fit(*rows("train"))
    assert simple.score(*rows("test")) < 0.28  # chance is 1/7


def test_rolling_moves_all_frames_of_all_clips_alike() -> None:
    clip = torch.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    torch.manual_seed(3)
    rolled = roll(clip)
    assert rolled.shape == clip.shape
    where = (rolled[0, 0, 0] == clip[0, 0, 0, 0, 0]).nonzero()[0].tolist()
    assert where != [0, 0]
    assert torch.equal(rolled, torch.roll(clip, where, (-2, -1)))
