"""Overlays on an image: evidence for and against a class."""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from convoy.models.visualize.network import Pixels

FOR, AGAINST = (255, 30, 0), (0, 60, 255)
MOST = 0.85  # opacity of the highest value
CURVE = 0.7  # below 1: on a colourful picture a faint tint would be invisible
AROUND = 24  # of the shorter side: the margin that stays bright around a single pixel
PALE = 0.35  # of its own brightness, for pixels that are not selected


def laid_over(image: Pixels, values: Tensor) -> Pixels:
    """Tints the image by a map: red for positive values, blue for negative ones, scaled to the largest absolute value.

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
    """Darkens all but the selected pixels, (H, W), of an image: (H, W, 3). A margin around a single pixel stays bright
    too, so that it is visible."""
    if where.sum() == 1:
        around = max(1, min(where.shape) // AROUND)
        where = F.max_pool2d(where[None].float(), 2 * around + 1, stride=1, padding=around)[0] > 0
    shares = np.where(where.numpy()[..., None], 1.0, PALE)
    dimmed: Pixels = (_rgb(image) * shares).round().astype(np.uint8)
    return dimmed


def _rgb(image: Pixels) -> Pixels:
    return np.broadcast_to(image, (*image.shape[:2], 3))
