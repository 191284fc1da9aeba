"""How the client commands write on a terminal: the console, bars, stage timings."""

import textwrap
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from convoy.service.client.results import Timings

STAGES = ("receive", "decode", "preprocess", "queue", "gather", "run", "scatter", "postprocess")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def console() -> Console:
    """Standard output. Text is printed as it is: names of files and labels may hold what rich takes for markup."""
    return Console(markup=False, highlight=False, emoji=False)


def shows_colours(console: Console) -> bool:
    """Whether a picture in colours can be seen on it: a terminal with 256 colours or more, and no NO_COLOR."""
    return console.is_terminal and not console.no_color and console.color_system in ("truecolor", "256")


def plain(text: str) -> str:
    """`text` without the characters that would move a terminal's cursor or change its colours."""
    return "".join(character if character.isprintable() else "?" for character in text)


def bar(share: float, columns: int) -> str:
    """A horizontal bar, `share` (0..1) of `columns` long, to an eighth of a column."""
    full, eighths = divmod(round(min(max(share, 0.0), 1.0) * columns * 8), 8)
    return ("█" * full + _EIGHTHS[eighths].strip()).ljust(columns)


def milliseconds(seconds: float) -> str:
    """A duration in milliseconds with about three digits, without its unit."""
    value = seconds * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def stage_line(timings: "Timings", columns: int) -> Text:
    """Where one image's time went, broken between stages where it is longer than `columns`.

    Stages that did not take place are left out.
    """
    stages = [(stage, getattr(timings, stage)) for stage in STAGES]
    parts = [f"{stage} {milliseconds(seconds)}" for stage, seconds in stages if seconds > 0]
    parts.append(f"total {milliseconds(timings.total)} ms, batch of {timings.batch_size}")
    # textwrap does not break at the no-break spaces that stand within a part.
    joined = " · ".join(part.replace(" ", "\xa0") for part in parts)
    return Text(textwrap.fill(joined, columns).replace("\xa0", " "), style="dim")
