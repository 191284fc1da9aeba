"""The network to visualise, with its input preprocessed as in serving."""

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

FREE_SIDE = 128  # pixels of a generated picture, for a network of any size

Pixels = NDArray[np.uint8]
Size = tuple[int, int]


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
    def size(self, wanted: Size | None = None) -> Size:
        """Returns height and width for a generated picture: `wanted`, or the network's own. Raises BadView."""

    @abstractmethod
    def entered(self, pictures: Tensor) -> Tensor:
        """Returns pictures as the network's input, (N, channels, *sides), normalised. Gradients flow through."""

    @abstractmethod
    def drawn(self, image: Pixels) -> Pixels:
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

    def size(self, wanted: Size | None = None) -> Size:
        return wanted or input_size(self.spec, FREE_SIDE, FREE_SIDE)

    def fit(self, image: Pixels) -> Pixels:
        """Preprocesses an image (H, W, C) to (h, w, C); for a network of any size without the padding, which `entered`
        adds."""
        if self.spec.fit == "pad":
            return image
        out = np.empty((*input_size(self.spec, *image.shape[:2]), self.spec.channels), np.uint8)
        preprocess(image, self.spec, out)
        return out

    def entered(self, pictures: Tensor) -> Tensor:
        """Returns pictures as the network's input, padded if it requires multiples."""
        height, width = pictures.shape[1:3]
        # Some layers of a network with a fixed size still accept other sizes.
        full = (height, width) if self.spec.height is not None else input_size(self.spec, height, width)
        down, across = full[0] - height, full[1] - width
        # As `preprocess` does for the fit `pad`.
        padded = nn.functional.pad(pictures, (0, 0, 0, across, 0, down), value=self.spec.fill / 255)
        entered: Tensor = self.description.normalisation()(padded * 255)
        return entered

    def drawn(self, image: Pixels) -> Pixels:
        return image


def read(path: Path, subject: ImageSubject) -> Pixels:
    """Reads an image file in the network's colours, (H, W, C). Raises BadView if it does not exist, BadData."""
    paths.check_image(path)
    return picture.read(path, subject.spec.colour)


def within(image: Pixels, most: Size) -> Pixels:
    """Shrinks an image that is larger than `most`, with its aspect ratio preserved; returns others unchanged."""
    if image.shape[0] <= most[0] and image.shape[1] <= most[1]:
        return image
    smaller = flat(image)
    smaller.thumbnail((most[1], most[0]), Image.Resampling.LANCZOS)
    return np.asarray(smaller).reshape(smaller.height, smaller.width, -1)


def flat(image: Pixels) -> Image.Image:
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
