"""`convoy top`: what a running server does now, drawn from its metrics."""

import contextlib
import itertools
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from convoy.service.commands.options import (
    CaFile,
    CertificateFile,
    Json,
    KeyFile,
    TokenFile,
    UseTls,
    credentials,
    duration,
)
from convoy.service.commands.terminal import console, milliseconds, plain, print_json_line

if TYPE_CHECKING:
    from convoy.service.monitor.figures import Figures, Refusals, Spread, Version
    from convoy.service.monitor.scrape import Scraper

_LARGEST = 10.0  # seconds: the last bound of the histograms; what took longer is shown as more than that
_NARROW, _PAIR = 72, 18  # columns of the narrowest terminal with full tables; of a model in the table of stages
_STATE_STYLE = {"ready": "green", "not ready": "yellow", "failed": "red", "quarantined": "red"}


def top(
    *,
    metrics: Annotated[
        str, typer.Option("--metrics", metavar="HOST:PORT", help="Address of the server's metrics.")
    ] = "127.0.0.1:8002",
    interval: Annotated[
        float, typer.Option("--interval", metavar="TIME", parser=duration(0.5, 3600), help="Time between updates.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print the figures of one interval and exit.")] = False,
    json: Json = False,
    tls: UseTls = False,
    ca: CaFile = "",
    certificate: CertificateFile = "",
    key: KeyFile = "",
    token_file: TokenFile = "",
) -> None:
    """Watch a running server: models, requests a second, latency by stage, batch sizes, queues and refusals.

    It reads the server's metrics. On a terminal it redraws one screen until q or Ctrl-C; elsewhere it prints a block
    per interval. Rates and percentiles are those of the last interval. If the server ends, it waits for the next one.
    """
    from convoy.service.address import address
    from convoy.service.monitor.scrape import Scraper

    scraper = Scraper(address(metrics, 8002), credentials(tls, ca, certificate, key, token_file))
    out = console()
    looks = looking(scraper, interval, forgiving=not once)
    if json:
        for figures, problem in looks:
            if figures is not None and not problem:
                print_json_line({"metrics": scraper.address, **_fields(figures)})
                if once:
                    return
            elif problem:
                print_json_line({"metrics": scraper.address, "error": problem})
    elif once:
        figures = next(figures for figures, _ in looks if figures is not None)
        out.print(screen(figures, "", scraper.address, out.width))
    elif out.is_terminal and not out.is_dumb_terminal:
        _redraw(out, scraper, interval)
    else:
        for figures, problem in looks:
            if figures is not None or problem:
                out.print(screen(None if problem else figures, problem, scraper.address, out.width))
                out.print()


def looking(
    scraper: "Scraper",
    interval: float,
    *,
    forgiving: bool,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
) -> "Iterator[tuple[Figures | None, str]]":
    """The figures of each interval, for ever, and what keeps them from being newer; None until there are two scrapes.

    If `forgiving`, a server that does not answer is a problem to report; else, and where the first answer has no
    metrics, it raises NoAnswer, NoMetrics.
    """
    from convoy.service.monitor.figures import figures
    from convoy.service.monitor.scrape import NoAnswer, NoMetrics

    before, shown, answered = None, None, False
    for due in itertools.count(clock(), interval):
        wait(max(0.0, due - clock()))
        problem = ""
        try:
            after = scraper.scrape()
        except (NoAnswer, NoMetrics) as error:
            if not forgiving or (isinstance(error, NoMetrics) and not answered):
                raise
            # Rates over the gap would say nothing of either server.
            before, problem = None, error.message
        else:
            answered = True
            if before is not None:
                shown = figures(before, after)
            before = after
        yield shown, problem


def screen(figures: "Figures | None", problem: str, address: str, columns: int, lines: int = 10_000) -> RenderableType:
    """Everything for one screen of this size, most important first. `problem`: why the figures are not of now."""
    head = Text.assemble(("convoy top", "bold"), f"  {plain(address)}")
    if problem:
        head = Text.assemble(head, "\n", (f"{plain(problem)}; still asking", "bold red"))
    if figures is None:
        return head if problem else Text.assemble(head, "  measuring ...")
    totals = _totals(figures)
    parts: list[RenderableType] = [head, totals, "", _versions(figures.versions, columns)]
    busy = sorted((one for one in figures.versions if one.latency), key=lambda one: -one.requests)
    if busy:
        parts += ["", _stages(busy, columns)]
    if figures.refusals:
        # The lines that are left, and at least three: reasons with the highest rates come first.
        used = 9 + len(figures.versions) + (12 if busy else 0)
        parts += ["", _refusals(figures.refusals, max(3, lines - used))]
    return Group(*parts)


def _redraw(out: Console, scraper: "Scraper", interval: float) -> None:
    """One screen in place of the terminal's, until q or Ctrl-C."""
    from rich.live import Live

    # Otherwise the terminal would be left with this screen, and without an echo.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as wait,
        Live(console=out, screen=True, auto_refresh=False) as live,
    ):
        live.update(screen(None, "", scraper.address, out.width), refresh=True)
        for figures, problem in looking(scraper, interval, forgiving=True, wait=wait):
            live.update(screen(figures, problem, scraper.address, out.width, out.height), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], object]]:
    """Yields what waits for some seconds; it raises KeyboardInterrupt if q is typed."""
    if not sys.stdin.isatty():
        yield time.sleep
        return

    def wait(seconds: float) -> None:
        until = time.monotonic() + seconds
        while select.select([sys.stdin], [], [], max(0.0, until - time.monotonic()))[0]:
            if os.read(sys.stdin.fileno(), 1) in (b"q", b"Q", b""):
                raise KeyboardInterrupt

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield wait
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _totals(figures: "Figures") -> Text:
    """Figures of the server as a whole, one line where they fit."""
    parts = [
        f"{_rate(figures.requests)} requests/s",
        f"{_rate(figures.images)} images/s",
        f"{figures.in_flight:,.0f} in flight",
        f"{figures.queued:,.0f} queued",
    ]
    text = Text(" · ".join(parts))
    for count, name in ((figures.failed, "failed"), (figures.missed, "too late"), (figures.cancelled, "cancelled")):
        if count:
            text.append(f" · {_rate(count)} {name}/s", "red" if name != "cancelled" else "")
    text.append("\nrestarts of ")
    text.append_text(_counts(figures.restarts, "red"))
    if any(figures.recycled.values()):
        text.append(" · recycled ")
        text.append_text(_counts(figures.recycled, "yellow"))
    return text


def _counts(counts: Mapping[str, float], style: str) -> Text:
    named = [Text(f"{plain(name)}: {count:,.0f}", style if count else "") for name, count in counts.items()]
    return Text(", ").join(named)


def _versions(versions: "Sequence[Version]", columns: int) -> Table:
    wide = columns >= _NARROW
    table = _table(wide)
    table.add_column("model")  # alone it may shrink
    table.add_column("state", no_wrap=True)
    table.add_column("provider" if wide else "on", no_wrap=True)
    for name in ("requests/s", "p50 ms", "p99 ms", "batch", "queue"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in versions:
        table.add_row(
            Text.assemble((plain(one.model), "bold"), f" {plain(one.version)}", no_wrap=True, overflow="ellipsis"),
            Text(one.state, _STATE_STYLE.get(one.state, "yellow")),
            Text(plain(one.provider)),
            _rate(one.requests) if one.requests else "",
            *_pair(one.latency),
            f"{one.mean_batch:.1f}" if one.mean_batch is not None else "",
            f"{one.queued:,.0f}" if one.queued is not None else "",
        )
    return table


def _stages(busy: "Sequence[Version]", columns: int) -> Table:
    """Median and 99th percentile of each stage, side by side for as many models as fit, the busiest first."""
    from convoy.service.monitor.figures import STAGES

    shown = busy[: max(1, (columns - 14) // _PAIR)]
    table = _table(wide=True)
    table.add_column(f"p50, p99 ms{f' (+{len(busy) - len(shown)})' if len(busy) > len(shown) else ''}", no_wrap=True)
    for one in shown:
        version = f" {plain(one.version)}"
        name = plain(one.model)
        room = _PAIR - 3 - len(version)
        name = name if len(name) <= room else name[: room - 1] + "…"
        table.add_column(f"{name}{version}", justify="right", no_wrap=True, min_width=_PAIR - 2)
    for stage in STAGES:
        table.add_row(stage, *(_both(one.stages.get(stage)) for one in shown))
    table.add_row("whole request", *(_both(one.latency) for one in shown))
    sizes = (f"{one.batch.p50:.0f} {one.batch.p99:>7.0f}" if one.batch is not None else "" for one in shown)
    table.add_row("images a batch", *sizes)
    return table


def _refusals(refusals: "Sequence[Refusals]", most: int) -> Table:
    table = _table(wide=True)
    table.add_column("refused", no_wrap=True, overflow="ellipsis")
    table.add_column("model", no_wrap=True, overflow="ellipsis")
    table.add_column("now/s", justify="right", no_wrap=True)
    table.add_column("in all", justify="right", no_wrap=True)
    for one in refusals[:most]:
        style = "red" if one.rate else ""
        row = (plain(one.reason), plain(one.model), _rate(one.rate), f"{one.total:,.0f}")
        table.add_row(*(Text(cell, style) for cell in row))
    return table


def _table(wide: bool) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="dim")


def _pair(spread: "Spread | None") -> tuple[str, str]:
    return ("", "") if spread is None else (_time(spread.p50), _time(spread.p99))


def _both(spread: "Spread | None") -> str:
    return "" if spread is None else f"{_time(spread.p50)} {_time(spread.p99):>7}"


def _time(seconds: float) -> str:
    return milliseconds(seconds) if seconds < _LARGEST else f">{milliseconds(_LARGEST)}"


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}" if a_second == 0 or a_second >= 1000 else f"{a_second:,.1f}"


def _fields(figures: "Figures") -> dict[str, object]:
    import msgspec

    return {field.name: getattr(figures, field.name) for field in msgspec.structs.fields(figures)}
