"""Evaluation of a trained network on held-out data, also by image size, to show whether small images score worse."""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convoy.models import registry, runtime
from convoy.models.analysis.summary import useful_threads
from convoy.models.checkpoint import Description
from convoy.models.data.batches import Batch, indexed
from convoy.models.data.dataset import IGNORE, Split, SplitName
from convoy.models.evaluation.metrics import (
    ALONE,
    BoundaryF1,
    ClassScores,
    MaskCalibrationError,
    class_scores,
    confusion,
    scores,
)
from convoy.models.evaluation.predictor import Predictions, Predictor, of_network, of_path
from convoy.service.metadata import InputSpec
from convoy.service.preprocess import input_size

BATCH_SIZE = 32

SLICE_NAMES = ("small", "medium", "large")


@dataclass(frozen=True)
class Slice:
    """Images of a range of sizes, and their scores."""

    name: str
    images: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Example:
    """One image of the split, by its `index`. `score`, 0..1, is the probability of the true class, or for a mask the
    mean IoU of the classes in prediction or target. The other fields are for classes only."""

    index: int
    score: float
    true: int | None = None
    predicted: int | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """`scores` by name, 0..1, as defined by `convoy.models.evaluation.metrics.scores`, over `images` images or tensors;
    `confusion[true, predicted]` counts images or pixels. `slices` is empty if all images have one size."""

    network: Predictor
    split: SplitName
    images: int
    scores: dict[str, float]
    confusion: NDArray[np.int64]
    classes: list[ClassScores]
    slices: list[Slice]
    examples: list[Example]
    samples: Split  # the samples that the examples' indices refer to

    @property
    def of_tensors(self) -> bool:
        return not isinstance(self.network.spec, InputSpec)


def evaluate_file(
    path: Path, data: str | None = None, bounds: Sequence[float] | None = None, strict: bool = False
) -> Evaluation:
    """Evaluates a checkpoint or exported file on the whole test split of its data, or of other data with the same
    classes. Raises BadCheckpoint, BadNetworkFile, BadTraining, BadData."""
    runtime.limit_threads()
    return measure(of_path(path, data), bounds=bounds, strict=strict)


def evaluate(description: Description, network: nn.Module) -> Evaluation:
    """Evaluates a network on the whole test split of its data."""
    return measure(of_network(description, network))


def measure(
    network: Predictor, split: SplitName = "test", bounds: Sequence[float] | None = None, strict: bool = False
) -> Evaluation:
    """Evaluates a network on a whole split, with images preprocessed as in serving.

    `bounds` are the sides in pixels that divide images into slices by size; by default thirds. An unreadable picture is
    skipped; with `strict` it raises BadData.
    """
    images = network.split(split, strict)
    with runtime.threads(_threads(network, images)):
        return _measure(network, split, images, bounds)


def _measure(network: Predictor, split: SplitName, images: Split, bounds: Sequence[float] | None) -> Evaluation:
    places, slices = _slices_of(images, network, bounds)
    whole = _Tally(network)
    parts = [_Tally(network) for _ in slices]
    examples: list[Example] = []
    for indices, batch in indexed(images, network.spec, BATCH_SIZE):
        predictions = network.predict(batch.images)
        whole.update(predictions, batch.targets)
        for number, part in enumerate(parts):
            chosen = torch.tensor([places[index] == number for index in indices])
            part.update(predictions.of(chosen), batch.targets[chosen])
        examples += _examples(indices, predictions.best, batch)
    counts = whole.confusion()
    return Evaluation(
        network=network,
        split=split,
        images=len(examples),
        scores=whole.compute(),
        confusion=counts,
        classes=class_scores(counts, network.labels, whole.boundary()),
        slices=[
            Slice(name, part.images, part.compute()) for name, part in zip(slices, parts, strict=True) if part.images
        ],
        examples=sorted(examples, key=lambda example: example.index),
        samples=images,
    )


def side(size: Sequence[int]) -> float:
    """Returns the size of an image (height, width): the side in pixels of a square of the same area."""
    return math.sqrt(size[0] * size[1])


def thirds(sides: Sequence[float]) -> list[float]:
    """Returns the sides that bound the smallest third and two thirds of the images. Images of one size stay together,
    so the thirds may be unequal; no bounds if all have one size."""
    ordered = sorted(sides)
    bounds = [ordered[math.ceil(len(ordered) * share) - 1] for share in (1 / 3, 2 / 3)]
    return sorted({bound for bound in bounds if bound < ordered[-1]})


def slice_of(side: float, bounds: Sequence[float]) -> int:
    """Returns the index of an image's slice: up to the first bound, up to the second, and so on."""
    return bisect.bisect_left(bounds, side)


def slice_names(bounds: Sequence[float]) -> list[str]:
    """Returns the slices' names, in order: one more than there are bounds."""
    if not bounds:
        return ["all"]
    texts = [f"{bound:.4g}" for bound in bounds]
    spans = [f"up to {texts[0]}", *(f"{low} to {high}" for low, high in pairwise(texts))]
    spans = [f"{span} px" for span in [*spans, f"above {texts[-1]}"]]
    if len(spans) == len(SLICE_NAMES):
        return [f"{name}, {span}" for name, span in zip(SLICE_NAMES, spans, strict=True)]
    return spans


class _Tally:
    """Accumulates the scores of images."""

    def __init__(self, network: Predictor) -> None:
        self.images = 0
        self.has_confidence = False  # whether masks have confidences
        self.calibration = MaskCalibrationError(IGNORE, **ALONE)
        self.scores, self.counts = (
            scores(network.task, len(network.labels)),
            confusion(network.task, len(network.labels)),
        )

    def update(self, predictions: Predictions, targets: Tensor) -> None:
        if not len(targets):
            return
        self.images += len(targets)
        self.scores.update(predictions.best, targets)
        self.counts.update(predictions.best, targets)
        if predictions.confidence is not None:
            self.has_confidence = True
            self.calibration.update(predictions.best, predictions.confidence, targets)

    def compute(self) -> dict[str, float]:
        if not self.images:
            return {}
        scores = {
            **self.scores.compute(),
            **({"calibration_error": self.calibration.compute()} if self.has_confidence else {}),
        }
        return {name: float(value) for name, value in scores.items()}

    def confusion(self) -> NDArray[np.int64]:
        return np.asarray(self.counts.compute().numpy())

    def boundary(self) -> list[float | None] | None:
        per_class = [metric.per_class() for metric in self.scores.values() if isinstance(metric, BoundaryF1)]
        return per_class[0] if per_class else None


def _threads(network: Predictor, images: Split) -> int:
    """Returns the most threads for a batch. onnxruntime needs no limit: it divides no small operator."""
    description = network.description
    if description is None or not len(images):
        return runtime.MAX_THREADS
    size = registry.sides(description.spec)
    if size is None:
        sizes = sorted((images.size(index) for index in range(len(images))), key=math.prod)
        size = sizes[len(sizes) // 2]
        size = input_size(description.spec, *size) if isinstance(description.spec, InputSpec) else size
    labels, channels = len(description.labels), description.as_tensor.channels
    return useful_threads(description.architecture, size, labels, channels, description.arguments, BATCH_SIZE)


def _slices_of(images: Split, network: Predictor, bounds: Sequence[float] | None) -> tuple[list[int], list[str]]:
    if not isinstance(network.spec, InputSpec):
        return [], []
    sides = [side(images.size(index)) for index in range(len(images))]
    bounds = thirds(sides) if bounds is None else bounds
    return [slice_of(each, bounds) for each in sides], slice_names(bounds) if bounds else []


def _examples(indices: Sequence[int], predictions: Tensor, batch: Batch) -> Iterator[Example]:
    if predictions.is_floating_point():
        confidence, predicted = predictions.max(dim=1)
        right = predictions.gather(1, batch.targets[:, None])[:, 0]
        columns = (right.tolist(), batch.targets.tolist(), predicted.tolist(), confidence.tolist())
        yield from (Example(*row) for row in zip(indices, *columns, strict=True))
        return
    for index, mask, target in zip(indices, predictions, batch.targets, strict=True):
        yield Example(index, _mean_iou(mask[target != IGNORE].long(), target[target != IGNORE]))


def _mean_iou(predicted: Tensor, true: Tensor) -> float:
    classes = 1 + max(int(each.max(initial=0)) for each in (predicted.numpy(), true.numpy()))
    counts = torch.bincount(classes * true + predicted, minlength=classes**2).view(classes, classes)
    right, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float((right[union > 0] / union[union > 0]).mean()) if len(true) else 1.0
