"""The trained network that is looked into, and how a picture gets to its input: as serving brings it there."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convoy.models import paths
from convoy.models.checkpoint import Description
from convoy.models.data import picture
from convoy.service.metadata import InputSpec
from convoy.service.preprocess import input_size, preprocess

FREE_SIDE = 128  # pixels, of a picture that is made for a network of any size

Pixels = NDArray[np.uint8]
Size = tuple[int, int]


@dataclass(frozen=True)
class Subject(ABC):
    """A network in eval mode whose weights stay as they are, and what its checkpoint says about it.

    Everywhere in this package `pictures` are (N, H, W, C) float32 from 0 to 1, and `images` are (H, W, C) uint8.
    `coloured` is whether their channels are colours.
    """

    name: str
    description: Description
    network: nn.Module

    coloured: ClassVar[bool]

    @property
    @abstractmethod
    def mean(self) -> list[float]:
        """What each channel of a picture has where there is nothing to see, (C,), 0..1."""

    @property
    @abstractmethod
    def sides(self) -> int:
        """How many sides a map of the network has, two where it takes images."""

    @abstractmethod
    def size(self, wanted: Size | None = None) -> Size:
        """Height and width of a picture that is made: `wanted`, or the network's own. Raises BadView."""

    @abstractmethod
    def entered(self, pictures: Tensor) -> Tensor:
        """Pictures as the network takes them, (N, channels, *sides), normalised. The gradient flows through."""

    @abstractmethod
    def drawn(self, image: Pixels) -> Pixels:
        """An image as a person can look at it, (h, w, 3 or 1)."""


class ImageSubject(Subject):
    """A network of images; C and its order are as images have them."""

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

    def size(self, wanted: Size | None = None) -> Size:
        return wanted or input_size(self.spec, FREE_SIDE, FREE_SIDE)

    def fit(self, image: Pixels) -> Pixels:
        """An image (H, W, C) as it reaches the input, (h, w, C); where any size goes, without the padding, which
        `entered` adds."""
        if self.spec.fit == "pad":
            return image
        out = np.empty((*input_size(self.spec, *image.shape[:2]), self.spec.channels), np.uint8)
        preprocess(image, self.spec, out)
        return out

    def entered(self, pictures: Tensor) -> Tensor:
        """Likewise, padded where the network takes multiples only."""
        height, width = pictures.shape[1:3]
        # Where the network takes one size only, some of its layers still take others.
        full = (height, width) if self.spec.height is not None else input_size(self.spec, height, width)
        down, across = full[0] - height, full[1] - width
        # What `preprocess` does where the fit is `pad`.
        padded = nn.functional.pad(pictures, (0, 0, 0, across, 0, down), value=self.spec.fill / 255)
        entered: Tensor = self.description.normalisation()(padded * 255)
        return entered

    def drawn(self, image: Pixels) -> Pixels:
        return image


def read(path: Path, subject: ImageSubject) -> Pixels:
    """An image file in the network's colours, (H, W, C). Raises BadView where there is none, BadData."""
    paths.check_image(path)
    return picture.read(path, subject.spec.colour)


def within(image: Pixels, most: Size) -> Pixels:
    """The image made smaller, its sides' ratio kept, where it is larger than `most`; else itself."""
    if image.shape[0] <= most[0] and image.shape[1] <= most[1]:
        return image
    smaller = flat(image)
    smaller.thumbnail((most[1], most[0]), Image.Resampling.LANCZOS)
    return np.asarray(smaller).reshape(smaller.height, smaller.width, -1)


def flat(image: Pixels) -> Image.Image:
    """As Pillow has it: grey without an axis of channels."""
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def sides(image: Pixels) -> Size:
    """Height and width."""
    return image.shape[0], image.shape[1]


def as_pictures(*images: Pixels) -> Tensor:
    """Images of one size, (H, W, C), 0..255, as pictures."""
    return torch.from_numpy(np.stack(images)).float() / 255


def as_images(pictures: Tensor) -> list[Pixels]:
    """Each picture (H, W, C), 0..255, as it would be stored."""
    return list((pictures.detach().clamp(0, 1) * 255).round().to(torch.uint8).numpy())
