"""`convoy evaluate`: how good a checkpoint is on images that training has not seen."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.evaluate import evaluate_checkpoint
from models.visualize import confusion
from service.errors import BadConfig

MEANING = {
    "top1": "share of {kind} whose most probable class is right",
    "top5": "share of {kind} with the right class among the five most probable",
    "pixel_accuracy": "share of pixels whose class is right",
    "mean_iou": "intersection over union, mean of all classes with the background, over all pixels of the split",
}


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A .ckpt file that `convoy train` wrote.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Data set or folder with the same classes.  [default: what it was trained on]"
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Where the confusion matrix goes as PNG.  [default: beside the checkpoint]"
        ),
    ] = None,
) -> None:
    """Measure a trained network on the whole held-out split of its data."""
    if picture is not None and not picture.parent.is_dir():  # told now, not after minutes of measuring
        raise BadConfig(f"cannot write {str(picture)!r}: there is no folder {str(picture.parent)!r}")
    result = evaluate_checkpoint(checkpoint, data)
    description = result.description
    picture = picture or checkpoint.with_name(f"{checkpoint.stem}-confusion.png")
    kind = "images" if description.tensor is None else "tensors"
    print(f"{description.architecture} on {result.images} held-out {kind} of {description.data}")
    for name, score in result.scores.items():
        print(f"  {name:<15}{score:.4f}  {MEANING[name].format(kind=kind)}")
    Console().print(confusion.table(result.confusion, description.labels))
    title = f"{description.architecture} on {description.data}, held out"
    confusion.save(result.confusion, description.labels, title, picture)
    print(f"picture: {picture}")
