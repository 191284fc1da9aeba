"""Functions that the subcommands of `convoy visualize` share after their options are checked."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convoy.models.analysis.operators import by
from convoy.models.commands.options import parse_size
from convoy.models.data.registry import display_name
from convoy.models.settings import AscentSettings, Space
from convoy.models.visualize import hooks, selection, sheet, subjects
from convoy.models.visualize.activation_maximization import Tick
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.subjects import ImageSubject, Pixels, Size, Subject
from convoy.service.errors import BadConfig

JITTER_SHARE = 16
MAX_SIDE = 1024  # pixels: a phone's photographs have ten times as many, and their maps do not fit into memory


def ascent_settings(
    steps: int, rate: float, jitter: int | None, blur: float, space: Space, size: Size, coloured: bool = True
) -> AscentSettings:
    """Returns the settings of the ascent. Raises BadConfig if pictures of `size` are too small for the jitter."""
    shorter = max(size) if 1 in size else min(size)  # a waveform has only one side to shift along
    if jitter is None:
        jitter = shorter // JITTER_SHARE
    if jitter >= shorter:
        raise BadConfig(f"--jitter {jitter}, want less than the {shorter} pixels of the shorter side")
    return AscentSettings(steps=steps, rate=rate, jitter=jitter, blur=blur, space=space, coloured=coloured)


def sides(text: str | None, subject: Subject) -> Size:
    """Returns the height and width of a generated picture. Raises BadTraining if the text is not a size."""
    return subject.size(None if text is None else parse_size(text))


def fitted_image(image: Path, size: str | None, subject: ImageSubject) -> Pixels:
    """Returns an image file as fitted to the input, (h, w, C). Raises BadView, BadData; BadConfig for a `size` if the
    network accepts only one."""
    pixels = subjects.read_image(image, subject)
    if subject.spec.fit == "pad":
        return photograph(pixels, size)
    if size is not None:
        own = by(subject.size())
        raise BadConfig(f"--size {size!r} requires a network that accepts any size, {subject.name} accepts {own}")
    return subject.fit(pixels)


def photograph(pixels: Pixels, size: str | None) -> Pixels:
    """Returns an image shrunk to fit into `size`, or into 1024x1024, which is reported. Raises BadTraining."""
    fitted = subjects.shrunk(pixels, (MAX_SIDE, MAX_SIDE) if size is None else parse_size(size))
    if size is None and fitted is not pixels:
        before, after = by(subjects.sides(pixels)), by(subjects.sides(fitted))
        print(f"image: resized from {before} to {after}; --size sets another size")
    return fitted


def layer(name: str | None, subject: Subject) -> Layer:
    """Returns the layer of that name, or one in the middle. Raises BadView."""
    layers = hooks.layers(subject, subject.size())
    return selection.spread(layers, 1)[0] if name is None else hooks.layer_of(name, layers)


def title(subject: Subject, what: str) -> str:
    """Returns the title of a sheet."""
    data = subject.description.data
    return f"{subject.name}{f' on {display_name(data)}' if data else ''}: {what}"


def print_rest(chosen: int, count: int, what: str, option: str) -> None:
    """Prints the number of items shown and the option that chooses others, if not all are shown."""
    if chosen < count:
        print(f"shown: {chosen} of {count} {what}; {option} selects others")


def save(path: Path, image: Image.Image) -> None:
    """Writes the picture and prints its path."""
    image.save(path, optimize=True)
    print(f"picture: {path}")


def save_film(gif: Path | None, frames: Sequence[Image.Image]) -> None:
    """Writes the film, if requested, and prints its path."""
    if gif is not None:
        sheet.film(frames, gif)
        print(f"film: {gif}")


@contextmanager
def progress(what: str, total: int) -> Iterator[Tick]:
    """Shows a progress bar on stderr; yields a function that advances it by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
