"""`convoy segment`: the class of every pixel of an image, as files and on the terminal."""

import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convoy.service.commands import large
from convoy.service.commands.large import Halo, Resume, TileSide
from convoy.service.commands.options import (
    DEADLINE,
    CaFile,
    CertificateFile,
    Deadline,
    KeyFile,
    ModelName,
    Server,
    TokenFile,
    UseTls,
    check_png,
    credentials,
    naming_the_nearest,
)
from convoy.service.commands.raster_options import (
    AreaFile,
    Cog,
    LeaveOut,
    OverviewFile,
    Plane,
    PolygonFile,
    QuPath,
    Range,
    Simplify,
    files_of,
    stretch_of,
)
from convoy.service.commands.terminal import bar, console, plain, print_error, shows_colours, stage_line
from convoy.service.config import DEFAULT_TARGET
from convoy.service.errors import BadConfig, BadImage

if TYPE_CHECKING:
    from convoy.service.client.results import Model, Segmentation
    from convoy.service.commands.picture import Pixels

_TABLE_COLUMNS = 46
_PICTURE_LINES = 24
_SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT.png",
            help="File of the mask; the overlay is OUT-overlay.png. OUT.tif: for a picture of any size, no overlay.",
        ),
    ],
    model: ModelName = "",
    format: Annotated[  # noqa: A002  the option's name
        Literal["raw", "png", "rle"],
        typer.Option("--format", help="Format of the mask on the wire; the files are the same."),
    ] = "png",
    confidence: Annotated[
        Path | None,
        typer.Option("--confidence", metavar="FILE.png", help="Write the confidence of each pixel as a grey image."),
    ] = None,
    tile: TileSide = 0,
    halo: Halo = None,
    resume: Resume = False,
    plane: Plane = 0,
    sample_range: Range = "",
    cog: Cog = False,
    polygons: PolygonFile = None,
    qupath: QuPath = False,
    leave_out: LeaveOut = None,
    simplify: Simplify = 0.0,
    areas: AreaFile = None,
    overview: OverviewFile = None,
    server: Server = DEFAULT_TARGET,
    tls: UseTls = False,
    ca: CaFile = "",
    certificate: CertificateFile = "",
    key: KeyFile = "",
    token_file: TokenFile = "",
    deadline: Deadline = DEADLINE,
) -> None:
    """Segment an image: writes the mask and its overlay, and lists the classes in it.

    A picture of any size is sent in tiles if OUT is a TIFF file, by --tile, or if it is beyond the server's limits.
    """
    of_tiff = {
        "--resume": resume,
        "--cog": cog,
        "--polygons": polygons,
        "--qupath": qupath,
        "--leave-out": leave_out,
        "--simplify": simplify,
        "--areas": areas,
        "--overview": overview,
    }
    _check_output(output, of_tiff)
    check_png("--confidence", confidence)
    files_wanted = None
    if large.is_tiff(output):
        files_wanted = files_of(
            output,
            cog=cog,
            polygons=polygons,
            qupath=qupath,
            leave_out=leave_out,
            simplify=simplify,
            areas=areas,
            overview=overview,
        )
    wanted = large.Wanted(image, output, files_wanted, tile, halo, resume, plane, stretch_of(sample_range), format)
    in_tiles = files_wanted is not None or any(each not in (0, None) for each in (tile, halo, plane, wanted.stretch))
    overlaid = output.with_name(f"{output.stem}-overlay.png")
    if in_tiles and confidence is not None:
        raise BadConfig("--confidence is of a picture that is sent whole, want -o FILE.png and no --tile")
    written = {"--polygons": polygons, "--areas": areas, "--overview": overview} if files_wanted is not None else {}
    _check_different(
        {"IMAGE": image, "--output": output, "its overlay": overlaid, "--confidence": confidence, **written}
    )

    import PIL.Image

    from convoy.service.client.client import Client
    from convoy.service.client.large import TOO_LARGE
    from convoy.service.client.requests import read_image
    from convoy.service.client.results import ServerError
    from convoy.service.commands.picture import mask_png, palette_of, png, read_pixels
    from convoy.service.images.overlay import overlay

    screen = console()
    who = credentials(tls, ca, certificate, key, token_file)
    if in_tiles:
        with naming_the_nearest(model, server, who, deadline), Client(server, credentials=who) as client:
            large.segment(client, wanted, model, deadline)
        return
    data = read_image(image)
    with (
        naming_the_nearest(model, server, who, deadline),
        Client(server, retry=False, balance=False, credentials=who) as client,
    ):
        try:
            answer = client.segment(
                data, model, format=format, with_confidence=confidence is not None, deadline=deadline
            )
        except ServerError as error:
            if any(words in error.message for words in TOO_LARGE) and confidence is None:
                print(f"{plain(error.message)}: sent in tiles", file=sys.stderr)
                large.segment(client, wanted, model, deadline)
                return
            if error.reason != BadImage.reason:
                raise
            print_error(screen, str(image), error)
            raise typer.Exit(1) from None
        served = client.models(deadline)
    palette = palette_of(_colours(served, answer), len(answer.class_pixels))
    pixels = read_pixels(data)
    if pixels is None or pixels.shape[:2] != answer.mask.shape:
        raise BadImage(f"{str(image)!r} cannot be drawn under its mask of {_size(answer.mask)}")
    blended = overlay(pixels, answer.mask, palette)
    files = {output: mask_png(answer.mask, palette), overlaid: png(PIL.Image.fromarray(blended))}
    if confidence is not None and answer.confidence is not None:
        files[confidence] = png(PIL.Image.fromarray(answer.confidence))
    _write(files)
    show(screen, str(image), answer, blended, palette)
    screen.print(Text.assemble("wrote ", ", ".join(plain(str(path)) for path in files)), soft_wrap=True)


def show(screen: Console, name: str, answer: "Segmentation", blended: "Pixels", palette: "Pixels") -> None:
    """Print a segmented image: the picture under its mask, its classes, and the time per stage.

    blended  (H, W, 3) RGB, the mask's colours over the image
    """
    from convoy.service.commands.picture import half_blocks, symbols

    title = f"  {plain(answer.model)} version {answer.version} · {_size(answer.mask)}"
    screen.print(Text.assemble((plain(name), "bold"), (title, "dim")), soft_wrap=True)
    colours = shows_colours(screen)
    marks = _marks(answer)
    columns = max(20, min(64, screen.width - _TABLE_COLUMNS - 2))
    picture = (
        half_blocks(blended, columns, _PICTURE_LINES)
        if colours
        else symbols(answer.mask, marks, columns, _PICTURE_LINES)
    )
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(picture, _classes(answer, palette if colours else None, marks))
    screen.print(grid)
    screen.print(stage_line(answer.timings, screen.width))


def _check_output(output: Path, of_tiff: Mapping[str, object]) -> None:
    """Raises BadConfig for a name of no known format, and for options that need a TIFF file."""
    if large.is_tiff(output):
        return
    if output.suffix.lower() != ".png":
        raise BadConfig(f"--output {str(output)!r}, want a name that ends in .png, or in .tif for any size")
    for option, given in of_tiff.items():
        if given:
            raise BadConfig(f"{option} wants a mask as TIFF: -o {str(output.with_suffix('.tif'))!r}")


def _check_different(files: Mapping[str, Path | None]) -> None:
    """Raises BadConfig if one of the files would overwrite another."""
    named = {name: (path, os.path.realpath(path)) for name, path in files.items() if path is not None}
    for (one, (path, place)), (other, (_, same)) in itertools.combinations(named.items(), 2):
        if place == same:
            raise BadConfig(f"{one} and {other} are both {str(path)!r}, want different files")


def _colours(served: "list[Model]", answer: "Segmentation") -> tuple[tuple[int, int, int], ...]:
    return next((one.palette for one in served if (one.model, one.version) == (answer.model, answer.version)), ())


def _classes(answer: "Segmentation", palette: "Pixels | None", marks: Mapping[int, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("class", max_width=16, no_wrap=True, overflow="ellipsis")
    table.add_column("pixels", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    total = answer.mask.size
    for entry in sorted(answer.class_pixels, key=lambda entry: -entry.pixels):
        if entry.pixels:
            share = entry.pixels / total
            swatch = Text("  ", f"on #{palette[entry.index].tobytes().hex()}") if palette is not None else Text("")
            mark = swatch if palette is not None else Text(marks[entry.index])
            table.add_row(mark, Text(plain(entry.name)), f"{entry.pixels:,}", f"{share:.1%}", bar(share, 8))
    return table


def _marks(answer: "Segmentation") -> dict[int, str]:
    # The largest class is the background; the others are marked by letters of their names.
    ranked = sorted(answer.class_pixels, key=lambda entry: -entry.pixels)
    marks = {ranked[0].index: "·"}
    for entry in ranked[1:]:
        free = [mark for mark in (*entry.name, *_SYMBOLS) if mark in _SYMBOLS and mark not in marks.values()]
        marks[entry.index] = free[0] if free else "?"
    return marks


def _write(files: Mapping[Path, bytes]) -> None:
    for path, data in files.items():
        try:
            path.write_bytes(data)
        except OSError as error:
            raise BadConfig(f"cannot write {str(path)!r}: {error.strerror}") from None


def _size(mask: "Pixels") -> str:
    return f"{mask.shape[1]}×{mask.shape[0]}"
