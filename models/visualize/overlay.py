"""A map of what speaks for a class and against it, laid over the image."""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from convoy.models.visualize.network import Pixels

FOR, AGAINST = (255, 30, 0), (0, 60, 255)
MOST = 0.85  # opacity of the highest value
CURVE = 0.7  # below 1: on a picture in many colours a faint tint would not be seen
AROUND = 24  # share of the shorter side that stays bright each way around a single pixel
PALE = 0.35  # of the image's own brightness that the pixels which do not count keep


def laid_over(image: Pixels, values: Tensor) -> Pixels:
    """The image under a map: red where it is above 0, blue where it is below, the more the farther; its largest number
    either way is full.

    image   (H, W, 3) or (H, W, 1)
    values  (H, W)
    returns (H, W, 3)
    """
    shares = values.numpy() / (float(values.abs().max()) or 1.0)
    colours = np.where(shares[..., None] > 0, FOR, AGAINST)
    opacity = MOST * np.abs(shares)[..., None] ** CURVE
    blended: Pixels = (_rgb(image) * (1 - opacity) + colours * opacity).round().astype(np.uint8)
    return blended


def picked_out(image: Pixels, where: Tensor) -> Pixels:
    """The image with all but some of its pixels, (H, W), darkened: (H, W, 3). Of a single one, what is around it stays
    bright too, for else it would not be seen."""
    if where.sum() == 1:
        around = max(1, min(where.shape) // AROUND)
        where = F.max_pool2d(where[None].float(), 2 * around + 1, stride=1, padding=around)[0] > 0
    shares = np.where(where.numpy()[..., None], 1.0, PALE)
    dimmed: Pixels = (_rgb(image) * shares).round().astype(np.uint8)
    return dimmed


def _rgb(image: Pixels) -> Pixels:
    return np.broadcast_to(image, (*image.shape[:2], 3))
