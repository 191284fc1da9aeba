"""The examples with the worst predictions, as a sheet: they reveal wrong labels and the network's weaknesses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convoy.models.data.batches import indexed
from convoy.models.data.contact_sheet import Tile, sheet
from convoy.models.data.dataset import Split, Subset
from convoy.models.data.formats.folder import FolderSplit
from convoy.models.evaluation.evaluate import Evaluation, Example
from convoy.models.evaluation.predictor import Predictor

MAX_IMAGES, MAX_MASKS = 32, 16
MAX_RIGHT = 8  # images whose class is right, but least certain


def worst(evaluation: Evaluation) -> list[Example]:
    """Returns the images with a wrong class and a few that are right but least certain, by the probability of the true
    class; or those whose masks have the lowest mean IoU. Worst first."""
    ordered = sorted(evaluation.examples, key=lambda example: example.score)
    if evaluation.network.task == "segmentation":
        return ordered[:MAX_MASKS]
    right = [example for example in ordered if example.true == example.predicted][:MAX_RIGHT]
    return [example for example in ordered if example.true != example.predicted or example in right][:MAX_IMAGES]


def heading(evaluation: Evaluation) -> str:
    """Returns what `worst` contains, as a sentence."""
    shown = worst(evaluation)
    if evaluation.network.task == "segmentation":
        return f"The {len(shown)} masks with the lowest mean IoU."
    wrong = sum(example.true != example.predicted for example in evaluation.examples)
    listed = sum(example.true != example.predicted for example in shown)
    first = (
        f"{wrong} of {len(evaluation.examples):,} are wrong" if wrong else f"All {len(evaluation.examples):,} are right"
    )
    first += f"; the worst {listed} of them" if listed < wrong else ""
    return (
        f"{first}. {len(shown) - listed} right ones, the least certain, are among these."
        if len(shown) > listed
        else first + "."
    )


def save(evaluation: Evaluation, path: Path) -> None:
    """Writes the worst images as a PNG file: with true class, predicted class and confidence; or with the true and
    predicted masks side by side, each over the image. For image data only."""
    network, split, examples = evaluation.network, evaluation.samples, worst(evaluation)
    if network.task == "classification":
        tiles = [Tile(split[each.index][0], caption(each, network.labels)) for each in examples]
    else:
        tiles = _masks(network, split, examples)
    sheet(tiles, network.palette, network.labels).save(path, "PNG")


def caption(example: Example, labels: list[str]) -> str:
    """Returns the true class and the prediction as text."""
    if example.true is None or example.predicted is None or example.confidence is None:
        return f"IoU {example.score:.2f}"
    predicted = "" if example.true == example.predicted else f", not {labels[example.predicted]}"
    return f"{labels[example.true]}{predicted} ({example.confidence:.0%})"


def name(split: Split, index: int) -> str:
    """Returns the file of an image, or its number in the split."""
    return split.name(index) if isinstance(split, FolderSplit) else f"no. {index}"


def _masks(network: Predictor, split: Split, examples: Sequence[Example]) -> list[Tile]:
    chosen = Subset(split, [example.index for example in examples])
    predictions: dict[int, NDArray[np.uint8]] = {}
    for indices, batch in indexed(chosen, network.spec, batch_size=1):
        predictions[indices[0]] = network.predict(batch.images).best[0].numpy()
    tiles: list[Tile] = []
    for place, example in enumerate(examples):
        image, target = chosen[place]
        assert isinstance(target, np.ndarray)
        height, width = target.shape  # padding is at the right and bottom
        tiles.append(Tile(image, f"{name(split, example.index)}: true", target))
        tiles.append(Tile(image, f"predicted: {caption(example, network.labels)}", predictions[place][:height, :width]))
    return tiles
