"""Gradient ascent on the input, for pictures that maximise a response: x <- x + rate * gradient.

Erhan et al., Visualizing Higher-Layer Features of a Deep Network, 2009; jitter from Mordvintsev et al., Inceptionism,
2015; blur from Yosinski et al., arXiv 1506.06579, section 4; frequency space and decorrelated colours from Olah et al.,
Feature Visualization, Distill 2017.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from convoy.models.settings import AscentSettings
from convoy.models.visualize.subjects import Size

Score = Callable[[Tensor], Tensor]

NOISE = 0.05  # standard deviation of the initial noise
BLUR_EVERY = 4  # steps, as in Yosinski et al.
# The axes along which the colours of photographs vary almost independently, and the spread on each: brightness, red
# against blue, green against both (Ohta, Kanade and Sakai, Color Information for Region Segmentation, 1980).
COLOUR_AXES = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (-0.5, 1.0, -0.5))
COLOUR_SPREADS = (1.0, 0.5, 0.3)


def noise(seeds: Sequence[tuple[int, ...]], size: Size, mean: Sequence[float], settings: AscentSettings) -> Tensor:
    """Returns initial pictures, (N, H, W, C): noise around the colour `mean`, 0..1, each determined by its own seed."""
    raw = torch.stack([torch.randn(*size, len(mean), generator=_generator(seed)) for seed in seeds])
    return (torch.tensor(mean) + NOISE * _unit(_in_space(raw, settings))).clamp(0, 1)


def ascend(pictures: Tensor, score: Score, settings: AscentSettings, seed: tuple[int, ...]) -> Iterator[Tensor]:
    """Yields the pictures after each step, (N, H, W, C), 0..1.

    score   of each picture, (N,), to be maximised
    seed    of the shifts

    In frequency space the gradient is followed in coordinates in which pixels and colours of natural images vary
    independently: coarse structure grows before fine. Since those coordinates are a linear function of the pixels, this
    is equivalent to filtering the gradient.
    """
    random = _generator(seed)
    for step in range(settings.steps):
        gradient = _gradient(pictures, score, _shift(settings.jitter, random))
        pictures = (pictures + settings.rate * _unit(_in_space(gradient, settings))).clamp(0, 1)
        if settings.blur and step % BLUR_EVERY == BLUR_EVERY - 1 and step < settings.steps - 1:
            pictures = _blurred(pictures, settings.blur)
        yield pictures


def response(output: Tensor) -> Tensor:
    """Returns the response of channels, (N,): the Euclidean norm of the positive part; without one, the largest value.

    output  (N, ...), the output of one or several channels

    The negative part is excluded, since a picture of the opposite would otherwise count as much. The largest value
    provides a gradient while nothing is positive yet; both are equal when the positive part vanishes.
    """
    flat = output.flatten(1)
    positive = flat.clamp(min=0)
    largest = flat.amax(dim=1)
    # The norm has no gradient at 0: `where` alone would propagate NaN.
    squares = torch.where(largest > 0, positive.square().sum(dim=1), 1.0)
    return torch.where(largest > 0, squares.sqrt(), largest)


def _gradient(pictures: Tensor, score: Score, shift: tuple[int, int]) -> Tensor:
    pictures = pictures.detach().requires_grad_()
    with torch.enable_grad():
        total = score(pictures.roll(shift, dims=(1, 2))).sum()
    (gradient,) = torch.autograd.grad(total, pictures)
    return gradient


def _shift(jitter: int, random: torch.Generator) -> tuple[int, int]:
    down, across = torch.randint(-jitter, jitter + 1, (2,), generator=random).tolist()
    return down, across


def _in_space(pictures: Tensor, settings: AscentSettings) -> Tensor:
    if settings.space == "pixels":
        return pictures
    height, width = pictures.shape[1:3]
    # An image's amplitude falls with frequency; the lowest frequency is one wave across the whole picture.
    amplitude = 1 / _frequencies(height, width).clamp(min=1 / max(height, width))
    return _filtered(_decorrelated(pictures) if settings.coloured else pictures, amplitude)


def _decorrelated(pictures: Tensor) -> Tensor:
    if pictures.shape[-1] != len(COLOUR_AXES):
        return pictures
    axes = torch.nn.functional.normalize(torch.tensor(COLOUR_AXES), dim=1)
    spreads = torch.tensor(COLOUR_SPREADS)
    return pictures @ (axes.T * spreads.square()) @ axes


def _blurred(pictures: Tensor, sigma: float) -> Tensor:
    # A Gaussian's spectrum is a Gaussian. Edges wrap around, as in the shifts.
    frequencies = _frequencies(*pictures.shape[1:3])
    return _filtered(pictures, torch.exp(-2 * (torch.pi * sigma * frequencies).square())).clamp(0, 1)


def _filtered(pictures: Tensor, transfer: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(pictures, dim=(1, 2)) * transfer[..., None]
    filtered: Tensor = torch.fft.irfft2(spectrum, s=pictures.shape[1:3], dim=(1, 2))
    return filtered


def _frequencies(height: int, width: int) -> Tensor:
    """Returns the frequency at each position of a real spectrum, (height, width // 2 + 1), in waves per pixel."""
    return torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))


def _unit(change: Tensor) -> Tensor:
    """Scales each picture's change to a root mean square of 1; zero stays zero."""
    size = change.flatten(1).square().mean(dim=1).sqrt().view(-1, 1, 1, 1)
    return torch.where(size > 0, change / size, 0.0)


def _generator(seed: tuple[int, ...]) -> torch.Generator:
    # Adjacent seeds would give torch's generator similar states; numpy's SeedSequence decorrelates them.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
