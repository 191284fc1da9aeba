"""Options that the subcommands of `convoy visualize` share, and checks that run before torch is imported."""

import os
from pathlib import Path
from typing import Annotated

import typer

from convoy.models import paths
from convoy.models.commands.options import checkpoint_of, parse_size
from convoy.models.errors import BadView
from convoy.models.settings import Space
from convoy.service.errors import BadConfig

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT|RUN",
        help="A .ckpt file of a network for images, or the folder of a run.",
        callback=checkpoint_of,
    ),
]
Picture = Annotated[Path, typer.Option("--image", metavar="FILE", help="The network's input picture.")]
LayerName = Annotated[
    str | None, typer.Option("--layer", metavar="NAME", help="Which layer.  [default: one in the middle]")
]
Channels = Annotated[
    str | None, typer.Option("--channels", metavar="LIST", help="Channels, such as 0-15,20.  [default: the first ones]")
]
Sides = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="HxW", help="Size of the pictures.  [default: the network's own; 128x128 if it accepts any]"
    ),
]
Within = Annotated[
    str | None,
    typer.Option("--size", metavar="HxW", help="Maximum size of the picture.  [default: its own, up to 1024x1024]"),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.png", help="Output file.  [default: beside the checkpoint]"),
]
Gif = Annotated[Path | None, typer.Option("--gif", metavar="FILE.gif", help="A film of the optimisation.")]
Steps = Annotated[int, typer.Option("--steps", metavar="N", min=1, max=100_000, help="Number of steps.")]
Rate = Annotated[
    float,
    typer.Option(
        "--rate", metavar="X", min=0, max=1, help="Size of a step, root mean square; 1 is from black to white."
    ),
]
Jitter = Annotated[
    int | None,
    typer.Option(
        "--jitter",
        metavar="N",
        min=0,
        help="Maximum random shift before a step, in pixels.  [default: a 16th of the side]",
    ),
]
Blur = Annotated[
    float, typer.Option("--blur", metavar="X", min=0, max=100, help="Standard deviation in pixels, every fourth step.")
]
InSpace = Annotated[Space, typer.Option("--space", help="Coordinates of the ascent.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed of the noise and the shifts.")]


def check(checkpoint: Path, image: Path | None = None, size: str | None = None) -> None:
    """Raises BadCheckpoint or BadView if a file does not exist, BadTraining if a text is not a size."""
    paths.check_checkpoint(checkpoint)
    if image is not None:
        paths.check_image(image)
    if size is not None:
        parse_size(size)


def destination(output: Path | None, checkpoint: Path, kind: str) -> Path:
    """Returns the path of the picture. Raises BadConfig if it could not be written: now, not after the work."""
    path = checkpoint.with_name(f"{checkpoint.stem}-{kind}.png") if output is None else output
    _check("--output", path, ".png")
    return path


def check_gif(gif: Path | None) -> None:
    """Raises BadConfig if a film could not be written there."""
    if gif is not None:
        _check("--gif", gif, ".gif")


def numbers(text: str, option: str) -> tuple[int, int]:
    """Parses `ROW,COLUMN`. Raises BadView."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise BadView(f"{option} {text!r}, want ROW,COLUMN such as 12,30")
    row, column = map(int, parts)
    return row, column


def _check(option: str, path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        raise BadConfig(f"{option} {str(path)!r}, want a name that ends in {suffix}")
    if not path.parent.is_dir():
        raise BadConfig(f"{option} {str(path)!r}: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise BadConfig(f"{option} {str(path)!r} is a folder, want a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadConfig(f"{option} {str(path)!r} cannot be written, want a writable folder")
