"""Metrics: top-1, top-5 and calibration for classes; pixel accuracy, mean IoU and outlines for masks."""

from typing import Any

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from convoy.models.data.dataset import IGNORE
from convoy.models.evaluation.boundary import BoundaryF1
from convoy.models.evaluation.calibration import CalibrationError
from convoy.service.metadata import Task

# Checking for invalid classes takes ten times as long as counting correct ones.
QUICKLY: Any = {"validate_args": False}
# After training in several processes, one of them evaluates without waiting for the others.
ALONE: Any = {"sync_on_compute": False}
LEADING: dict[Task, str] = {"classification": "top1", "segmentation": "mean_iou"}  # the main score of each task


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
    found = measures(task, classes, **ALONE)
    if task == "classification":
        found.add_metrics({"calibration_error": CalibrationError(**ALONE)})
    else:
        found.add_metrics({"boundary_f1": BoundaryF1(classes, IGNORE, **ALONE)})
    return found


def confusion(task: Task, classes: int) -> Metric:
    """Returns counts of (true class, predicted class), in one process only."""
    # For a classifier, the class with that index is an ordinary one.
    ignore = IGNORE if task == "segmentation" else None
    return MulticlassConfusionMatrix(classes, ignore_index=ignore, **QUICKLY, **ALONE)
