"""`convoy adopt-weights`: converts weights saved by Keras or torchvision into a checkpoint for `convoy export`."""

from pathlib import Path
from typing import Annotated

import typer

from convoy.models import paths, registry
from convoy.models.commands.options import assignments, check_exists, parse_size
from convoy.models.pretrained.registry import KERAS, MEANING, TORCHVISION, PixelForm


def adopt_weights(
    architecture: Annotated[
        str, typer.Argument(metavar="ARCHITECTURE", help=f"One of: {', '.join(KERAS | TORCHVISION)}.")
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .weights.h5 or .h5 file of Keras, or a .pth file of torchvision.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of the classes, one a line.  [default: class 0, class 1, ..]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Output file.  [default: ARCHITECTURE.ckpt]"),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of the network's input images.  [default: its own]")
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set an argument of the architecture; repeatable."),
    ] = None,
    pixels: Annotated[
        PixelForm | None,
        typer.Option(
            "--preprocessing",
            help="How the weights expect pixels: "
            + "; ".join(f"{name} is {meaning}" for name, meaning in MEANING.items())
            + ".  [default: as the published weights do]",
        ),
    ] = None,
) -> None:
    """Import weights that another library saved, if each of them has its place in the network."""
    changes, sides = assignments(arguments or []), None if size is None else parse_size(size)
    registry.merged(architecture, changes)
    registry.check_size(architecture, sides)
    paths.check_weights(file)
    check_exists(labels)

    from convoy.models import checkpoint
    from convoy.models.analysis.torch_reader import count
    from convoy.models.pretrained.weights import adopt, read_labels

    adopted = adopt(
        architecture,
        file,
        labels=None if labels is None else read_labels(labels),
        size=sides,
        arguments=changes,
        pixels=pixels,
    )
    output = output or Path(f"{architecture}.ckpt")
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(output, adopted.description, adopted.network)
    numbers, classes = count(adopted.network).total, len(adopted.description.labels)
    print(f"found       {architecture} of {adopted.library}: {numbers:,} numbers, {classes} classes")
    print(f"pixels      {adopted.pixels}: {MEANING[adopted.pixels]}")
    if labels is None:
        print("labels      none: classes are named by their numbers, --labels FILE sets their names")
    print(f"checkpoint  {output}")
    print(f"next        convoy export {output} --repository repository")
