"""Scores per class, from the confusion matrix."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    """Returns one row per class. `counts[true, answered]`; `boundary` contains boundary F1 scores by class."""
    right, true, answered = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return [
        ClassScores(
            label=label,
            precision=_share(right[number], answered[number]),
            recall=_share(right[number], true[number]),
            f1=_share(2 * right[number], true[number] + answered[number]),
            iou=_share(right[number], true[number] + answered[number] - right[number]),
            support=int(true[number]),
            boundary_f1=None if boundary is None else boundary[number],
        )
        for number, label in enumerate(labels)
    ]


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
