"""Class images: pictures that a network assigns to a class with maximum confidence."""

from collections.abc import Callable

import torch
from torch import Tensor

from convoy.models.errors import BadView
from convoy.models.settings import AscentSettings
from convoy.models.visualize import activation_maximization, hooks
from convoy.models.visualize.activation_maximization import Growing, Grown, ScoreOf
from convoy.models.visualize.network import Pixels, Size, Subject
from convoy.models.visualize.sheet import Section, Tile


def class_images(subject: Subject, classes: list[int], size: Size, climb: AscentSettings, growing: Growing) -> Grown:
    """Optimises a picture for each class, from noise (Simonyan, Vedaldi and Zisserman, arXiv 1312.6034, section 2).

    The objective is the log-odds of the class, for segmentation their mean over all pixels. A class's logit can grow
    while another's grows faster, and the probability's gradient vanishes close to 1. Raises BadView if there is only
    one class.
    """
    if len(subject.description.labels) < 2:
        raise BadView(f"{subject.name} has one class only: there is nothing to tell it from")
    return activation_maximization.grow(subject, classes, size, _score(subject, classes, log_odds), climb, growing)


def confidences(subject: Subject, classes: list[int], images: list[Pixels]) -> list[float]:
    """Returns the probability, 0..1, of each image's class, for the image as stored in 8 bits per channel. For
    segmentation the mean over all pixels."""
    return activation_maximization.measured(_score(subject, classes, probability), images)


def section(subject: Subject, classes: list[int], images: list[Pixels], reached: list[float] | None) -> Section:
    """Returns the pictures with the confidence they reached, if known."""
    values = [""] * len(images) if reached is None else [f": {100 * value:.2f} %" for value in reached]
    labels = [subject.description.labels[index] for index in classes]
    tiles = [
        Tile(subject.drawn(image), f"{label}{value}")
        for label, image, value in zip(labels, images, values, strict=True)
    ]
    return Section(f"class{'' if reached is None else ': confidence'}", tiles)


def log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """Returns log(p / (1 - p)) of one class each, from logits (N, classes, ...): (N, ...)."""
    index = classes.view(-1, *(1,) * (logits.dim() - 1)).expand(-1, 1, *logits.shape[2:])
    own = logits.gather(1, index)
    others = logits.scatter(1, index, -torch.inf).logsumexp(dim=1, keepdim=True)
    return (own - others)[:, 0]


def probability(logits: Tensor, classes: Tensor) -> Tensor:
    """Returns p of one class each, from logits (N, classes, ...): (N, ...)."""
    return log_odds(logits, classes).sigmoid()


def _score(subject: Subject, classes: list[int], measure: Callable[[Tensor, Tensor], Tensor]) -> ScoreOf:
    def score(pictures: Tensor, batch: list[int]) -> Tensor:
        height, width = pictures.shape[1:3]
        logits = hooks.logits(subject, pictures)
        values = measure(logits, torch.tensor([classes[place] for place in batch]))
        # For segmentation, only the picture's own pixels, without padding.
        return values[:, :height, :width].mean(dim=(1, 2)) if values.dim() == 3 else values

    return score
