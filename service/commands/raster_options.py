"""Options of commands that read large pictures and write their masks, and the table of areas."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoy.service.errors import BadConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from convoy.service.rasters.areas import ClassArea
    from convoy.service.rasters.outputs import Files
    from convoy.service.rasters.samples import Stretch

_READING: dict[str, Any] = {"rich_help_panel": "Large pictures"}

Plane = Annotated[
    int,
    typer.Option("--plane", min=0, metavar="N", help="Which picture of a TIFF file with several planes.", **_READING),
]
Range = Annotated[
    str,
    typer.Option(
        "--range",
        metavar="LOW:HIGH",
        help="Sample values of a TIFF file that become black and white; by default the full range of 8 or 16 bits.",
        **_READING,
    ),
]
Cog = Annotated[
    bool, typer.Option("--cog", help="Write the mask as a Cloud Optimized GeoTIFF, with overviews.", **_READING)
]
PolygonFile = Annotated[
    Path | None,
    typer.Option(
        "--polygons", metavar="FILE", help="Write the areas as polygons: .geojson (WGS 84), or .gpkg.", **_READING
    ),
]
QuPath = Annotated[bool, typer.Option("--qupath", help="Write the GeoJSON in pixels, as QuPath reads it.", **_READING)]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option("--leave-out", metavar="CLASS", help="A class without polygons; repeatable.", **_READING),
]
Simplify = Annotated[
    float,
    typer.Option(
        "--simplify",
        metavar="PIXELS",
        help="Remove vertices of polygons that matter less than this; neighbours keep their common borders.",
        **_READING,
    ),
]
AreaFile = Annotated[
    Path | None,
    typer.Option("--areas", metavar="FILE", help="Write the area of each class, as .csv or .json.", **_READING),
]
OverviewFile = Annotated[
    Path | None,
    typer.Option("--overview", metavar="FILE.png", help="Draw the mask, with at most 2048 pixels a side.", **_READING),
]


def stretch_of(text: str) -> "Stretch | None":
    """What `--range` says; None if it was not given. Raises BadConfig."""
    from convoy.service.rasters.samples import Stretch

    if not text:
        return None
    low, _, high = text.partition(":")
    try:
        stretch = Stretch(float(low), float(high))
    except ValueError:
        stretch = Stretch(0, 0)
    if not stretch.low < stretch.high < float("inf") or stretch.low == float("-inf"):
        raise BadConfig(f"--range {text!r}, want LOW:HIGH such as 0:3000")
    return stretch


def files_of(
    mask: Path,
    *,
    cog: bool,
    polygons: Path | None,
    qupath: bool,
    leave_out: "Sequence[str] | None",
    simplify: float,
    areas: Path | None,
    overview: Path | None,
) -> "Files":
    """What the options say."""
    from convoy.service.rasters.outputs import Files

    return Files(mask, cog, polygons, qupath, tuple(leave_out or ()), simplify, areas, overview)


def area_table(areas: "Sequence[ClassArea]") -> "Table":
    """The classes in a mask, largest first, with their pixels, shares and areas on the ground."""
    from rich.table import Table

    from convoy.service.commands.terminal import plain

    known = any(each.area is not None for each in areas)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("class", max_width=24, no_wrap=True, overflow="ellipsis")
    for name in ("pixels", "share", *(("area",) if known else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for each in sorted(areas, key=lambda each: -each.pixels):
        if each.pixels:
            ground = [_in_words(each.area, each.unit)] if known and each.area is not None else []
            table.add_row(plain(each.name), f"{each.pixels:,}", f"{each.share:.1%}", *ground)
    return table


def _in_words(area: float, unit: str) -> str:
    if unit == "m2":
        return f"{area / 1e6:,.3f} km²" if area >= 1e6 else f"{area:,.1f} m²"
    return f"{area / 1e6:,.3f} mm²" if area >= 1e6 else f"{area:,.1f} µm²"
