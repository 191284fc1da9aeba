"""Changes to whole training batches, on the device that trains."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def jitter(images: Tensor, degrees: float, scale: float, shift: float) -> Tensor:
    """Turn, scale, shear a little and shift each image of (N, C, H, W) by its own uniform draw.

    `degrees` and `scale` bound the change to either side; `shift` is a share of the side. What comes in from outside
    repeats the border.
    """
    count = len(images)

    def draw(bound: float) -> Tensor:
        return (torch.rand(count, device=images.device) * 2 - 1) * bound

    angle = torch.deg2rad(draw(degrees))
    skew = torch.deg2rad(draw(degrees))
    across, down = 1 + draw(scale), 1 + draw(scale)
    # grid_sample's coordinates run from -1 to 1, so a share of the side counts twice.
    rows = (
        torch.stack((across * angle.cos(), -down * (angle + skew).sin(), draw(2 * shift)), dim=1),
        torch.stack((across * angle.sin(), down * (angle + skew).cos(), draw(2 * shift)), dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def roll(clips: Tensor) -> Tensor:
    """Shift all clips of (N, C, D, H, W) down and to the right alike; what goes out comes in on the other side."""
    down, across = (int(torch.randint(side, (1,))) for side in clips.shape[-2:])
    return torch.roll(clips, (down, across), (-2, -1))


class Mixed(NamedTuple):
    """Images that are blended, and the targets of both parts; `share` is that of the first, 0..1."""

    images: Tensor
    targets: Tensor
    partners: Tensor
    share: float


def mixup(images: Tensor, targets: Tensor, alpha: float) -> Mixed:
    """Blend each image of a batch (N, ...) float with the one before it (mixup, Zhang et al., arXiv 1710.09412,
    section 2); the batch is in a random order already.

    The share of a batch is one draw from Beta(alpha, alpha), from torch's global generator; alpha 0 blends nothing.
    """
    if alpha == 0:
        return Mixed(images, targets, targets, 1.0)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return Mixed(share * images + (1 - share) * images.roll(1, 0), targets, targets.roll(1, 0), share)
