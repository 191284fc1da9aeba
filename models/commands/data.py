"""`convoy data`: checks and summarises a data set before training, and cuts one from a large raster."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from convoy.models.commands.options import (
    MaskColours,
    MaskValues,
    check_picture,
    mask_coding,
    print_json,
    print_table,
    with_masks,
)
from convoy.models.data.formats.listing import SPLITS
from convoy.models.data.registry import DATA, display_name, resolve
from convoy.service.commands.options import Group, Sections
from convoy.service.commands.raster_options import Plane, Range, stretch_of
from convoy.service.errors import BadConfig

if TYPE_CHECKING:
    from convoy.models.data.check import Copies, Sizes, Summary
    from convoy.models.data.dataset import DataSet

data = typer.Typer(add_completion=False, rich_markup_mode=None, cls=Group)


@data.callback()
def about() -> None:
    """Inspect data sets, and make them from large rasters."""


@data.command(cls=Sections, short_help="Report classes, sizes, duplicates and unreadable files")
def check(
    source: Annotated[str, typer.Argument(metavar="DATA", help=f"A folder, a CSV file, or one of: {', '.join(DATA)}.")],
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Draw training pictures with their classes, or with their masks as overlays."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    mask_values: MaskValues = None,
    mask_colours: MaskColours = None,
) -> int:
    """Report classes, sizes and balance of a data set, unreadable files, and duplicate pictures.

    The exit code is 1 if a file cannot be used for training or a picture is in several splits, else 0.
    """
    check_picture(sheet)
    name = resolve(with_masks(source, mask_values, mask_colours))

    from convoy.models.data.check import check as look_into

    loaded, summary = look_into(name)
    if json:
        print_json(summary)
    else:
        _print(summary)
    if sheet is not None:
        from convoy.models.data.contact_sheet import save_samples

        count = save_samples(loaded, sheet)
        total = summary.splits["train"].count
        print(f"sheet     {count} of {total} training pictures: {sheet}", file=sys.stderr if json else sys.stdout)
    if not json:
        masks = {"--mask-values": mask_values, "--mask-colours": mask_colours}
        given = [word for option, value in masks.items() if value is not None for word in (option, value)]
        _print_next([source, *given], loaded, summary)
    return 1 if summary.wrong else 0


@data.command(cls=Sections, short_help="Cut a large raster and its mask into pictures for training")
def tile(
    raster: Annotated[Path, typer.Argument(metavar="RASTER", help="A picture of any size, such as a GeoTIFF file.")],
    mask: Annotated[
        Path | None, typer.Argument(metavar="[MASK]", help="Its mask, of the same size; without it, pictures alone.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="A new folder for the tiles.")],
    size: Annotated[int, typer.Option(min=8, max=8192, metavar="N", help="Side of a tile, in pixels.")] = 512,
    stride: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="From one tile to the next; by default the size.")
    ] = None,
    min_share: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Leave out tiles with fewer pixels that have data and a class."
        ),
    ] = 0.5,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Names of the classes, one per line.")] = None,
    mask_values: MaskValues = None,
    mask_colours: MaskColours = None,
    plane: Plane = 0,
    values: Range = "",
) -> None:
    """Cut a raster of any size, and its mask, into a data set for training.

    Blocks of tiles are held out as a whole, and tiles that would overlap both kinds of blocks are left out.
    """
    stretch = stretch_of(values)
    coding = mask_coding(mask_values, mask_colours)
    for option, given in {"--labels": labels, "--mask-values": mask_values, "--mask-colours": mask_colours}.items():
        if mask is None and given is not None:
            raise BadConfig(f"{option} describes a mask, want RASTER MASK")
    if not output.parent.is_dir():
        raise BadConfig(f"cannot write {str(output)!r}: there is no folder {str(output.parent)!r}")

    from convoy.models.data import tiles

    tiling = tiles.Tiling(size, min(stride or size, size), min_share)
    cut = tiles.cut(raster, mask, output, tiling, labels=labels, coding=coding, plane=plane, stretch=stretch)
    splits = ", ".join(f"{count} {split}" for split, count in cut.splits.items())
    print(f"tiles     {cut.tiles} of {size}x{size}{': ' if splits else ''}{splits}")
    print(f"left out  {cut.empty} with too little data, {cut.across} across the borders of held-out blocks")
    if mask is not None:
        print(f"next      {shlex.join(['convoy', 'data', 'check', str(output)])}")


def _print_next(given: list[str], loaded: "DataSet", summary: "Summary") -> None:
    from convoy.models.training import first_run

    run = first_run.suggested(summary)
    print(f"next      {shlex.join(['convoy', 'train', run.architecture, '--data', *given, *run.options])}")
    if summary.read_as is not None:
        print(f"          about {first_run.in_words(first_run.estimated_seconds(run, loaded))} on this machine")


def _print(summary: "Summary") -> None:
    kind = "tensors" if summary.read_as is None else "pictures"
    print(f"{display_name(summary.name)}: {summary.task}, {len(summary.labels)} classes, {summary.count} {kind}")
    print_table(_classes(summary))
    for line in _lines(summary):
        print(line)


def _classes(summary: "Summary") -> Table:
    masks = summary.task == "segmentation"
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("pictures with it" if masks else "class")
    for split in SPLITS:
        table.add_column(split, justify="right")
    if masks:
        table.add_column("of the training pixels", justify="right")
    for number, label in enumerate(summary.labels):
        counts = [str(summary.splits[split].classes[number]) for split in SPLITS]
        shares = summary.splits["train"].pixel_shares
        table.add_row(label, *counts, *([] if shares is None else [f"{shares[number]:.2%}"]))
    table.add_row("all", *(str(summary.splits[split].count) for split in SPLITS), style="bold")
    return table


def _lines(summary: "Summary") -> Iterator[str]:
    train = summary.splits["train"]
    if summary.balance is None:
        amounts = train.classes if train.pixel_shares is None else train.pixel_shares
        missing = ", ".join(label for label, amount in zip(summary.labels, amounts, strict=True) if not amount)
        yield f"balance   no training pictures of: {missing}"
    else:
        yield f"balance   the largest training class is {summary.balance:.3g} times the smallest"
    if train.ignored_share is not None:
        yield f"ignored   {train.ignored_share:.2%} of the training pixels have no class"
    for split in SPLITS:
        yield f"sizes     {split}: {_sizes(summary.splits[split].sizes)}"
    if summary.grey is not None:
        read_as = "colour" if summary.read_as == "RGB" else "grey"
        yield f"colour    {summary.count - summary.grey} in colour, {summary.grey} grey; read as {read_as}"
    yield f"left out  {len(summary.unusable)} cannot be used for training"
    yield from (f"  {each.reason}" for each in summary.unusable)
    if summary.unused:
        kinds = ", ".join(f"{count} {ending}" for ending, count in summary.unused.items())
        yield f"not used  other files in the folder: {kinds}"
    across = [copies for copies in summary.copies if copies.across]
    within = [copies for copies in summary.copies if not copies.across]
    yield f"twice     in several splits: {len(across)}; within one split: {len(within)}"
    yield from (f"  {_copies_text(copies)}" for copies in (*across, *within))


def _sizes(sizes: "Sizes") -> str:
    from convoy.models.analysis.operators import by

    if sizes.different == 1:
        return f"all {by(sizes.commonest)}"
    return (
        f"{by(sizes.smallest)} to {by(sizes.largest)}, median {by(sizes.median)}; {sizes.different} different, "
        f"the commonest {by(sizes.commonest)} ({sizes.commonest_count})"
    )


def _copies_text(copies: "Copies") -> str:
    names = " = ".join(f"{split} {name}" for split, name in copies.pictures)
    return f"{names}{', with different classes' if copies.conflict else ''}"
