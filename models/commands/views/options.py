"""The options that the commands below `convoy visualize` share, and what they do with them."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convoy.models.analysis.operators import by
from convoy.models.commands.options import checkpoint_of, parse_size
from convoy.models.data.registry import shown
from convoy.models.errors import BadView
from convoy.models.visualize import hooks, selection, sheet
from convoy.models.visualize import network as subjects
from convoy.models.visualize.activation_maximization import Tick
from convoy.models.visualize.ascent import Climb, Space
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.network import ImageSubject, Pixels, Size, Subject
from convoy.service.errors import BadConfig

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT|RUN",
        help="A .ckpt file of a network that takes images, or the folder of a run.",
        callback=checkpoint_of,
    ),
]
Picture = Annotated[Path, typer.Option("--image", metavar="FILE", help="The picture that the network looks at.")]
LayerName = Annotated[
    str | None, typer.Option("--layer", metavar="NAME", help="Which layer.  [default: one in the middle]")
]
Channels = Annotated[
    str | None, typer.Option("--channels", metavar="LIST", help="Such as 0-15,20.  [default: the first ones]")
]
Sides = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="HxW", help="Of the pictures.  [default: the network's own; 128x128 if it takes any]"
    ),
]
Within = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="HxW", help="The picture is made to fit into it.  [default: its own, up to 1024x1024]"
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.png", help="Where it goes.  [default: beside the checkpoint]"),
]
Gif = Annotated[Path | None, typer.Option("--gif", metavar="FILE.gif", help="A film of how it came to be.")]
Steps = Annotated[int, typer.Option("--steps", metavar="N", min=1, max=100_000, help="Of the ascent.")]
Rate = Annotated[
    float,
    typer.Option(
        "--rate", metavar="X", min=0, max=1, help="How far a step goes, root mean square; 1 is from black to white."
    ),
]
Jitter = Annotated[
    int | None,
    typer.Option(
        "--jitter", metavar="N", min=0, help="Pixels of random shift before a step.  [default: a 16th of the side]"
    ),
]
Blur = Annotated[
    float, typer.Option("--blur", metavar="X", min=0, max=100, help="Pixels, standard deviation, each fourth step.")
]
InSpace = Annotated[Space, typer.Option("--space", help="In which coordinates it climbs.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the noise and the shifts.")]

JITTER_SHARE = 16
MOST_SIDE = 1024  # pixels: what a telephone takes is ten times as much, and then the maps do not fit into memory


def climb(
    steps: int, rate: float, jitter: int | None, blur: float, space: Space, size: Size, coloured: bool = True
) -> Climb:
    """How the ascent goes. Raises BadConfig where pictures of `size` cannot be shifted so far."""
    shorter = max(size) if 1 in size else min(size)  # of a waveform there is one side to shift along
    if jitter is None:
        jitter = shorter // JITTER_SHARE
    if jitter >= shorter:
        raise BadConfig(f"--jitter {jitter}, want less than the {shorter} pixels of the shorter side")
    return Climb(steps=steps, rate=rate, jitter=jitter, blur=blur, space=space, coloured=coloured)


def sides(text: str | None, subject: Subject) -> Size:
    """Height and width of what is grown. Raises BadTraining for a text that is no size."""
    return subject.size(None if text is None else parse_size(text))


def seen(image: Path, size: str | None, subject: ImageSubject) -> Pixels:
    """An image file as it reaches the input, (h, w, C). Raises BadView, BadData; BadConfig for a `size` where the
    network takes one only."""
    pixels = subjects.read(image, subject)
    if subject.spec.fit == "pad":
        return photograph(pixels, size)
    if size is not None:
        own = by(subject.size())
        raise BadConfig(f"--size {size!r} goes with networks that take any size, {subject.name} takes {own}")
    return subject.fit(pixels)


def photograph(pixels: Pixels, size: str | None) -> Pixels:
    """An image made to fit into `size`, or into 1024x1024, which is told. Raises BadTraining."""
    fitted = subjects.within(pixels, (MOST_SIDE, MOST_SIDE) if size is None else parse_size(size))
    if size is None and fitted is not pixels:
        before, after = by(subjects.sides(pixels)), by(subjects.sides(fitted))
        print(f"image: made smaller, from {before} to {after}; --size chooses another size")
    return fitted


def layer(name: str | None, subject: Subject) -> Layer:
    """The layer that was named, or one in the middle. Raises BadView."""
    there = hooks.layers(subject, subject.size())
    return selection.spread(there, 1)[0] if name is None else hooks.choose(name, there)


def destination(output: Path | None, checkpoint: Path, kind: str) -> Path:
    """Where the picture goes. Raises BadConfig now where it could not, not after the work."""
    path = checkpoint.with_name(f"{checkpoint.stem}-{kind}.png") if output is None else output
    _check("--output", path, ".png")
    return path


def check_gif(gif: Path | None) -> None:
    """Raises BadConfig where no film can go there."""
    if gif is not None:
        _check("--gif", gif, ".gif")


def title(subject: Subject, what: str) -> str:
    """What stands above a sheet."""
    data = subject.description.data
    return f"{subject.name}{f' on {shown(data)}' if data else ''}: {what}"


def numbers(text: str, option: str) -> tuple[int, int]:
    """Row and column of `ROW,COLUMN`. Raises BadView."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise BadView(f"{option} {text!r}, want ROW,COLUMN such as 12,30")
    row, column = map(int, parts)
    return row, column


def say_rest(chosen: int, count: int, what: str, option: str) -> None:
    """Tell that there is more than is shown."""
    if chosen < count:
        print(f"shown: {chosen} of {count} {what}; {option} chooses others")


def save(path: Path, image: Image.Image) -> None:
    """Write the picture and tell where."""
    image.save(path, optimize=True)
    print(f"picture: {path}")


def save_film(gif: Path | None, frames: Sequence[Image.Image]) -> None:
    """Write the film, where one was asked for, and tell where."""
    if gif is not None:
        sheet.film(frames, gif)
        print(f"film: {gif}")


@contextmanager
def progress(what: str, total: int) -> Iterator[Tick]:
    """A bar on stderr; what it gives moves it on by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _check(option: str, path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        raise BadConfig(f"{option} {str(path)!r}, want a name that ends in {suffix}")
    if not path.parent.is_dir():
        raise BadConfig(f"{option} {str(path)!r}: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise BadConfig(f"{option} {str(path)!r} is a folder, want a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadConfig(f"{option} {str(path)!r} cannot be written, want a place where files may be")
