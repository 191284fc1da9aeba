"""`convoy bench`: loads a server and measures how it answers."""

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.client import DEFAULT_TARGET, AsyncClient, Model, ServerError
from service.commands.arrivals import poisson
from service.commands.drive import Outcome, Refusal, Sample, Send, closed_loop, open_loop
from service.commands.load_images import from_folder, generated
from service.commands.options import Json, Server
from service.commands.report import Report, summarise
from service.commands.terminal import bar, console, milliseconds, plain
from service.errors import BadConfig, ModelUnavailable, UnknownModel

Drive = Callable[[Send], Awaitable[list[Sample]]]
_WARM_UP = 1.0  # seconds before the measured ones: connections, caches, the clients' own code
_LATE = 0.005  # seconds: from here on the figures say as much about the load generator as about the server


def bench(
    *,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Which model.")],
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", metavar="N", min=1, help="Closed loop: N callers, each waits.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="R", min=0.01, help="Open loop: R requests a second at random, nobody waits."),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0.1, help="How long to measure, after a second of warm-up.")
    ] = 10.0,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Send this folder's files, not generated PNGs.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="K", min=1, help="Images in each request.")] = 1,
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="How long each answer may take.")
    ] = 10.0,
    server: Server = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Load a server and measure how it answers: throughput, latency, errors, batch size, where the time goes."""
    if (concurrency is None) == (rate is None):
        raise BadConfig("give either --concurrency N (a closed loop) or --rate R (an open one)")
    files = from_folder(images) if images is not None else None
    report, chosen = asyncio.run(
        _measure(
            server=server,
            name=model,
            files=files,
            load=f"{concurrency} callers" if concurrency is not None else f"{rate:g} requests a second",
            drive=_drive(concurrency, rate, _WARM_UP + seconds),
            seconds=seconds,
            batch=batch,
            deadline=deadline,
        )
    )
    if json:
        figures = {"model": chosen.model, "version": chosen.version, **msgspec.to_builtins(report)}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode() + "\n")
    else:
        show(console(), report)
    if not report.images:
        raise typer.Exit(1)


def choose(served: Sequence[Model], name: str) -> Model:
    """The version of the model to load: the highest that is ready. Raises UnknownModel, ModelUnavailable, BadConfig."""
    versions = [one for one in served if one.model == name]
    if not versions:
        others = ", ".join(sorted({one.model for one in served})) or "none"
        raise UnknownModel(f"the server has no model {name!r}; it has {others}")
    ready = [one for one in versions if one.state == "ready"]
    if not ready:
        raise ModelUnavailable(f"model {name!r} is not ready: {versions[-1].reason or versions[-1].state}")
    best = max(ready, key=lambda one: one.version)
    if best.task not in ("classification", "segmentation"):
        raise BadConfig(f"model {name!r} is for {best.task}, want a classification or a segmentation model")
    return best


def sender(client: AsyncClient, model: Model, files: Sequence[bytes], batch: int, deadline: float) -> Send:
    """Sends request number i: `batch` images from `files` in turn, to the RPC of the model's task."""

    async def send(number: int) -> Outcome:
        images = [files[(number * batch + place) % len(files)] for place in range(batch)]
        try:
            answers = (
                await client.classify(images, model.model, version=model.version, deadline=deadline)
                if model.task == "classification"
                else await client.segment(images, model.model, version=model.version, deadline=deadline)
            )
        except ServerError as error:
            return Outcome((), (_refusal(error),) * batch)
        return Outcome(
            tuple(answer.timings for answer in answers if not isinstance(answer, ServerError)),
            tuple(_refusal(answer) for answer in answers if isinstance(answer, ServerError)),
        )

    return send


def show(out: Console, report: Report) -> None:
    """Prints the figures."""
    throughput = (f"{report.images_per_second:,.1f} images/s", "bold green" if report.images else "bold red")
    mean_batch = f" in batches of {report.mean_batch_size:.1f} (mean)" if report.images else ""
    out.print(Text.assemble(throughput, mean_batch))
    out.print(f"{report.images:,} images of {report.requests:,} requests answered in {report.seconds:g} s")
    if report.latency is not None:
        latency = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        latency.add_column("latency, ms")
        for name in ("p50", "p90", "p99", "p99.9", "max"):
            latency.add_column(name, justify="right")
        found = report.latency
        row = (found.p50, found.p90, found.p99, found.p999, found.max)
        latency.add_row("from when it was due", *map(milliseconds, row))
        out.print("", latency, "", _stages(report))
    if report.sent_late_p99 > _LATE:
        out.print(Text(f"\nrequests left up to {milliseconds(report.sent_late_p99)} ms late (p99)", "yellow"))
    if report.errors:
        out.print("", _errors(report))


def _drive(concurrency: int | None, rate: float | None, seconds: float) -> Drive:
    if concurrency is not None:
        return functools.partial(closed_loop, callers=concurrency, seconds=seconds)
    assert rate is not None
    return functools.partial(open_loop, due_times=poisson(rate, seconds))


async def _measure(
    *,
    server: str,
    name: str,
    files: Sequence[bytes] | None,
    load: str,
    drive: Drive,
    seconds: float,
    batch: int,
    deadline: float,
) -> tuple[Report, Model]:
    async with AsyncClient(server) as client:
        model = choose(await client.models(deadline), name)
        images = files if files is not None else generated(model.input)
        told = f"{plain(model.model)} version {model.version}: {load}, {batch} image{'s' * (batch > 1)} a request"
        print(f"{told}, {_WARM_UP:g} s of warm-up and {seconds:g} s measured", file=sys.stderr)
        samples = await drive(sender(client, model, images, batch, deadline))
    return summarise(samples, _WARM_UP, seconds), model


def _refusal(error: ServerError) -> Refusal:
    code: str = error.code.name
    return Refusal(code if error.reason == code else f"{code} {error.reason}", error.message)


def _stages(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage, mean")
    table.add_column("ms", justify="right")
    table.add_column("share")
    means = {**report.stage_seconds, "outside the server": report.outside_seconds}
    total = sum(means.values())
    for stage, seconds in means.items():
        table.add_row(stage, milliseconds(seconds), Text(bar(seconds / total if total else 0.0, 30), "cyan"))
    return table


def _errors(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("images refused")
    table.add_column("", justify="right")
    table.add_column("the first was told")
    for name, count in report.errors.items():
        table.add_row(Text(plain(name), "red"), f"{count:,}", Text(plain(report.messages[name])))
    return table
