"""How good a trained network is on what neither training nor the choice of a checkpoint has seen."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import threads
from models.checkpoint import Description, load
from models.data.batches import loader
from models.data.registry import resolve
from models.errors import BadCheckpoint
from models.metrics import confusion, measures

BATCH_SIZE = 32


@dataclass(frozen=True)
class Evaluation:
    """`scores` by name, 0..1, as `models.metrics.measures` defines them, of so many images, or tensors;
    `confusion[true, answered]` counts those or pixels."""

    description: Description
    images: int
    scores: dict[str, float]
    confusion: NDArray[np.int64]


def evaluate_checkpoint(path: Path, data: str | None = None) -> Evaluation:
    """The network of a checkpoint on the whole held-out split of its data set, or of other data with the same classes.
    Raises BadCheckpoint, BadTraining, BadData."""
    description, network = load(path)
    if data is not None:
        description = msgspec.structs.replace(description, data=resolve(data))
    if not description.data:
        raise BadCheckpoint(f"{path} holds weights that were not trained here, want a checkpoint of `convoy train`")
    return evaluate(description, network)


def evaluate(description: Description, network: nn.Module) -> Evaluation:
    """A network on the whole held-out split, images brought to the input as serving would bring them."""
    threads.limit()
    split = description.held_out()
    normalise, scores = description.normalisation(), measures(description.task, len(description.labels))
    counts = confusion(len(description.labels))
    with torch.inference_mode():
        for images, targets in loader(split, description.spec, BATCH_SIZE):
            logits = network(normalise(images))
            scores.update(logits, targets)
            counts.update(logits, targets)
    return Evaluation(
        description=description,
        images=len(split),
        scores={name: float(value) for name, value in scores.compute().items()},
        confusion=counts.compute().numpy(),
    )
