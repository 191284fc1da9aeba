"""Augmentation of training images that preserves their classes, one by one on the CPU or in batches on the device.

A mask is transformed with its image. The draws for an image depend only on the random generator that is passed in.
Every value is drawn, used or not, so that enabling one transformation does not change the draws of the others.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from convoy.models.data.dataset import IGNORE, DataSet
from convoy.models.errors import BadTraining
from convoy.models.settings import Augmentation, Flip

Pixels = NDArray[np.uint8]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
ERASED_SHARES, ERASED_RATIOS = (0.02, 0.33), (0.3, 3.3)  # of the area; height over width


def check(how: Augmentation, data: DataSet, loss: str) -> None:
    """Raises BadTraining for augmentation that the data or the loss does not support."""
    if how.changes_images and data.colour is None:
        raise BadTraining(f"{data.name} has no images, want no augmentation of images")
    for name, value in (("mixup", how.mixup), ("label smoothing", how.label_smoothing)):
        if value and data.task != "classification":
            raise BadTraining(f"{name} {value:g}: {data.name} is data for {data.task}, want some for classification")
    if how.label_smoothing and loss != "cross-entropy":
        raise BadTraining(f"label smoothing {how.label_smoothing:g}: the loss is {loss}, want cross-entropy")


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: Pixels) -> Pixels:
        """Returns the pixels inside, as a view."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def window(random: np.random.Generator, height: int, width: int, share: float) -> Window:
    """Returns a rectangle of the image's proportions at a random position. Its share of the area is drawn from `share`
    to 1."""
    factor = math.sqrt(random.uniform(share, 1))
    high, wide = max(1, round(factor * height)), max(1, round(factor * width))
    return Window(int(random.integers(height - high + 1)), int(random.integers(width - wide + 1)), high, wide)


def zoomed(image: Pixels, mask: Pixels | None, view: Window) -> tuple[Pixels, Pixels | None]:
    """Returns the window's content, enlarged to the image's size: image (H, W, C), bilinear, and mask (H, W), nearest
    neighbour."""
    size, box = image.shape[1::-1], (view.left, view.top, view.left + view.width, view.top + view.height)
    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    enlarged = np.array(picture.resize(size, Image.Resampling.BILINEAR, box)).reshape(image.shape)
    if mask is None:
        return enlarged, None
    return enlarged, np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST, box))


def augmented(
    random: np.random.Generator, image: Pixels, mask: Pixels | None, how: Augmentation
) -> tuple[Pixels, Pixels | None]:
    """Returns an image (H, W, C) and its mask (H, W), flipped, scaled, rotated, colour-jittered and erased; sizes do
    not change.

    Pixels from outside repeat the border in the image and are IGNORE in the mask. Erased pixels are IGNORE too.
    """
    flips = random.random(2) < 0.5
    factor = math.exp(random.uniform(*np.log(how.scale)))
    degrees = random.uniform(-how.rotate, how.rotate)
    colours = 1 + random.uniform(-how.colour, how.colour, 3)
    erases = random.random() < how.erase
    patch = _patch(random, *image.shape[:2])
    image, mask = _flipped(image, how.flip, flips), mask if mask is None else _flipped(mask, how.flip, flips)
    if how.rotate or how.scale != (1.0, 1.0):
        image, mask = _turned(image, mask, factor, degrees)
    if how.colour:
        image = _coloured(image, *colours)
    if erases:
        image, mask = _erased(random, image, mask, patch)
    return image, mask


def jitter(images: Tensor, degrees: float, scale: float, shift: float) -> Tensor:
    """Rotates, scales, slightly shears and shifts each image of (N, C, H, W), each by its own uniform draw.

    `degrees` and `scale` are the maximum change in either direction; `shift` is a share of the side. Pixels from
    outside the image repeat its border.
    """
    count = len(images)

    def draw(bound: float) -> Tensor:
        return (torch.rand(count, device=images.device) * 2 - 1) * bound

    angle = torch.deg2rad(draw(degrees))
    skew = torch.deg2rad(draw(degrees))
    across, down = 1 + draw(scale), 1 + draw(scale)
    # grid_sample's coordinates range from -1 to 1, so a share of the side is doubled.
    rows = (
        torch.stack((across * angle.cos(), -down * (angle + skew).sin(), draw(2 * shift)), dim=1),
        torch.stack((across * angle.sin(), down * (angle + skew).cos(), draw(2 * shift)), dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def roll(clips: Tensor) -> Tensor:
    """Shifts all clips of (N, C, D, H, W) down and to the right by the same amount, cyclically."""
    down, across = (int(torch.randint(side, (1,))) for side in clips.shape[-2:])
    return torch.roll(clips, (down, across), (-2, -1))


class Mixed(NamedTuple):
    """Blended images, and the targets of both parts; `share` is the weight of the first part, 0..1."""

    images: Tensor
    targets: Tensor
    partners: Tensor
    share: float


def mixup(images: Tensor, targets: Tensor, alpha: float) -> Mixed:
    """Blends each image of a batch (N, ...) float with the one before it (mixup, Zhang et al., arXiv 1710.09412,
    section 2). The batch is already in random order.

    The share of a batch is one draw from Beta(alpha, alpha), from torch's global generator. An alpha of 0 disables
    blending.
    """
    if alpha == 0:
        return Mixed(images, targets, targets, 1.0)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return Mixed(share * images + (1 - share) * images.roll(1, 0), targets, targets.roll(1, 0), share)


def _flipped(pixels: Pixels, flip: Flip, draws: NDArray[np.bool_]) -> Pixels:
    down = draws[0] and flip in ("vertical", "both")
    across = draws[1] and flip in ("horizontal", "both")
    return np.asarray(pixels[:: -1 if down else 1, :: -1 if across else 1])


def _turned(image: Pixels, mask: Pixels | None, factor: float, degrees: float) -> tuple[Pixels, Pixels | None]:
    """Enlarges about the centre, and rotates counter-clockwise."""
    height, width = image.shape[:2]
    cos, sin = math.cos(math.radians(degrees)) / factor, math.sin(math.radians(degrees)) / factor
    # affine_grid's coordinates range from -1 to 1 along both sides, whatever their lengths.
    rows = torch.tensor([[[cos, -sin * height / width, 0], [sin * width / height, cos, 0]]])
    grid = F.affine_grid(rows, [1, 1, height, width], align_corners=False)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    sampled = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    turned = sampled[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    if mask is None:
        return turned, None
    # Classes are shifted by one, so that 0, the value outside the mask, is not a class.
    classes = torch.from_numpy(mask.astype(np.float32) + 1)[None, None]
    shifted = F.grid_sample(classes, grid, mode="nearest", align_corners=False)[0, 0].numpy()
    return turned, np.where(shifted == 0, IGNORE, shifted - 1).astype(np.uint8)


def _coloured(image: Pixels, brightness: float, contrast: float, saturation: float) -> Pixels:
    pixels = image.astype(np.float32) * np.float32(brightness)
    middle = _luma(pixels).mean()
    pixels = middle + np.float32(contrast) * (pixels - middle)
    grey = _luma(pixels)
    pixels = grey + np.float32(saturation) * (pixels - grey)
    return np.asarray(np.rint(pixels).clip(0, 255), np.uint8)


def _luma(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    return pixels if pixels.shape[2] == 1 else np.asarray(pixels @ LUMA)[..., None]


def _patch(random: np.random.Generator, height: int, width: int) -> Window:
    area = random.uniform(*ERASED_SHARES) * height * width
    ratio = math.exp(random.uniform(*np.log(ERASED_RATIOS)))
    high = min(height, max(1, round(math.sqrt(area * ratio))))
    wide = min(width, max(1, round(math.sqrt(area / ratio))))
    return Window(int(random.integers(height - high + 1)), int(random.integers(width - wide + 1)), high, wide)


def _erased(
    random: np.random.Generator, image: Pixels, mask: Pixels | None, patch: Window
) -> tuple[Pixels, Pixels | None]:
    image, mask = image.copy(), None if mask is None else mask.copy()
    place = patch.of(image)
    place[...] = random.integers(0, 256, place.shape, dtype=np.uint8)
    if mask is not None:
        patch.of(mask)[...] = IGNORE
    return image, mask
