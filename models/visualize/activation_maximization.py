"""Activation maximisation: pictures optimised from noise, in batches that fit in memory, optionally with a film."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from convoy.models.settings import AscentSettings
from convoy.models.visualize.ascent import ascend, noise
from convoy.models.visualize.network import Pixels, Size, Subject, as_images, as_pictures

BATCH_PIXELS = 1 << 18  # pixels per batch: 16 pictures of 128x128
FRAMES = 24  # maximum number of frames in a film

Tick = Callable[[], None]


class ScoreOf(Protocol):
    """The score of each picture, (N,); `batch` contains the pictures' indices among all pictures."""

    def __call__(self, pictures: Tensor, batch: list[int]) -> Tensor: ...


@dataclass(frozen=True)
class Growing:
    """`seed` is that of the noise and the shifts; `tick` is called after each step of each batch, `ticks` times in all;
    `film`: keep intermediate pictures."""

    seed: int
    tick: Tick
    film: bool


@dataclass(frozen=True)
class Grown:
    """`images`, one per number, (H, W, C); `film` contains the same for each frame, ending with `images`."""

    images: list[Pixels]
    film: list[list[Pixels]]


def grow(
    subject: Subject, numbers: Sequence[int], size: Size, score: ScoreOf, climb: AscentSettings, growing: Growing
) -> Grown:
    """Optimises a picture for each number. Its noise depends on that number only."""
    kept = frames(climb.steps, growing.film)
    film: list[list[Pixels]] = [[] for _ in kept]
    for batch in batches(len(numbers), size):
        seeds = [(growing.seed, 1, numbers[place]) for place in batch]
        start = noise(seeds, size, subject.mean, climb)
        steps = ascend(start, partial(score, batch=batch), climb, (growing.seed, 0))
        for images, pictures in zip(film, filmed(steps, kept, growing.tick), strict=True):
            images.extend(as_images(pictures))
    return Grown(film[-1], film)


def ticks(count: int, size: Size, steps: int) -> int:
    """Returns the number of calls of `tick` by `grow`."""
    return len(batches(count, size)) * steps


def batches(count: int, size: Size) -> list[list[int]]:
    """Returns the indices 0 to count - 1 in batches for the network."""
    most = max(1, BATCH_PIXELS // (size[0] * size[1]))
    return [list(range(start, min(start + most, count))) for start in range(0, count, most)]


def filmed(steps: Iterator[Tensor], kept: list[int], tick: Tick) -> Iterator[Tensor]:
    """Yields the steps to keep."""
    for step, pictures in enumerate(steps):
        tick()
        if step in kept:
            yield pictures


def frames(steps: int, film: bool) -> list[int]:
    """Returns the steps to keep: the last one; for a film more of them, evenly spread."""
    most = min(FRAMES, steps) if film else 1
    return [(turn + 1) * steps // most - 1 for turn in range(most)]


def measured(score: ScoreOf, images: list[Pixels]) -> list[float]:
    """Returns the score of each image as stored, in 8 bits."""
    with torch.no_grad():
        return [
            float(value)
            for batch in batches(len(images), images[0].shape[:2])
            for value in score(as_pictures(*(images[place] for place in batch)), batch)
        ]
