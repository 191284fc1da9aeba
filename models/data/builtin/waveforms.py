"""`gait`: generated angles of hip, knee and ankle over time, with the kind of gait.

Only the course of the angles over time determines the gait. Their amplitude and mean do not: they vary more between
people, and each recording draws both from the same range in every class.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from convoy.models.data.builtin.generated import CachedSplit
from convoy.models.data.dataset import DataSet, SplitName
from convoy.service.metadata import Axis, TensorInput

SEED = 1872  # the year Muybridge photographed a trotting horse
COUNTS: dict[SplitName, int] = {"train": 600, "validation": 100, "test": 250}
LENGTHS = (128, 160, 192)  # samples, in rotation
RATE = 100  # samples per second
JOINTS = ["hip", "knee", "ankle"]
LABELS = ["walk", "run", "climb", "jump", "stand"]

# Degrees of flexion of each joint at eight moments of the cycle, and the range of cycles per second.
POSES: dict[str, tuple[tuple[float, float], list[list[float]]]] = {
    "walk": (
        (0.8, 1.2),
        [[30, 25, 10, -5, -12, 0, 20, 32], [5, 18, 12, 5, 10, 45, 60, 20], [0, -5, 5, 10, 8, -15, -2, 2]],
    ),
    "run": (
        (1.0, 1.6),
        [[35, 25, 5, -10, -15, 5, 35, 45], [15, 40, 30, 20, 40, 90, 110, 50], [5, 20, 25, 5, -20, -15, 0, 5]],
    ),
    "climb": (
        (0.7, 1.1),
        [[60, 50, 35, 20, 10, 15, 45, 65], [65, 50, 30, 12, 8, 45, 85, 90], [12, 15, 12, 5, -12, -10, 5, 15]],
    ),
    "jump": (
        (0.7, 1.2),
        [[5, 35, 70, 60, 0, 5, 10, 35], [8, 45, 90, 75, 0, 10, 15, 50], [2, 15, 28, 10, -35, -30, -10, 18]],
    ),
}
TENSOR = TensorInput(
    name="waveform",
    dtype="float32",
    unit="degrees",
    axes=(Axis(name="channel", size=len(JOINTS), labels=JOINTS), Axis(name="time", spacing=1 / RATE, unit="s")),
)


def load() -> DataSet:
    """Returns recordings of three lengths with five gaits."""
    return DataSet(
        name="gait",
        task="classification",
        colour=None,
        labels=LABELS,
        palette=None,
        mean=[0.0] * len(JOINTS),
        std=[20.0] * len(JOINTS),
        split=_split,
        tensor=TENSOR,
    )


def record(split: SplitName, index: int, gait: str, length: int) -> NDArray[np.float32]:
    """Returns the angles (3, length) of a split and an index; deterministic."""
    random = np.random.default_rng((SEED, list(COUNTS).index(split), index))
    seconds = np.arange(length) / RATE
    angles = _sway(random, seconds) if gait == "stand" else _cycles(random, seconds, gait)
    angles += random.uniform(-1, 1, (3, 1)) * angles.std(axis=1, keepdims=True) * seconds / seconds[-1]  # drift
    angles += random.normal(0, 0.15, angles.shape) * angles.std(axis=1, keepdims=True)
    angles = (angles - angles.mean(axis=1, keepdims=True)) / angles.std(axis=1, keepdims=True)
    spread, middle = random.uniform(6, 20, (3, 1)), random.uniform(-20, 20, (3, 1))
    return np.asarray(spread * angles + middle, np.float32)


def _cycles(random: np.random.Generator, seconds: NDArray[np.float64], gait: str) -> NDArray[np.float64]:
    tempos, poses = POSES[gait]
    keys = np.array(poses, np.float64)
    keys += random.normal(0, 0.1, keys.shape) * keys.std(axis=1, keepdims=True)  # people deviate from the table
    wobble = 0.03 * np.sin(2 * math.pi * (random.uniform(0.2, 0.5) * seconds + random.random()))
    phase = random.random() + random.uniform(*tempos) * seconds + wobble
    # The curve through the eight moments is the sum of their harmonics.
    harmonics = np.fft.rfft(keys, axis=1) / keys.shape[1]
    harmonics[:, 1:-1] *= 2
    turns = np.exp(2j * math.pi * np.outer(np.arange(harmonics.shape[1]), phase))
    return np.asarray((harmonics @ turns).real)


def _sway(random: np.random.Generator, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns slow swings of each joint, independent of each other: standing is not motionless."""
    rates, phases = random.uniform(0.2, 1.6, (3, 6, 1)), random.random((3, 6, 1))
    swings = np.sin(2 * math.pi * (rates * seconds + phases)) * random.uniform(0.2, 1, (3, 6, 1))
    return np.asarray(swings.sum(axis=1))


@cache
def _split(name: SplitName) -> CachedSplit:
    """Returns a split with the gaits in rotation; 2 KB per recording."""
    # All gaits have the same lengths, so that the length does not depend on the gait.
    lengths = [LENGTHS[index // len(LABELS) % len(LENGTHS)] for index in range(COUNTS[name])]

    def make(index: int) -> tuple[NDArray[np.float32], int]:
        gait = index % len(LABELS)
        return record(name, index, LABELS[gait], lengths[index]), gait

    return CachedSplit([(len(JOINTS), length) for length in lengths], make)
