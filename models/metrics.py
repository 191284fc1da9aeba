"""How good answers are: top-1 and top-5 of classes; pixel accuracy and mean IoU of masks."""

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from service.metadata import Task

IGNORE = 255  # a pixel of no class: what was padded
LEADING: dict[Task, str] = {"classification": "top1", "segmentation": "mean_iou"}  # the one that checkpoints go by


def measures(task: Task, classes: int) -> MetricCollection:
    """Take logits and targets batch by batch, answer scores in 0..1 by name over all they have seen.

    `mean_iou` is intersection over union from the counts of all pixels of the split, then the mean of all classes, the
    background among them.
    """
    if task == "classification":
        return MetricCollection(
            {
                "top1": MulticlassAccuracy(classes, average="micro"),
                "top5": MulticlassAccuracy(classes, top_k=min(5, classes), average="micro"),
            }
        )
    return MetricCollection(
        {
            "pixel_accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE),
            "mean_iou": MulticlassJaccardIndex(classes, average="macro", ignore_index=IGNORE),
        }
    )


def confusion(classes: int) -> Metric:
    """Counts of (true class, answered class)."""
    return MulticlassConfusionMatrix(classes, ignore_index=IGNORE)
