"""Calibration error: the gap between a network's confidence and its accuracy."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

BINS = 15
STEPS = 255  # of a pixel's confidence


class CalibrationError(Metric):
    """The expected calibration error (Guo et al. 2017, arXiv 1706.04599, section 2, equation 3), from 0 (calibrated) to
    1. Confidences are sorted into 15 bins of equal width, (m - 1) / 15 < confidence <= m / 15. The result is the mean
    over all images of the difference between a bin's accuracy and its mean confidence.

    Accepts probabilities (N, classes) and classes (N,) int64. torchmetrics has this metric too, but its bins include
    their lower ends: confident predictions, whose softmax rounds to 1 or slightly less, are split between two bins, so
    the error depends on a runtime's rounding.
    """

    full_state_update = False
    confidences: list[Tensor]
    right: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("confidences", default=[], dist_reduce_fx="cat")
        self.add_state("right", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        confidence, answered = probabilities.double().max(dim=1)
        self.confidences.append(confidence)
        self.right.append(answered == targets)

    def compute(self) -> Tensor:
        confidence, right = dim_zero_cat(self.confidences), dim_zero_cat(self.right).double()
        gaps = torch.zeros(BINS, dtype=torch.float64).scatter_add_(0, _bins(confidence), right - confidence)
        return gaps.abs().sum() / max(1, len(confidence))


class MaskCalibrationError(Metric):
    """The calibration error over pixels: accepts masks (N, H, W) uint8, their confidences (N, H, W) uint8, 0..255, and
    targets (N, H, W) int64, `ignore` for a pixel of no class, which does not count.
    """

    full_state_update = False
    pixels: Tensor
    right: Tensor

    def __init__(self, ignore: int, **options: Any) -> None:
        super().__init__(**options)
        self.ignore = ignore
        for name in ("pixels", "right"):  # by confidence
            self.add_state(name, default=torch.zeros(STEPS + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, masks: Tensor, confidences: Tensor, targets: Tensor) -> None:
        counted = targets != self.ignore
        confidence, right = confidences[counted].long(), (masks == targets)[counted]
        self.pixels += torch.bincount(confidence, minlength=STEPS + 1)
        self.right += torch.bincount(confidence[right], minlength=STEPS + 1)

    def compute(self) -> Tensor:
        confidence = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
        gaps = torch.zeros(BINS, dtype=torch.float64)
        gaps.scatter_add_(0, _bins(confidence), self.right - self.pixels * confidence)
        return gaps.abs().sum() / max(1, int(self.pixels.sum()))


def _bins(confidence: Tensor) -> Tensor:
    return torch.bucketize(confidence, torch.arange(1, BINS, dtype=torch.float64) / BINS)
