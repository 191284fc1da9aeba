"""Activation maximisation: pictures optimised from noise for which channels of a layer respond most, or which a network
assigns to a class with maximum confidence; in batches that fit in memory, optionally with a film."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from convoy.models.errors import BadView
from convoy.models.settings import AscentSettings
from convoy.models.visualize import hooks
from convoy.models.visualize.ascent import ascend, noise, response
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.sheet import Section, Tile
from convoy.models.visualize.subjects import Pixels, Size, Subject, as_images, as_pictures

BATCH_PIXELS = 1 << 18  # pixels per batch: 16 pictures of 128x128
FRAMES = 24  # maximum number of frames in a film

Tick = Callable[[], None]


class ScoreOf(Protocol):
    """The score of each picture, (N,); `batch` contains the pictures' indices among all pictures."""

    def __call__(self, pictures: Tensor, batch: list[int]) -> Tensor: ...


@dataclass(frozen=True)
class Options:
    """`seed` is that of the noise and the shifts; `tick` is called after each step of each batch, `ticks` times in all;
    `film`: keep intermediate pictures."""

    seed: int
    tick: Tick
    film: bool


@dataclass(frozen=True)
class Optimised:
    """`images`, one per number, (H, W, C); `film` contains the same for each frame, ending with `images`."""

    images: list[Pixels]
    film: list[list[Pixels]]


def optimise(
    subject: Subject, numbers: Sequence[int], size: Size, score: ScoreOf, settings: AscentSettings, options: Options
) -> Optimised:
    """Optimises a picture for each number. Its noise depends on that number only."""
    kept = frames(settings.steps, options.film)
    film: list[list[Pixels]] = [[] for _ in kept]
    for batch in batches(len(numbers), size):
        seeds = [(options.seed, 1, numbers[place]) for place in batch]
        start = noise(seeds, size, subject.mean, settings)
        steps = ascend(start, partial(score, batch=batch), settings, (options.seed, 0))
        for images, pictures in zip(film, filmed(steps, kept, options.tick), strict=True):
            images.extend(as_images(pictures))
    return Optimised(film[-1], film)


def ticks(count: int, size: Size, steps: int) -> int:
    """Returns the number of calls of `tick` by `optimise`."""
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


def scores_of(score: ScoreOf, images: list[Pixels]) -> list[float]:
    """Returns the score of each image as stored, in 8 bits."""
    with torch.no_grad():
        return [
            float(value)
            for batch in batches(len(images), images[0].shape[:2])
            for value in score(as_pictures(*(images[place] for place in batch)), batch)
        ]


def section(subject: Subject, heading: str, captions: Sequence[str], images: Sequence[Pixels]) -> Section:
    """Returns the images with their captions, as the subject displays them."""
    tiles = [Tile(subject.displayed(image), caption) for image, caption in zip(images, captions, strict=True)]
    return Section(heading, tiles)


def neurons(
    subject: Subject, layer: Layer, channels: list[int], size: Size, settings: AscentSettings, options: Options
) -> Optimised:
    """Optimises a picture for each channel, from noise. A channel's noise does not depend on the other channels."""
    return optimise(subject, channels, size, _neuron_score(subject, layer, channels), settings, options)


def responses(subject: Subject, layer: Layer, channels: list[int], images: list[Pixels]) -> list[float]:
    """Returns the response of each channel to its image, as defined by `ascent.response`."""
    return scores_of(_neuron_score(subject, layer, channels), images)


def class_images(
    subject: Subject, classes: list[int], size: Size, settings: AscentSettings, options: Options
) -> Optimised:
    """Optimises a picture for each class, from noise (Simonyan, Vedaldi and Zisserman, arXiv 1312.6034, section 2).

    The objective is the log-odds of the class, for segmentation their mean over all pixels. A class's logit can grow
    while another's grows faster, and the probability's gradient vanishes close to 1. Raises BadView if there is only
    one class.
    """
    if len(subject.description.labels) < 2:
        raise BadView(f"{subject.name} has only one class, want at least two")
    return optimise(subject, classes, size, _class_score(subject, classes, log_odds), settings, options)


def confidences(subject: Subject, classes: list[int], images: list[Pixels]) -> list[float]:
    """Returns the probability, 0..1, of each image's class, for the image as stored in 8 bits per channel. For
    segmentation the mean over all pixels."""
    return scores_of(_class_score(subject, classes, probability), images)


def log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """Returns log(p / (1 - p)) of one class each, from logits (N, classes, ...): (N, ...)."""
    index = classes.view(-1, *(1,) * (logits.dim() - 1)).expand(-1, 1, *logits.shape[2:])
    own = logits.gather(1, index)
    others = logits.scatter(1, index, -torch.inf).logsumexp(dim=1, keepdim=True)
    return (own - others)[:, 0]


def probability(logits: Tensor, classes: Tensor) -> Tensor:
    """Returns p of one class each, from logits (N, classes, ...): (N, ...)."""
    return log_odds(logits, classes).sigmoid()


def _neuron_score(subject: Subject, layer: Layer, channels: list[int]) -> ScoreOf:
    def score(pictures: Tensor, batch: list[int]) -> Tensor:
        output = hooks.outputs_of(subject, [layer.name], pictures)[layer.name]
        # One row each: the positions of its channel, or its single value.
        own = output[range(len(batch)), [channels[place] for place in batch]]
        return response(own.reshape(len(batch), -1))

    return score


def _class_score(subject: Subject, classes: list[int], measure: Callable[[Tensor, Tensor], Tensor]) -> ScoreOf:
    def score(pictures: Tensor, batch: list[int]) -> Tensor:
        height, width = pictures.shape[1:3]
        logits = hooks.logits(subject, pictures)
        values = measure(logits, torch.tensor([classes[place] for place in batch]))
        # For segmentation, only the picture's own pixels, without padding.
        return values[:, :height, :width].mean(dim=(1, 2)) if values.dim() == 3 else values

    return score
