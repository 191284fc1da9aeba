"""The network to visualise: its images, or the waveforms and clips of a tensor network, as pictures, preprocessed as in
serving."""

import io
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convoy.models import checkpoint, paths, runtime
from convoy.models.checkpoint import Description
from convoy.models.data import picture
from convoy.models.errors import BadView
from convoy.service.metadata import Axis, InputSpec, TensorInput
from convoy.service.preprocess import input_size, preprocess

FREE_SIDE = 128  # pixels of a generated picture, or values along an axis, for a network of any size

Pixels = NDArray[np.uint8]
Size = tuple[int, int]

SPREADS = 3  # standard deviations from the mean to either end of a picture's 0..1, for unbounded values
MAX_SIDES = 3
FIGURE, DPI = (2.6, 1.5), 100  # inches, of a waveform's plot
FRAME_SIDE, GAP = 64, 2  # minimum side of a frame in pixels, and the gap between frames
PAPER = 255


@dataclass(frozen=True)
class Subject(ABC):
    """A network in eval mode with fixed weights, and its checkpoint's description.

    Throughout this package, `pictures` are (N, H, W, C) float32 from 0 to 1, and `images` are (H, W, C) uint8.
    `coloured` is whether their channels are colours.
    """

    name: str
    description: Description
    network: nn.Module

    coloured: ClassVar[bool]

    @property
    @abstractmethod
    def mean(self) -> list[float]:
        """The neutral value of each channel of a picture, (C,), 0..1."""

    @property
    @abstractmethod
    def sides(self) -> int:
        """The number of sides of the network's maps, two for images."""

    @abstractmethod
    def size(self, requested: Size | None = None) -> Size:
        """Returns height and width for a generated picture: `requested`, or the network's own. Raises BadView."""

    @abstractmethod
    def as_input(self, pictures: Tensor) -> Tensor:
        """Returns pictures as the network's input, (N, channels, *sides), normalised. Gradients flow through."""

    @abstractmethod
    def displayed(self, image: Pixels) -> Pixels:
        """Returns an image for display, (h, w, 3 or 1)."""


class ImageSubject(Subject):
    """A network for images; C and its order are the image's."""

    coloured = True

    @property
    def mean(self) -> list[float]:
        return self.description.mean

    @property
    def sides(self) -> int:
        return 2

    @property
    def spec(self) -> InputSpec:
        spec = self.description.input
        assert spec is not None
        return spec

    def size(self, requested: Size | None = None) -> Size:
        return requested or input_size(self.spec, FREE_SIDE, FREE_SIDE)

    def fit(self, image: Pixels) -> Pixels:
        """Preprocesses an image (H, W, C) to (h, w, C); for a network of any size without the padding, which `as_input`
        adds."""
        if self.spec.fit == "pad":
            return image
        out = np.empty((*input_size(self.spec, *image.shape[:2]), self.spec.channels), np.uint8)
        preprocess(image, self.spec, out)
        return out

    def as_input(self, pictures: Tensor) -> Tensor:
        """Returns pictures as the network's input, padded if it requires multiples."""
        height, width = pictures.shape[1:3]
        # Some layers of a network with a fixed size still accept other sizes.
        full = (height, width) if self.spec.height is not None else input_size(self.spec, height, width)
        down, across = full[0] - height, full[1] - width
        # As `preprocess` does for the fit `pad`.
        padded = nn.functional.pad(pictures, (0, 0, 0, across, 0, down), value=self.spec.fill / 255)
        values: Tensor = self.description.normalisation()(padded * 255)
        return values

    def displayed(self, image: Pixels) -> Pixels:
        return image


def read_image(path: Path, subject: ImageSubject) -> Pixels:
    """Reads an image file in the network's colours, (H, W, C). Raises BadView if it does not exist, BadData."""
    paths.check_image(path)
    return picture.read(path, subject.spec.colour)


def shrunk(image: Pixels, most: Size) -> Pixels:
    """Shrinks an image that is larger than `most`, with its aspect ratio preserved; returns others unchanged."""
    if image.shape[0] <= most[0] and image.shape[1] <= most[1]:
        return image
    smaller = as_pillow(image)
    smaller.thumbnail((most[1], most[0]), Image.Resampling.LANCZOS)
    return np.asarray(smaller).reshape(smaller.height, smaller.width, -1)


def as_pillow(image: Pixels) -> Image.Image:
    """Converts to a Pillow image: grey without a channel axis."""
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def sides(image: Pixels) -> Size:
    """Returns height and width."""
    return image.shape[0], image.shape[1]


def as_pictures(*images: Pixels) -> Tensor:
    """Converts images of one size, (H, W, C), 0..255, to pictures."""
    return torch.from_numpy(np.stack(images)).float() / 255


def as_images(pictures: Tensor) -> list[Pixels]:
    """Converts each picture to an image (H, W, C), 0..255, as stored."""
    return list((pictures.detach().clamp(0, 1) * 255).round().to(torch.uint8).numpy())


@dataclass(frozen=True)
class TensorSubject(Subject):
    """A network for tensors. The picture of a waveform is one row high and has its channels. The picture of a clip has
    the size of one frame and the concatenated channels of all frames."""

    coloured = False

    def __post_init__(self) -> None:
        if not 1 <= self.sides <= MAX_SIDES:
            raise BadView(f"{self.name} accepts {self.tensor}, want one to {MAX_SIDES} axes besides the channels'")

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
        return (self.axes[0].size or FREE_SIDE) if self.sides == MAX_SIDES else 1

    @property
    def mean(self) -> list[float]:
        own = self.description.mean if self.tensor.dtype == "uint8" else [0.5] * self.tensor.channels
        return own * self.frames

    def size(self, requested: Size | None = None) -> Size:
        own = [axis.size for axis in self.axes][-2:]
        free_sides = (requested or (FREE_SIDE, FREE_SIDE))[-len(own) :]  # for a waveform only the width
        sides = [side or free for side, free in zip(own, free_sides, strict=True)]
        if requested is not None and sides != list(free_sides):
            raise BadView(f"{self.name} accepts {self.tensor}, want no --size")
        return (1, sides[0]) if len(sides) == 1 else (sides[0], sides[1])

    def as_input(self, pictures: Tensor) -> Tensor:
        count, height, width, _ = pictures.shape
        values = pictures.view(count, height, width, self.frames, -1).permute(0, 4, 3, 1, 2)
        if self.tensor.dtype == "uint8":
            mean, std = (torch.tensor(each).view(-1, 1, 1, 1) for each in (self.description.mean, self.description.std))
            normalised = (values - mean) / std
        else:
            normalised = (values - 0.5) * (2 * SPREADS)
        places = (self.frames, height, width)[MAX_SIDES - self.sides :]
        return normalised.reshape(count, self.tensor.channels, *places)

    def displayed(self, image: Pixels) -> Pixels:
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


def load(path: Path) -> Subject:
    """Opens a checkpoint's network. Raises BadCheckpoint; BadView if its tensors cannot be shown as pictures."""
    runtime.limit_threads()
    description, network = checkpoint.load(path)
    kind = ImageSubject if description.input is not None else TensorSubject
    return kind(description.architecture, description, network.requires_grad_(False))


def load_for_images(path: Path) -> ImageSubject:
    """Opens a checkpoint's network. Raises BadCheckpoint; BadView if its input is not an image."""
    subject = load(path)
    if not isinstance(subject, ImageSubject):
        tensor = subject.description.as_tensor
        raise BadView(
            f"{path}: {subject.name} accepts {tensor}, want a network for images; "
            "layers, filters, neurons and class support this one, too"
        )
    return subject


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
