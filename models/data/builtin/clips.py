"""`motions`: generated colour clips of a moving textured triangle on a textured ground, with the class of motion.

No single frame determines the motion: place, angle and size of the triangle, its texture and the ground have the same
distribution in every class. A clip played backwards belongs to the class of the opposite motion: only the order of the
frames distinguishes left from right, up from down and growing from shrinking. Turning has either direction and is its
own opposite.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from convoy.models.data.augmentation import roll
from convoy.models.data.builtin.generated import CachedSplit, enlarged
from convoy.models.data.dataset import DataSet, SplitName
from convoy.service.metadata import Axis, TensorInput

SEED = 1895  # the first film show
COUNTS: dict[SplitName, int] = {"train": 1120, "validation": 98, "test": 252}
FRAMES, SIDE = 8, 32
RATE = 25  # frames per second
LABELS = ["left", "right", "up", "down", "grow", "shrink", "turn"]
TENSOR = TensorInput(
    name="clip",
    dtype="uint8",
    axes=(
        Axis(name="time", size=FRAMES, spacing=1 / RATE, unit="s"),
        Axis(name="height", size=SIDE),
        Axis(name="width", size=SIDE),
        Axis(name="channel", size=3, labels=["red", "green", "blue"]),
    ),
)
RADII = (7.0, 10.0)  # pixels, of the triangle in the middle of the clip
# Change from one frame to the next: pixels, degrees, and the factor of the radius.
STEPS, TURNS, GROWTHS = (2.0, 4.0), (18.0, 30.0), (1.08, 1.13)
DARK, LIGHT = (0.0, 0.4), (0.5, 1.0)  # brightness of ground and triangle


def load() -> DataSet:
    """Returns clips of eight frames of 32x32 with seven motions."""
    return DataSet(
        name="motions",
        task="classification",
        colour=None,
        labels=LABELS,
        palette=None,
        mean=[0.3] * 3,
        std=[0.25] * 3,
        split=_split,
        augment=roll,
        tensor=TENSOR,
    )


def film(split: SplitName, index: int, motion: str) -> NDArray[np.uint8]:
    """Returns the clip (8, 32, 32, 3) RGB of a split and an index; deterministic."""
    random = np.random.default_rng((SEED, list(COUNTS).index(split), index))
    ground, texture = _texture(random, DARK), _texture(random, LIGHT)
    frames = [_frame(ground, texture, *pose) for pose in _poses(random, motion)]
    noisy = np.stack(frames) + random.normal(0, 0.02, (FRAMES, SIDE, SIDE, 1))
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


def _poses(random: np.random.Generator, motion: str) -> list[tuple[float, float, float, float]]:
    """Returns (x, y, angle, radius) in each frame. A quantity that does not change has a value from some frame of a
    class in which it does."""
    time = np.arange(FRAMES) - (FRAMES - 1) / 2
    still = np.full(FRAMES, random.choice(time))
    x, y = random.uniform(0, SIDE, 2)  # on a torus: a triangle that leaves re-enters on the opposite side
    angle, radius = random.uniform(0, 2 * math.pi), random.uniform(*RADII)
    step, turn, growth = random.uniform(*STEPS), math.radians(random.uniform(*TURNS)), random.uniform(*GROWTHS)
    sign = random.choice((-1, 1)) if motion == "turn" else 1 if motion in ("right", "down", "grow") else -1
    moved = {name: sign * time if motion in names else still for name, names in MOVING.items()}
    xs, ys = x + step * moved["x"], y + step * moved["y"]
    angles, radii = angle + turn * moved["angle"], radius * growth ** moved["radius"]
    return list(zip(xs, ys, angles, radii, strict=True))


MOVING = {
    "x": ("left", "right"),
    "y": ("up", "down"),
    "radius": ("grow", "shrink"),
    "angle": ("turn",),
}


def _frame(
    ground: NDArray[np.float32],
    texture: NDArray[np.float32],
    x: float,
    y: float,
    angle: float,
    radius: float,
) -> NDArray[np.float64]:
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    # Offset from the triangle's centre, by the short way round the torus; then rotated and scaled to its own frame.
    across, down = ((place - middle + SIDE / 2) % SIDE - SIDE / 2 for place, middle in ((columns, x), (rows, y)))
    u = (math.cos(angle) * across + math.sin(angle) * down) / radius
    v = (math.cos(angle) * down - math.sin(angle) * across) / radius
    # Distance towards the nearest of the three edges, a third of a turn apart; 1 is on the edge.
    third = 2 * math.pi / 3
    distance = np.hypot(u, v) * np.cos((np.arctan2(v, u) + math.pi) % third - third / 2) / math.cos(third / 2)
    cover = np.clip(0.5 + radius * (1 - distance), 0, 1)[..., None]
    places = [np.clip(SIDE / 2 + SIDE / 3 * side, 0, SIDE - 1) for side in (v, u)]
    return np.asarray(ground + cover * (_between(texture, *places) - ground))


def _between(
    texture: NDArray[np.float32], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolates the texture bilinearly at positions between its pixels."""
    top, left = (np.minimum(places.astype(int), SIDE - 2) for places in (rows, columns))
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    upper = texture[top, left] * (1 - across) + texture[top, left + 1] * across
    lower = texture[top + 1, left] * (1 - across) + texture[top + 1, left + 1] * across
    return np.asarray(upper * (1 - down) + lower * down)


def _texture(random: np.random.Generator, brightness: tuple[float, float]) -> NDArray[np.float32]:
    """Returns patches of colours, (32, 32, 3), 0..1."""
    patches = random.uniform(*brightness, (6, 6, 3)).astype(np.float32)
    return enlarged(patches, SIDE, SIDE).clip(0, 1)


@cache
def _split(name: SplitName) -> CachedSplit:
    """Returns a split with the motions in rotation; 24 KB per clip."""

    def make(index: int) -> tuple[NDArray[np.uint8], int]:
        motion = index % len(LABELS)
        return film(name, index, LABELS[motion]), motion

    return CachedSplit([(FRAMES, SIDE, SIDE, 3)] * COUNTS[name], make)
