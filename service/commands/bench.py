"""`convoy bench`: loads a server and measures its answers."""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convoy.service.bench.plan import Closed, Open, Piece, Plan, Spacing, TargetModel, describe
from convoy.service.commands.options import (
    CaFile,
    CertificateFile,
    Json,
    KeyFile,
    Server,
    TokenFile,
    UseTls,
    check_picture,
    credentials,
    duration,
    parse_size,
)
from convoy.service.commands.terminal import bar, console, milliseconds, numbers_table, plain, print_json
from convoy.service.config import DEFAULT_TARGET
from convoy.service.errors import BadConfig

if TYPE_CHECKING:
    from convoy.service.bench.report import Figures, Latency, Report

Protocol = Literal["convoy", "oip"]
_WARM_UP = 1.0  # seconds before the measurement: connections, caches, the clients' own code
_SECONDS = 10.0


def bench(
    *,
    model: Annotated[
        list[str],
        typer.Option("--model", metavar="NAME[:WEIGHT]", help="Model to call; several share the requests by weight."),
    ],
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", metavar="N", min=1, help="Closed loop with N concurrent callers.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="R", min=0.01, help="Open loop at R requests a second."),
    ] = None,
    ramp: Annotated[
        str | None, typer.Option("--ramp", metavar="A:B", help="Open loop whose rate changes from A to B a second.")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="R:S,...", help="Open loop, R a second for S seconds, then the next."),
    ] = None,
    arrivals: Annotated[Spacing, typer.Option("--arrivals", help="Arrival process of an open loop.")] = "poisson",
    variation: Annotated[
        float,
        typer.Option("--variation", metavar="CV", min=0.01, help="For gamma: coefficient of variation of the gaps."),
    ] = 2.0,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="TIME",
            parser=duration(0.1),
            help="How long to measure, after 1 s of warm-up.  [default: 10s]",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Send the files of this folder instead of generated PNGs."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="HxW", help="Size of generated images; repeatable, used in turn."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="K", min=1, help="Images in each request.")] = 1,
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="TIME", parser=duration(0.001), help="Deadline of each request.")
    ] = 10.0,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, max=64, help="Client processes that share the load.")
    ] = 1,
    raw_client: Annotated[
        bool, typer.Option("--raw-client", help="A client on libnghttp2 that takes less CPU time than gRPC's own.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="One stream per process and model instead of calls.")
    ] = False,
    protocol: Annotated[
        Protocol, typer.Option("--protocol", help="oip: any server of the Open Inference Protocol, random tensors.")
    ] = "convoy",
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="INPUT:AxB...", help="oip: an input's shape; repeatable, used in turn."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the requests and their times.")] = 0,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.png", help="Draw latency over time and its distribution."),
    ] = None,
    server: Server = DEFAULT_TARGET,
    tls: UseTls = False,
    ca: CaFile = "",
    certificate: CertificateFile = "",
    key: KeyFile = "",
    token_file: TokenFile = "",
    json: Json = False,
) -> None:
    """Load a server and measure throughput, latency, errors, batch sizes and time per stage."""
    load = _load(concurrency, rate, ramp, steps, arrivals, variation, seconds)
    weights = [_weight(text) for text in model]
    if len({name for name, _ in weights}) < len(weights):
        raise BadConfig("--model names a model twice, want one weight for each")
    sizes = tuple(parse_size(text) for text in size or [])
    shapes = _shapes(shape or [])
    if stream and protocol == "oip":
        raise BadConfig("--stream is for Convoy's own protocol: omit --protocol oip")
    if raw_client:
        _check_raw_client(server, stream)
    _check_together(protocol, images, bool(sizes), bool(shapes))
    check_picture(picture)

    from convoy.service.bench import fleet, oip, vision
    from convoy.service.bench.report import summarise

    if images is not None:
        vision.from_folder(images)
    who = credentials(tls, ca, certificate, key, token_file)
    models: tuple[TargetModel, ...] = (
        oip.models(server, weights, shapes, batch, deadline, who)
        if protocol == "oip"
        else vision.models(server, weights, deadline, who)
    )
    plan = Plan(
        server=server,
        credentials=who,
        models=models,
        load=load,
        warm_up=_WARM_UP,
        batch=batch,
        deadline=deadline,
        seed=seed,
        processes=processes,
        folder=str(images) if images is not None else None,
        stream=stream,
        raw_client=raw_client,
        sizes=sizes,
    )
    aside = console(stderr=True)
    aside.print(Text(_announcement(plan)), soft_wrap=not aside.is_terminal)
    report = summarise(plan, fleet.run(plan))
    if picture is not None:
        from convoy.service.commands import charts

        charts.draw_load(report, picture)
    if json:
        print_json(report)
    else:
        show(console(), report)
    if not report.all.images:
        raise typer.Exit(1)


def show(out: Console, report: "Report") -> None:
    figures = report.all
    throughput = (f"{figures.images_per_second:,.1f} images/s", "bold green" if figures.images else "bold red")
    mean_batch = f" in batches of {figures.mean_batch_size:.1f} (mean)" if figures.mean_batch_size else ""
    out.print(Text.assemble(throughput, mean_batch))
    client = ", raw client" * report.plan.raw_client
    out.print(f"{figures.images:,} images of {figures.requests:,} requests answered in {figures.seconds:g} s{client}")
    if figures.latency is not None and report.since_sent is not None:
        due = None if isinstance(report.plan.load, Closed) else figures.latency
        out.print("", _latencies(due, report.since_sent))
    if len(report.steps) > 1:
        names = (f"{step.at:g} to {step.at + step.seconds:g} s" for step in report.steps)
        out.print("", _parts("time", zip(names, report.steps, strict=True)))
    if len(report.models) > 1:
        out.print("", _parts("model", ((plain(each.model), each.figures) for each in report.models)))
    if figures.stage_seconds:
        sampled = ", of a sample" * report.plan.raw_client
        out.print("", _stages(figures, f"stage, mean{sampled}"))
    if report.warnings:
        advice = "the latencies are in part its own: use more --processes, a lower load, or another machine"
        out.print("", Text(f"{'; '.join(report.warnings)}: {advice}", "yellow"), sep="\n")
    if figures.errors:
        out.print("", _errors(figures))


def _load(
    concurrency: int | None,
    rate: float | None,
    ramp: str | None,
    steps: str | None,
    spacing: Spacing,
    variation: float,
    seconds: float | None,
) -> Closed | Open:
    if sum(option is not None for option in (concurrency, rate, ramp, steps)) != 1:
        raise BadConfig("want either --concurrency N (a closed loop) or one of --rate R, --ramp A:B, --steps R:S,...")
    length = seconds if seconds is not None else _SECONDS
    if concurrency is not None:
        return Closed(concurrency, length)
    if steps is not None and seconds is not None:
        raise BadConfig("--steps sets the length of each step: omit --seconds")
    if steps is not None:
        pieces = tuple(_step(text) for text in steps.split(","))
    elif ramp is not None:
        pieces = (Piece(length, *_pair("--ramp", ramp, "10:500")),)
    else:
        assert rate is not None
        pieces = (Piece(length, rate, rate),)
    if sum(piece.requests for piece in pieces) < 1:
        raise BadConfig("the load is less than one request")
    return Open(pieces, spacing, variation)


def _step(text: str) -> Piece:
    rate, seconds = _pair("--steps", text, "100:10,200:10")
    if seconds < 0.1:
        raise BadConfig(f"--steps {text!r} lasts {seconds:g} s, want at least 0.1")
    return Piece(seconds, rate, rate)


def _pair(option: str, text: str, example: str) -> tuple[float, float]:
    match = re.fullmatch(r"(\d+\.?\d*):(\d+\.?\d*)", text)
    if match is None:
        raise BadConfig(f"{option} {text!r}, want numbers such as {example}")
    return float(match[1]), float(match[2])


def _weight(text: str) -> tuple[str, float]:
    name, colon, weight = text.partition(":")
    if not colon:
        return name, 1.0
    if not re.fullmatch(r"\d+\.?\d*", weight) or float(weight) <= 0:
        raise BadConfig(f"--model {text!r}, want a name, or a name and a weight such as lenet5:3")
    return name, float(weight)


def _shapes(texts: list[str]) -> dict[str, list[tuple[int, ...]]]:
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for text in texts:
        name, _, sides = text.rpartition(":")
        if not name or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
            raise BadConfig(f"--shape {text!r}, want an input and all of its sides such as image:1x224x224x3")
        shapes.setdefault(name, []).append(tuple(map(int, sides.split("x"))))
    return shapes


def _check_together(protocol: Protocol, images: Path | None, sizes: bool, shapes: bool) -> None:
    if protocol == "oip" and (images is not None or sizes):
        raise BadConfig("--protocol oip sends random tensors: --images and --size are for Convoy's own protocol")
    if protocol == "convoy" and shapes:
        raise BadConfig("--shape is for --protocol oip")
    if images is not None and sizes:
        raise BadConfig("--images sends files as they are: omit --size")


def _check_raw_client(server: str, stream: bool) -> None:
    if stream:
        raise BadConfig("--raw-client sends calls only: omit --stream")
    if any(importlib.util.find_spec(name) is None for name in ("cffi", "uvloop")):
        raise BadConfig("--raw-client needs cffi and uvloop: install convoy[bench]")

    from convoy.service.bench import raw_client

    raw_client.library()
    raw_client.address(server)


def _announcement(plan: Plan) -> str:
    models = ", ".join(
        plain(f"{model.model} version {model.version}".removesuffix(" version ")) for model in plan.models
    )
    processes = " by the raw client" * plan.raw_client + f" from {plan.processes} processes" * (plan.processes > 1)
    images = f"{plan.batch} image{'s' * (plan.batch > 1)} a request"
    times = f"{plan.warm_up:g} s of warm-up and {plan.load.seconds:g} s measured"
    return f"{models}: {describe(plan.load)}{processes}, {images}, {times}"


def _latencies(due: "Latency | None", sent: "Latency") -> Table:
    table = numbers_table("latency, ms", "p50", "p90", "p99", "p99.9", "max")
    for name, latency in (("from when it was due", due), ("from when it was sent", sent)):
        if latency is not None:
            row = (latency.p50, latency.p90, latency.p99, latency.p999, latency.max)
            table.add_row(name, *map(milliseconds, row))
    return table


def _parts(what: str, parts: Iterable[tuple[str, "Figures"]]) -> Table:
    table = numbers_table(what, "requests/s", "images/s", "p50 ms", "p99 ms", "refused")
    for name, figures in parts:
        latency = figures.latency
        latencies = (milliseconds(latency.p50), milliseconds(latency.p99)) if latency is not None else ("", "")
        rates = (f"{figures.requests / figures.seconds:,.1f}", f"{figures.images_per_second:,.1f}")
        table.add_row(Text(name), *rates, *latencies, f"{sum(figures.errors.values()):,}")
    return table


def _stages(figures: "Figures", title: str) -> Table:
    table = numbers_table(title, "ms")
    table.add_column("share")
    means = {**figures.stage_seconds, "outside the server": figures.outside_seconds}
    total = sum(means.values())
    for stage, seconds in means.items():
        table.add_row(stage, milliseconds(seconds), Text(bar(seconds / total if total else 0.0, 30), "cyan"))
    return table


def _errors(figures: "Figures") -> Table:
    table = numbers_table("images not answered", "")
    table.add_column("first message")
    for name, count in figures.errors.items():
        table.add_row(Text(plain(name), "red"), f"{count:,}", Text(plain(figures.messages[name])))
    return table
