"""Recordings of gaits: the same ones every time, told apart by how the angles follow each other and by nothing else."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from convoy.models.data.builtin import waveforms
from convoy.models.data.builtin.waveforms import COUNTS, JOINTS, LABELS, LENGTHS, TENSOR, record
from convoy.models.data.dataset import SplitName

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def test_recording_is_made_again_alone() -> None:
    first, again = record("test", 7, "run", 160), record("test", 7, "run", 160)
    assert np.array_equal(first, again)
    assert np.array_equal(waveforms.load().split("test")[7][0], record("test", 7, LABELS[2], LENGTHS[1]))


def test_recordings_differ_by_index_and_split() -> None:
    found = [record(split, index, "walk", 128) for split in SPLITS for index in range(3)]
    assert all(np.abs(one - other).mean() > 3 for one, other in combinations(found, 2))


@pytest.mark.parametrize("name", SPLITS)
def test_split_has_all_gaits_in_all_lengths_alike(name: SplitName) -> None:
    split = waveforms.load().split(name)
    assert len(split) == COUNTS[name]
    assert COUNTS[name] % len(LABELS) == 0
    pairs = {(split[index][1], split.size(index)[1]) for index in range(len(split))}
    assert pairs == {(gait, length) for gait in range(len(LABELS)) for length in LENGTHS}
    angles, _ = split[4]
    assert angles.shape == split.size(4) == (len(JOINTS), LENGTHS[0])
    assert angles.dtype == TENSOR.dtype == "float32"
    assert np.abs(angles).max() < 120  # degrees: a joint's


def test_mean_and_amplitude_do_not_tell_the_gaits() -> None:
    def rows(name: SplitName) -> tuple[NDArray[np.float64], list[object]]:
        split = waveforms.load().split(name)
        angles = [split[index][0] for index in range(len(split))]
        moments = np.stack([np.concatenate([one.mean(axis=1), one.std(axis=1)]) for one in angles])
        return moments, [split[index][1] for index in range(len(split))]

    simple = LogisticRegression(max_iter=2000).fit(*rows("train"))
    assert simple.score(*rows("test")) < 0.3  # chance is 0.2
