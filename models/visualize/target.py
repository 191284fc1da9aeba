"""The target of an evidence map: a class, and for segmentation the selected pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.models.errors import BadView
from convoy.models.visualize import hooks
from convoy.models.visualize.classes import probability
from convoy.models.visualize.network import Size, Subject

BACKGROUND = "background"


@dataclass(frozen=True)
class Target:
    """A class. `where` (h, w) selects pixels of the network's input without padding; None for a classifier.
    `confidence` is its probability, 0..1, averaged over those pixels."""

    index: int
    label: str
    where: Tensor | None
    confidence: float

    def logit(self, logits: Tensor) -> Tensor:
        """Returns the class's logit for each output, (N,); for segmentation the mean over the selected pixels."""
        return self._mean(logits[:, self.index])

    def probability(self, logits: Tensor) -> Tensor:
        """Returns the class's probability, 0..1, in the same way."""
        return self._mean(probability(logits, torch.full((len(logits),), self.index)))

    def _mean(self, values: Tensor) -> Tensor:
        if self.where is None:
            return values
        height, width = self.where.shape
        return values[:, :height, :width][:, self.where].mean(dim=1)


def target(subject: Subject, picture: Tensor, index: int | None, at: tuple[int, int] | None) -> Target:
    """Returns the target for one picture, (1, h, w, C): the class `index`, or the predicted one.

    For segmentation: the pixels predicted as `index`, or if it is None as the most frequent class other than the
    background; or the one pixel `at` row and column, with its predicted class. Raises BadView if no pixel is predicted
    as the class, or `at` is outside.
    """
    size = (picture.shape[1], picture.shape[2])
    with torch.no_grad():
        logits = hooks.logits(subject, picture)
    labels = subject.description.labels
    if subject.description.task == "classification":
        if at is not None:
            raise BadView(f"--at goes with networks that answer pixels, {subject.name} answers one class")
        chosen, where = int(logits.argmax()) if index is None else index, None
    else:
        answered = logits[0, :, : size[0], : size[1]].argmax(dim=0)
        chosen, where = _pixels(answered, labels, index, at)
    found = Target(chosen, labels[chosen], where, 0.0)
    return Target(chosen, labels[chosen], where, float(found.probability(logits)))


def _pixels(answered: Tensor, labels: list[str], index: int | None, at: tuple[int, int] | None) -> tuple[int, Tensor]:
    if at is not None:
        row, column = _inside(at, (answered.shape[0], answered.shape[1]))
        where = torch.zeros_like(answered, dtype=torch.bool)
        where[row, column] = True
        return int(answered[row, column]) if index is None else index, where
    counts = torch.bincount(answered.flatten(), minlength=len(labels))
    if index is None:
        things = [place for place in counts.argsort(descending=True).tolist() if labels[place] != BACKGROUND]
        index = next((place for place in things if counts[place]), int(counts.argmax()))
    if not counts[index]:
        there = ", ".join(labels[place] for place in counts.nonzero().flatten().tolist())
        raise BadView(f"no pixel of the image is answered {labels[index]!r}, want one of: {there}; or --at ROW,COLUMN")
    return index, answered == index


def _inside(at: tuple[int, int], size: Size) -> tuple[int, int]:
    if not all(0 <= place < side for place, side in zip(at, size, strict=True)):
        raise BadView(f"--at {at[0]},{at[1]} is outside, want a row below {size[0]} and a column below {size[1]}")
    return at
