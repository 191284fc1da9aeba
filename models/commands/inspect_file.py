"""`convoy inspect`: the layers of a network with shapes, parameters, multiply-adds and receptive fields."""

from pathlib import Path
from typing import Annotated

import typer

from convoy.models import paths, registry
from convoy.models.commands.options import assignments, parse_size, print_table
from convoy.models.errors import BadTraining


def inspect(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="ARCH|FILE", help="An architecture's name, a checkpoint (.ckpt) or an ONNX file (.onnx)."
        ),
    ],
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Size of the image.  [default: the network's own; 256x256 if it accepts any]"),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set an argument of the architecture; repeatable."),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Number of classes.  [default: 1000; 10 for grey images; 21 for pixels]"),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Channels of the image.  [default: the network's own]")
    ] = None,
) -> None:
    """Print the layers of a network: output shapes, parameters, multiply-adds and receptive fields."""
    sides = None if size is None else parse_size(size)
    changes = assignments(arguments or [])
    if _is_file(subject):
        if arguments or classes or channels:
            raise BadTraining(f"{subject} is a file: --set, --classes and --channels apply to architectures only")
        paths.check_network(Path(subject))
    else:
        registry.merged(subject, changes)

    from convoy.models.analysis import rows
    from convoy.models.analysis.operators import by
    from convoy.models.analysis.summary import inspect_architecture, inspect_file

    if _is_file(subject):
        anatomy = inspect_file(Path(subject), sides)
    else:
        anatomy = inspect_architecture(subject, sides, classes, channels, changes)
    print(f"{subject}, input {by(anatomy.image[1:])}")
    print_table(rows.table(anatomy))
    for note in rows.notes(anatomy):
        print(note)


def _is_file(subject: str) -> bool:
    """Returns whether the user means a file, existing or not, and not an architecture."""
    path = Path(subject)
    return subject not in registry.ARCHITECTURES and (path.suffix in paths.NETWORKS or path.exists())
