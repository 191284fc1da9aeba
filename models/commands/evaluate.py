"""`convoy evaluate`: scores of a checkpoint or an exported file on held-out images."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from convoy.models import paths
from convoy.models.commands.options import (
    MaskColours,
    MaskValues,
    check_data,
    check_picture,
    checkpoint_of,
    parse_bounds,
    print_json,
    with_masks,
)
from convoy.models.data.registry import display_name
from convoy.service.errors import BadConfig

if TYPE_CHECKING:
    from convoy.models.evaluation.evaluate import Evaluation


def evaluate(
    network: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|RUN",
            help="A checkpoint (.ckpt), an exported file (.onnx), or the folder of a run.",
            callback=checkpoint_of,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Data set or folder with the same classes.  [default: what it was trained on]"
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Output file of the confusion matrix.  [default: beside the checkpoint]"),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            metavar="PX,PX",
            help="Separate scores of images up to these sides, such as 32,96; the side is that of a square of the same "
            "area.  [default: thirds]",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse data with an unreadable picture instead of skipping it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    mask_values: MaskValues = None,
    mask_colours: MaskColours = None,
) -> None:
    """Measure a trained network on the whole held-out split of its data. A checkpoint is run by PyTorch, an exported
    file by onnxruntime, as it is served."""
    check_picture(picture)
    if data is not None:
        data = with_masks(data, mask_values, mask_colours)
    elif mask_values is not None or mask_colours is not None:
        raise BadConfig("--mask-values and --mask-colours require --data, whose masks they describe")
    bounds = None if slices is None else parse_bounds(slices)
    paths.check_trained(network)
    check_data(data)

    from convoy.models.evaluation.evaluate import evaluate_file
    from convoy.models.report import classes

    result = evaluate_file(network, data, bounds, strict)
    if json:
        print_json(as_json(result))
    else:
        _show(result)
        if network.suffix != ".onnx":  # never in a folder that a server watches
            picture = picture or network.with_name(f"{network.stem}-confusion.png")
    if picture is not None:
        title = f"{result.network.name} on {display_name(result.network.data)}, held out"
        classes.save_confusion(result.confusion, result.network.labels, title, picture)
        print(f"picture: {picture}", file=sys.stderr if json else sys.stdout)


def as_json(result: "Evaluation") -> dict[str, Any]:
    """Returns what `--json` prints."""
    from convoy.models.report import classes

    names = classes.class_columns(result)
    return {
        "network": result.network.name,
        "task": result.network.task,
        "data": result.network.data,
        "split": result.split,
        "images": result.images,
        "scores": result.scores,
        "classes": [{"class": row.label, **{name: getattr(row, name) for name in names}} for row in result.classes],
        "slices": [asdict(each) for each in result.slices],
        "confusion": result.confusion.tolist(),
    }


def _show(result: "Evaluation") -> None:
    from convoy.models.report import classes, words

    network, console = result.network, Console()
    kind = "tensors" if result.of_tensors else "images"
    counted = "pixels" if network.task == "segmentation" else kind
    print(f"{network.name} on {result.images} held-out {kind} of {network.data}")
    width = max(map(len, result.scores))
    for name, score in result.scores.items():
        print(f"  {name:<{width}}  {score:.4f}  {words.SCORES[name].format(kind=kind, counted=counted)}")
    for each in result.slices:
        scores = "  ".join(f"{name} {score:.4f}" for name, score in each.scores.items())
        print(f"  {each.images} {each.name}:  {scores}")
    console.print(classes.class_table(result))
    console.print(classes.confusion_table(result.confusion, network.labels))
