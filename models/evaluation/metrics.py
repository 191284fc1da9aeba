"""How good answers are: top-1, top-5 and calibration of classes; pixel accuracy, mean IoU and outlines of masks."""

from typing import Any

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from convoy.models.data.dataset import IGNORE
from convoy.models.evaluation.boundary import BoundaryF1
from convoy.models.evaluation.calibration import CalibrationError
from convoy.service.metadata import Task

# Looking for wrong classes takes ten times as long as counting right ones.
QUICKLY: Any = {"validate_args": False}
# Where several processes have trained together, one of them measures, and waits for no other.
ALONE: Any = {"sync_on_compute": False}
LEADING: dict[Task, str] = {"classification": "top1", "segmentation": "mean_iou"}  # the one that checkpoints go by


def measures(task: Task, classes: int, **options: Any) -> MetricCollection:
    """What is quick enough for every epoch. Take logits, or what is served, and targets batch by batch, answer scores
    in 0..1 by name over all they have seen.

    `mean_iou` is intersection over union from the counts of all pixels of the split, then the mean of all classes that
    are in it, true or answered, the background among them. `options` are torchmetrics' own.
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
    """`measures`, and what takes longer or wants probabilities. Take what is served: probabilities or masks. Of one
    process alone."""
    found = measures(task, classes, **ALONE)
    if task == "classification":
        found.add_metrics({"calibration_error": CalibrationError(**ALONE)})
    else:
        found.add_metrics({"boundary_f1": BoundaryF1(classes, IGNORE, **ALONE)})
    return found


def confusion(task: Task, classes: int) -> Metric:
    """Counts of (true class, answered class), of one process alone."""
    # Of a classifier's labels the one of that number is a class like any other.
    ignore = IGNORE if task == "segmentation" else None
    return MulticlassConfusionMatrix(classes, ignore_index=ignore, **QUICKLY, **ALONE)
