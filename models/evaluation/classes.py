"""How good the answers are class by class, from the counts of who was taken for whom."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassScores:
    """Of one class, each in 0..1. `support` is how many images, or pixels, are truly of it.

    A score that has nothing to be measured on is None: the precision of a class that was never answered, the recall of
    one that is not there. `boundary_f1` is of masks only.
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
    """One row a class. `counts[true, answered]`; `boundary` are the classes' boundary F1 scores."""
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
