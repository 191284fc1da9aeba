"""`convoy report`: regenerates the images, tables and page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from convoy.models.commands.options import check_data
from convoy.models.report.runs import read


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of `convoy train`.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Where its data are now.  [default: where they were]"),
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
