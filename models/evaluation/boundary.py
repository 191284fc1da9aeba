"""Accuracy of the outlines in a mask."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor
from torchmetrics import Metric

TOLERANCE = 0.0075  # of the image's diagonal


class BoundaryF1(Metric):
    """The boundary F1 score of Csurka et al. (What is a good evaluation measure for semantic segmentation?, BMVC 2013,
    section 3). For a class in an image, precision is the share of the predicted outline within the tolerance of the
    true one; recall is the share of the true outline within the tolerance of the predicted one.

    The tolerance is 0.75 % of the image's diagonal, rounded up to whole pixels as in the public code of Perazzi et al.
    (CVPR 2016), since less than one pixel would allow no deviation. An image's score is the mean over the classes with
    an outline in it, true or predicted; the score is the mean over images. Images without any outline are skipped; if
    there are no others, the score is 1.

    Accepts masks (N, H, W) of integers and targets (N, H, W) int64, `ignore` for a pixel of no class; such pixels are
    not part of an outline and do not create one.
    """

    full_state_update = False
    total: Tensor
    images: Tensor
    class_total: Tensor
    class_images: Tensor

    def __init__(self, classes: int, ignore: int, **options: Any) -> None:
        super().__init__(**options)
        self.ignore = ignore
        for name, length in (("total", 1), ("images", 1), ("class_total", classes), ("class_images", classes)):
            self.add_state(name, default=torch.zeros(length, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, masks: Tensor, targets: Tensor) -> None:
        for mask, target in zip(masks.cpu().numpy(), targets.cpu().numpy(), strict=True):
            found = image_scores(mask, target, target != self.ignore)
            for number, score in found.items():
                self.class_total[number] += score
                self.class_images[number] += 1
            if found:
                self.total += sum(found.values()) / len(found)
                self.images += 1

    def compute(self) -> Tensor:
        return (self.total / self.images if self.images else torch.ones(1, dtype=torch.float64))[0]

    def per_class(self) -> list[float | None]:
        """Returns the mean over the images in which a class has an outline; None if there are none."""
        pairs = zip(self.class_total.tolist(), self.class_images.tolist(), strict=True)
        return [total / images if images else None for total, images in pairs]


def image_scores(
    mask: NDArray[np.integer[Any]], target: NDArray[np.integer[Any]], counted: NDArray[np.bool_]
) -> dict[int, float]:
    """Returns F1 by class of one image, for classes with an outline; (H, W) each, `counted` for pixels of a class."""
    rows, columns = np.flatnonzero(counted.any(axis=1)), np.flatnonzero(counted.any(axis=0))
    if not len(rows):
        return {}
    # The diagonal is that of the image before padding.
    tolerance = math.ceil(TOLERANCE * math.hypot(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
    answered, true = outline(mask, counted), outline(target, counted)
    classes = np.union1d(mask[answered], target[true]).tolist()
    return {
        number: _f1(np.argwhere(answered & (mask == number)), np.argwhere(true & (target == number)), tolerance)
        for number in classes
    }


def outline(mask: NDArray[np.integer[Any]], counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the pixels (H, W) with a neighbour, of four, of another class; only counted pixels, on both sides. The
    edge of the image is not an outline."""
    found = np.zeros(mask.shape, bool)
    for first, second in (
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        differs = (mask[first] != mask[second]) & counted[first] & counted[second]
        found[first] |= differs
        found[second] |= differs
    return found


def _f1(answered: NDArray[np.intp], true: NDArray[np.intp], tolerance: float) -> float:
    if not (len(answered) and len(true)):
        return 0.0
    precision, recall = _share_near(answered, true, tolerance), _share_near(true, answered, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_near(points: NDArray[np.intp], others: NDArray[np.intp], tolerance: float) -> float:
    distances, _ = KDTree(others).query(points)
    return float((distances <= tolerance).mean())
