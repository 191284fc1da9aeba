"""`convoy report` and `convoy compare`: images, tables and pages of one run or of several."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from convoy.models.commands.options import check_data, print_json, print_table
from convoy.models.report.runs import read, read_all
from convoy.service.errors import BadConfig

if TYPE_CHECKING:
    from convoy.models.report.compare import Comparison


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of `convoy train`.")],
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Where its data is now.  [default: unchanged]")
    ] = None,
) -> int:
    """Write curves, confusion matrix, class table and worst examples of a run into its folder, and a page that shows
    them. All is measured on the validation split; `convoy evaluate` measures the held-out one."""
    read(run)
    check_data(data)

    from convoy.models.report.write import PAGE, write

    complete = write(run, data)
    print(f"page  {run / PAGE}")
    return 0 if complete else 1


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs of `convoy train`.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="The page; the curves are written beside it as PNG.",
        ),
    ] = Path("comparison.html"),
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Also evaluate on the held-out split; use it after all decisions.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="With --held-out, where all data is now.  [default: unchanged]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and write no files.")] = False,
) -> None:
    """Compare runs: costs and scores of the networks. Scores are those of the validation split."""
    if output.suffix != ".html" or not output.parent.is_dir():
        raise BadConfig(f"cannot write {str(output)!r}, want a name that ends in .html, in an existing folder")
    if data is not None and not held_out:
        raise BadConfig(f"--data {data} requires --held-out, nothing else is measured")
    check_data(data)
    read_all(runs)

    from convoy.models.report.compare import compare as read
    from convoy.models.report.compare import save

    comparison = read(runs, held_out, data)
    if json:
        content = {"runs": [asdict(row) for row in comparison.runs], "notes": comparison.notes}
        print_json(content)
        return
    _print(comparison)
    picture = save(comparison, output)
    for note in comparison.notes:
        print(f"note: {note}")
    print(f"page     {output}")
    if picture is not None:
        print(f"picture  {picture}")


def _print(comparison: "Comparison") -> None:
    from convoy.models.report.compare import cells, header

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, name in enumerate(header(comparison)):
        table.add_column(name, justify="left" if place < 3 else "right", no_wrap=True)
    for row in comparison.runs:
        table.add_row(*cells(comparison, row))
    print_table(table)
