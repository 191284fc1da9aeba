"""`convoy data`: checks and summarises a data set before training."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from convoy.models.commands.options import MaskColours, MaskValues, check_picture, print_json, print_table, with_masks
from convoy.models.data.formats.listing import SPLITS
from convoy.models.data.registry import DATA, display_name, resolve

if TYPE_CHECKING:
    from convoy.models.data.check import Copies, Sizes, Summary

data = typer.Typer(add_completion=False, rich_markup_mode=None)


@data.callback()
def about() -> None:
    """Inspect data sets."""


@data.command()
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
    return 1 if summary.wrong else 0


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
