"""Tensor networks: waveforms and clips as pictures for gradient ascent and display."""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from convoy.models.errors import BadView
from convoy.models.visualize.network import Pixels, Size, Subject
from convoy.service.metadata import Axis, TensorInput

FREE_SIDE = 128  # values along an axis of any length
SPREADS = 3  # standard deviations from the mean to either end of a picture's 0..1, for unbounded values
MOST_SIDES = 3
FIGURE, DPI = (2.6, 1.5), 100  # inches, of a waveform's plot
FRAME_SIDE, GAP = 64, 2  # minimum side of a frame in pixels, and the gap between frames
PAPER = 255


@dataclass(frozen=True)
class TensorSubject(Subject):
    """A network for tensors. The picture of a waveform is one row high and has its channels. The picture of a clip has
    the size of one frame and the concatenated channels of all frames."""

    coloured = False

    def __post_init__(self) -> None:
        if not 1 <= self.sides <= MOST_SIDES:
            raise BadView(f"{self.name} takes {self.tensor}, want one to {MOST_SIDES} axes besides the channels'")

    @property
    def tensor(self) -> TensorInput:
        tensor = self.description.tensor
        assert tensor is not None
        return tensor

    @property
    def axes(self) -> list[Axis]:
        """All axes except the channels."""
        return [axis for axis in self.tensor.axes if axis.name != "channel"]

    @property
    def sides(self) -> int:
        return len(self.axes)

    @property
    def frames(self) -> int:
        return (self.axes[0].size or FREE_SIDE) if self.sides == MOST_SIDES else 1

    @property
    def mean(self) -> list[float]:
        own = self.description.mean if self.tensor.dtype == "uint8" else [0.5] * self.tensor.channels
        return own * self.frames

    def size(self, wanted: Size | None = None) -> Size:
        own = [axis.size for axis in self.axes][-2:]
        given = (wanted or (FREE_SIDE, FREE_SIDE))[-len(own) :]  # for a waveform only the width
        sides = [side or free for side, free in zip(own, given, strict=True)]
        if wanted is not None and sides != list(given):
            raise BadView(f"{self.name} takes {self.tensor}, want no --size")
        return (1, sides[0]) if len(sides) == 1 else (sides[0], sides[1])

    def entered(self, pictures: Tensor) -> Tensor:
        count, height, width, _ = pictures.shape
        values = pictures.view(count, height, width, self.frames, -1).permute(0, 4, 3, 1, 2)
        if self.tensor.dtype == "uint8":
            mean, std = (torch.tensor(each).view(-1, 1, 1, 1) for each in (self.description.mean, self.description.std))
            normalised = (values - mean) / std
        else:
            normalised = (values - 0.5) * (2 * SPREADS)
        places = (self.frames, height, width)[MOST_SIDES - self.sides :]
        return normalised.reshape(count, self.tensor.channels, *places)

    def drawn(self, image: Pixels) -> Pixels:
        """Returns curves of a waveform over time, in its own unit, or the frames of a clip side by side."""
        return self._curves(image[0]) if self.sides == 1 else _strip(image, self.frames)

    def _curves(self, row: Pixels) -> Pixels:
        mean, std = np.array(self.description.mean), np.array(self.description.std)
        shares = row / 255
        values = shares * 255 if self.tensor.dtype == "uint8" else mean + (shares - 0.5) * 2 * SPREADS * std
        (along,), channel = self.axes, self.tensor.axes[self.tensor.channel_axis]
        figure = Figure(figsize=FIGURE, dpi=DPI, layout="constrained")
        axes = figure.subplots()
        times = np.arange(len(row)) * (along.spacing or 1)
        for number, curve in enumerate(values.T):
            name = channel.labels[number] if channel.labels else f"channel {number}"
            axes.plot(times, curve, linewidth=1, label=name)
        axes.tick_params(labelsize=6)
        axes.set_xlabel(f"{along.name}{f', {along.unit}' if along.unit else ''}", fontsize=6)
        axes.set_ylabel(self.tensor.unit, fontsize=6)
        axes.legend(fontsize=5, frameon=False)
        drawing = io.BytesIO()
        figure.savefig(drawing, format="png")
        return np.asarray(Image.open(drawing).convert("RGB"))


def _strip(image: Pixels, frames: int) -> Pixels:
    """(H, W, frames * C) -> frames side by side; one row per channel if the channels are not colours."""
    channels = image.shape[2] // frames
    rows = [slice(None)] if channels in (1, 3) else [slice(place, place + 1) for place in range(channels)]
    factor = math.ceil(FRAME_SIDE / max(image.shape[:2]))
    parts = np.split(image.repeat(factor, axis=0).repeat(factor, axis=1), frames, axis=2)
    return np.concatenate([_beside([part[..., row] for part in parts]) for row in rows], axis=0)


def _beside(parts: list[Pixels]) -> Pixels:
    gap = np.full((parts[0].shape[0], GAP, parts[0].shape[2]), PAPER, np.uint8)
    joined = [each for part in parts for each in (part, gap)][:-1]
    return np.pad(np.concatenate(joined, axis=1), ((0, GAP), (0, 0), (0, 0)), constant_values=PAPER)
