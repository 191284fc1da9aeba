"""Output of the commands: the console, tables, bars, errors, stage timings, JSON."""

import sys
import textwrap
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convoy.service.errors import ConvoyError

if TYPE_CHECKING:
    from convoy.service.client.results import Timings

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def console(*, stderr: bool = False) -> Console:
    """Standard output, or error, without markup: file names and labels may contain text that rich would interpret."""
    return Console(markup=False, highlight=False, emoji=False, stderr=stderr)


def shows_colours(console: Console) -> bool:
    """Whether it can show a picture in colour: a terminal with at least 256 colours, and no NO_COLOR."""
    return console.is_terminal and not console.no_color and console.color_system in ("truecolor", "256")


def plain(text: str) -> str:
    """`text` without characters that would move a terminal's cursor or change its colours."""
    return "".join(character if character.isprintable() else "?" for character in text)


def print_error(out: Console, name: str, error: ConvoyError) -> None:
    """Print why an image was not answered, in one line."""
    out.print(Text.assemble((plain(name), "bold"), "  ", (plain(error.message), "red")), soft_wrap=True)


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_json_line(value: Any) -> None:
    """One value on a line of its own, at once: the reader may be waiting for it."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def numbers_table(first: str, *numbers: str) -> Table:
    """A table of a column of names, headed `first`, and right-aligned columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def bar(share: float, columns: int) -> str:
    """A horizontal bar, `share` (0..1) of `columns` long, in steps of an eighth of a column."""
    full, eighths = divmod(round(min(max(share, 0.0), 1.0) * columns * 8), 8)
    return ("█" * full + _EIGHTHS[eighths].strip()).ljust(columns)


def milliseconds(seconds: float) -> str:
    """A duration in milliseconds with about three digits, without its unit."""
    value = seconds * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def stage_line(timings: "Timings", columns: int) -> Text:
    """The time of one image per stage, broken between stages at `columns`.

    Stages that did not run are omitted.
    """
    from convoy.service.client.results import STAGES

    stages = [(stage, getattr(timings, stage)) for stage in STAGES]
    parts = [f"{stage} {milliseconds(seconds)}" for stage, seconds in stages if seconds > 0]
    parts.append(f"total {milliseconds(timings.total)} ms, batch of {timings.batch_size}")
    # textwrap does not break at the no-break spaces within a part.
    joined = " · ".join(part.replace(" ", "\xa0") for part in parts)
    return Text(textwrap.fill(joined, columns).replace("\xa0", " "), style="dim")
