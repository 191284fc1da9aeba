"""The large path of `convoy segment`: a picture of any size in tiles, with progress, and to be resumed."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from rich.console import Console
from rich.text import Text

from convoy.service.commands.terminal import console, plain
from convoy.service.errors import BadConfig, BadImage

if TYPE_CHECKING:
    from convoy.service.client.client import Client
    from convoy.service.client.large import LargeSegmentation, Progress
    from convoy.service.client.results import Model
    from convoy.service.client.tiling import Plan
    from convoy.service.rasters.journal import Journal
    from convoy.service.rasters.outputs import Files, Outputs
    from convoy.service.rasters.raster import Classes, Raster
    from convoy.service.rasters.samples import Stretch

TIFF = (".tif", ".tiff")
_HEADING: dict[str, Any] = {"rich_help_panel": "Large pictures"}
_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
_SETTLED = 3.0  # seconds after which a rate says something

TileSide = Annotated[
    int,
    typer.Option(
        "--tile", metavar="PIXELS", help="Side of the tiles that a large picture is sent in; 0: chosen.", **_HEADING
    ),
]
Halo = Annotated[
    int | None,
    typer.Option(
        "--halo",
        metavar="PIXELS",
        help="Pixels around the part of a tile that is used; by default what the network's mask depends on.",
        **_HEADING,
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with a mask that was interrupted: OUT.tif.partial.", **_HEADING)
]


class Wanted(NamedTuple):
    """What the command line asks for. `files` is None for a mask as PNG."""

    image: Path
    output: Path
    files: "Files | None"
    tile: int
    halo: int | None
    resume: bool
    plane: int
    stretch: "Stretch | None"
    format: Literal["raw", "png", "rle"]


def is_tiff(output: Path) -> bool:
    return output.suffix.lower() in TIFF


def segment(client: "Client", wanted: Wanted, model: str, deadline: float) -> None:
    """Segment a picture in tiles, write its files, and print what they contain."""
    from convoy.service.client import large, tiling
    from convoy.service.rasters.opening import opened
    from convoy.service.rasters.raster import Classes

    try:
        raster = opened(wanted.image, plane=wanted.plane, stretch=wanted.stretch)
    except OSError as error:
        raise BadImage(f"cannot read image {str(wanted.image)!r}: {error.strerror or error}") from None
    screen = console()
    with raster:
        chosen = large.chosen(client.models(deadline), model)
        plan = tiling.plan(raster.height, raster.width, chosen, wanted.tile, wanted.halo)
        for note in (*raster.notes, *([f"not exact: {plan.note}"] if plan.note else [])):
            print(plain(f"{wanted.image}: {note}"), file=sys.stderr)
        classes = Classes(chosen.labels, _colours(chosen))
        if wanted.files is None:
            _to_png(screen, client, wanted, raster, chosen, plan, classes)
        else:
            _to_tiff(screen, client, wanted, raster, chosen, plan, classes)


def _segmented(
    client: "Client", wanted: Wanted, raster: "Raster", chosen: "Model", journal: "Journal | None" = None
) -> "LargeSegmentation":
    """Segments what the journal does not have yet, or all of it into an array."""
    with _shown() as progress:
        return client.segment_large(
            raster,
            chosen.model,
            version=chosen.version,
            tile=wanted.tile,
            halo=wanted.halo,
            sink=journal,
            first_row=0 if journal is None else journal.rows,
            format=wanted.format,
            progress=progress,
        )


def _to_tiff(
    screen: Console,
    client: "Client",
    wanted: Wanted,
    raster: "Raster",
    chosen: "Model",
    plan: "Plan",
    classes: "Classes",
) -> None:
    from convoy.service.commands.raster_options import area_table
    from convoy.service.rasters.journal import Journal

    assert wanted.files is not None
    folder = wanted.output.with_name(f"{wanted.output.name}.partial")
    journal = Journal(folder, _about(wanted, raster, chosen, plan), raster.width, resume=wanted.resume)
    with _abandoned_unless_closed(wanted.files, raster, classes) as outputs:
        found = _segmented(client, wanted, raster, chosen, journal)
        journal.pour(outputs)
        outputs.close()
    journal.close()
    _summary(screen, wanted, raster, found)
    screen.print(area_table(outputs.areas()))
    _wrote(screen, outputs.written())


def _to_png(
    screen: Console,
    client: "Client",
    wanted: Wanted,
    raster: "Raster",
    chosen: "Model",
    plan: "Plan",
    classes: "Classes",
) -> None:
    import numpy as np
    import PIL.Image

    from convoy.service.commands.picture import mask_png, palette_of, png
    from convoy.service.commands.raster_options import area_table
    from convoy.service.images.overlay import overlay
    from convoy.service.rasters.areas import Areas
    from convoy.service.rasters.pillow import MAX_PIXELS

    if raster.height * raster.width > MAX_PIXELS:
        size = f"{raster.width}x{raster.height}"
        raise BadConfig(f"{str(wanted.image)!r} has {size} pixels, too many for a PNG mask: want -o FILE.tif")
    found = _segmented(client, wanted, raster, chosen)
    assert found.mask is not None
    areas = Areas(raster, classes)
    areas.write(found.mask)
    palette = palette_of(classes.colours, len(classes.names))
    pixels = raster.read(0, 0, raster.height, raster.width)
    overlaid = wanted.output.with_name(f"{wanted.output.stem}-overlay.png")
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    drawn = overlay(rgb, np.minimum(found.mask, len(palette) - 1), palette)
    try:
        wanted.output.write_bytes(mask_png(found.mask, palette))
        overlaid.write_bytes(png(PIL.Image.fromarray(drawn)))
    except OSError as error:
        raise BadConfig(f"cannot write {str(wanted.output)!r}: {error.strerror}") from None
    _summary(screen, wanted, raster, found)
    screen.print(area_table(areas.results()))
    _wrote(screen, [wanted.output, overlaid])


@contextmanager
def _abandoned_unless_closed(files: "Files", raster: "Raster", classes: "Classes") -> Iterator["Outputs"]:
    from convoy.service.rasters.outputs import Outputs

    try:
        outputs = Outputs(files, raster, classes)
    except OSError as error:
        raise BadConfig(f"cannot write {str(files.mask)!r}: {error.strerror or error}") from None
    try:
        yield outputs
    except OSError as error:
        outputs.abandon()
        raise BadConfig(f"cannot write {str(files.mask)!r}: {error.strerror or error}") from None
    except BaseException:
        outputs.abandon()
        raise


def _about(wanted: Wanted, raster: "Raster", chosen: "Model", plan: "Plan") -> dict[str, object]:
    """All that the rows of a mask depend on."""
    try:
        status = wanted.image.stat()
    except OSError as error:
        raise BadImage(f"cannot read image {str(wanted.image)!r}: {error.strerror}") from None
    return {
        "the picture's size": [raster.height, raster.width, raster.channels],
        "bytes of the picture": status.st_size,
        "the picture's time": status.st_mtime_ns,
        "--plane": wanted.plane,
        "--range": wanted.stretch,
        "model": chosen.model,
        "version": chosen.version,
        "tiles of": plan.size,
        "halo": plan.halo,
    }


def _colours(chosen: "Model") -> tuple[tuple[int, int, int], ...]:
    from convoy.service.metadata import default_palette

    return chosen.palette or tuple(default_palette(len(chosen.labels)))


@contextmanager
def _shown() -> Iterator[Callable[["Progress"], None]]:
    """Progress on standard error: a bar on a terminal, else a line from time to time."""
    screen = console(stderr=True)
    if screen.is_terminal:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        with Bar(BarColumn(), TextColumn("{task.description}"), console=screen, transient=True) as bar:
            task, begun = bar.add_task("", total=None), time.monotonic()
            yield lambda now: bar.update(
                task, total=now.total, completed=now.tiles, description=line(now, time.monotonic() - begun)
            )
    else:
        yield _Lines(time.monotonic()).add


class _Lines:
    """One writer: the stream's reader."""

    def __init__(self, begun: float) -> None:
        self._begun = self._last = begun

    def add(self, progress: "Progress") -> None:
        now = time.monotonic()
        if now - self._last >= _EVERY:
            self._last = now
            print(line(progress, now - self._begun), file=sys.stderr, flush=True)


def line(progress: "Progress", seconds: float) -> str:
    """The tiles that are done, their rate and the time left; `seconds` have passed since the start."""
    share = progress.tiles / progress.total
    words = f"{progress.tiles:,} of {progress.total:,} tiles, {share:.0%}"
    if seconds < _SETTLED or not progress.sent:
        return words
    left = (progress.total - progress.tiles) * seconds / progress.sent
    return f"{words}, {progress.sent / seconds:.1f} tiles/s, {duration(left)} left"


def duration(seconds: float) -> str:
    """A time in the two largest of hours, minutes and seconds."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _summary(screen: Console, wanted: Wanted, raster: "Raster", found: "LargeSegmentation") -> None:
    size = f"{raster.width}×{raster.height}"
    title = f"  {plain(found.model)} version {found.version} · {size}"
    screen.print(Text.assemble((plain(str(wanted.image)), "bold"), (title, "dim")), soft_wrap=True)
    height, width = found.tile
    how = f"{found.tiles:,} tiles of {width}×{height}, halo {found.halo}" if found.tiles > 1 else "one tile"
    exact = "the mask of the whole picture" if found.exact else "not the mask of the whole picture"
    screen.print(f"{exact}, {how}", soft_wrap=True)


def _wrote(screen: Console, files: list[Path]) -> None:
    screen.print(Text.assemble("wrote ", ", ".join(plain(str(path)) for path in files)), soft_wrap=True)
