"""Metrics: top-1, top-5 and calibration for classes; pixel accuracy, mean IoU, outlines and calibration for masks; and
scores per class."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex
from torchmetrics.utilities import dim_zero_cat

from convoy.models.data.dataset import IGNORE
from convoy.service.metadata import Task

BINS = 15
STEPS = 255  # of a pixel's confidence

TOLERANCE = 0.0075  # of the image's diagonal

# Checking for invalid classes takes ten times as long as counting correct ones.
QUICKLY: Any = {"validate_args": False}
# After training in several processes, one of them evaluates without waiting for the others.
ALONE: Any = {"sync_on_compute": False}
LEADING: dict[Task, str] = {"classification": "top1", "segmentation": "mean_iou"}  # the main score of each task


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
        confidence, predicted = probabilities.double().max(dim=1)
        self.confidences.append(confidence)
        self.right.append(predicted == targets)

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
            by_class = image_scores(mask, target, target != self.ignore)
            for number, score in by_class.items():
                self.class_total[number] += score
                self.class_images[number] += 1
            if by_class:
                self.total += sum(by_class.values()) / len(by_class)
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
    predicted, true = outline(mask, counted), outline(target, counted)
    classes = np.union1d(mask[predicted], target[true]).tolist()
    return {
        number: _f1(np.argwhere(predicted & (mask == number)), np.argwhere(true & (target == number)), tolerance)
        for number in classes
    }


def outline(mask: NDArray[np.integer[Any]], counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the pixels (H, W) with a neighbour, of four, of another class; only counted pixels, on both sides. The
    edge of the image is not an outline."""
    edges = np.zeros(mask.shape, bool)
    for first, second in (
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        differs = (mask[first] != mask[second]) & counted[first] & counted[second]
        edges[first] |= differs
        edges[second] |= differs
    return edges


def measures(task: Task, classes: int, **options: Any) -> MetricCollection:
    """Returns metrics fast enough for every epoch. They accept logits or served outputs, and targets, in batches, and
    compute scores in 0..1 by name over all batches.

    `mean_iou` is intersection over union from the pixel counts of the whole split, averaged over all classes in
    prediction or target, including the background. `options` are torchmetrics' own.
    """
    if task == "classification":
        return MetricCollection(
            {
                "top1": MulticlassAccuracy(classes, average="micro", **QUICKLY, **options),
                "top5": MulticlassAccuracy(classes, top_k=min(5, classes), average="micro", **QUICKLY, **options),
            }
        )
    return MetricCollection(
        {
            "pixel_accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE, **QUICKLY, **options),
            "mean_iou": MulticlassJaccardIndex(classes, average="macro", ignore_index=IGNORE, **QUICKLY, **options),
        }
    )


def scores(task: Task, classes: int) -> MetricCollection:
    """Returns `measures` plus metrics that are slower or need probabilities. They accept served outputs, probabilities
    or masks, in one process only."""
    metrics = measures(task, classes, **ALONE)
    if task == "classification":
        metrics.add_metrics({"calibration_error": CalibrationError(**ALONE)})
    else:
        metrics.add_metrics({"boundary_f1": BoundaryF1(classes, IGNORE, **ALONE)})
    return metrics


def confusion(task: Task, classes: int) -> Metric:
    """Returns counts of (true class, predicted class), in one process only."""
    # For a classifier, the class with that index is an ordinary one.
    ignore = IGNORE if task == "segmentation" else None
    return MulticlassConfusionMatrix(classes, ignore_index=ignore, **QUICKLY, **ALONE)


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class, each in 0..1. `support` is the number of images, or pixels, that belong to it.

    An undefined score is None: the precision of a class that was never predicted, the recall of one that does not
    occur. `boundary_f1` is for masks only.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    iou: float | None
    support: int
    boundary_f1: float | None = None


def class_scores(
    counts: NDArray[np.int64], labels: list[str], boundary: list[float | None] | None = None
) -> list[ClassScores]:
    """Returns one row per class. `counts[true, predicted]`; `boundary` contains boundary F1 scores by class."""
    right, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return [
        ClassScores(
            label=label,
            precision=_share(right[number], predicted[number]),
            recall=_share(right[number], true[number]),
            f1=_share(2 * right[number], true[number] + predicted[number]),
            iou=_share(right[number], true[number] + predicted[number] - right[number]),
            support=int(true[number]),
            boundary_f1=None if boundary is None else boundary[number],
        )
        for number, label in enumerate(labels)
    ]


def _bins(confidence: Tensor) -> Tensor:
    return torch.bucketize(confidence, torch.arange(1, BINS, dtype=torch.float64) / BINS)


def _f1(predicted: NDArray[np.intp], true: NDArray[np.intp], tolerance: float) -> float:
    if not (len(predicted) and len(true)):
        return 0.0
    precision, recall = _share_near(predicted, true, tolerance), _share_near(true, predicted, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_near(points: NDArray[np.intp], others: NDArray[np.intp], tolerance: float) -> float:
    distances, _ = KDTree(others).query(points)
    return float((distances <= tolerance).mean())


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
