"""Augmentation of whole training batches, on the training device."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


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
