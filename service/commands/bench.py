"""`convoy bench`: loads a server and measures its answers."""

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from convoy.service.bench import fleet, oip, vision
from convoy.service.bench.arrivals import Piece, Spacing
from convoy.service.bench.images import from_folder
from convoy.service.bench.plan import AskedModel, Closed, Open, Plan
from convoy.service.bench.report import in_words, summarise
from convoy.service.client.requests import DEFAULT_TARGET
from convoy.service.commands.options import Json, Server, check_picture
from convoy.service.commands.report import show
from convoy.service.commands.terminal import console, plain
from convoy.service.errors import BadConfig

Protocol = Literal["convoy", "oip"]
_WARM_UP = 1.0  # seconds before the measurement: connections, caches, the clients' own code
_SECONDS = 10.0


def bench(
    *,
    model: Annotated[
        list[str],
        typer.Option("--model", metavar="NAME[:WEIGHT]", help="Which model; several share the requests by weight."),
    ],
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", metavar="N", min=1, help="Closed loop with N concurrent callers.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="R", min=0.01, help="Open loop at R requests a second."),
    ] = None,
    ramp: Annotated[
        str | None, typer.Option("--ramp", metavar="A:B", help="Open loop whose rate goes from A to B a second.")
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
            "--seconds", metavar="S", min=0.1, help="How long to measure, after 1 s of warm-up; 10 by default."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Send this folder's files, not generated PNGs.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="HxW", help="Size of generated images; repeatable, used in turn."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="K", min=1, help="Images in each request.")] = 1,
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="Deadline of each request.")
    ] = 10.0,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, max=64, help="Client processes that share the load.")
    ] = 1,
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
    json: Json = False,
) -> None:
    """Load a server and measure throughput, latency, errors, batch sizes and time per stage."""
    load = _load(concurrency, rate, ramp, steps, arrivals, variation, seconds)
    weights = [_weight(text) for text in model]
    if len({name for name, _ in weights}) < len(weights):
        raise BadConfig("--model names a model twice: give it one weight")
    sizes = tuple(_size(text) for text in size or [])
    shapes = _shapes(shape or [])
    if stream and protocol == "oip":
        raise BadConfig("--stream is for Convoy's own protocol: leave --protocol oip out")
    _check_together(protocol, images, bool(sizes), bool(shapes), picture)
    asked: tuple[AskedModel, ...] = (
        oip.models(server, weights, shapes, batch, deadline)
        if protocol == "oip"
        else vision.models(server, weights, deadline)
    )
    plan = Plan(
        server=server,
        models=asked,
        load=load,
        warm_up=_WARM_UP,
        batch=batch,
        deadline=deadline,
        seed=seed,
        processes=processes,
        folder=str(images) if images is not None else None,
        stream=stream,
        sizes=sizes,
    )
    print(_announcement(plan), file=sys.stderr)
    report = summarise(plan, fleet.run(plan))
    if picture is not None:
        from convoy.service.bench.picture import save

        save(report, picture)
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
    else:
        show(console(), report)
    if not report.all.images:
        raise typer.Exit(1)


def _load(
    concurrency: int | None,
    rate: float | None,
    ramp: str | None,
    steps: str | None,
    spacing: Spacing,
    variation: float,
    seconds: float | None,
) -> Closed | Open:
    if sum(given is not None for given in (concurrency, rate, ramp, steps)) != 1:
        raise BadConfig("give either --concurrency N (a closed loop) or one of --rate R, --ramp A:B, --steps R:S,...")
    length = seconds if seconds is not None else _SECONDS
    if concurrency is not None:
        return Closed(concurrency, length)
    if steps is not None and seconds is not None:
        raise BadConfig("--steps tells how long each step takes: leave --seconds out")
    if steps is not None:
        pieces = tuple(_step(text) for text in steps.split(","))
    elif ramp is not None:
        pieces = (Piece(length, *_pair("--ramp", ramp, "10:500")),)
    else:
        assert rate is not None
        pieces = (Piece(length, rate, rate),)
    if sum(piece.requests for piece in pieces) < 1:
        raise BadConfig("the load comes to less than one request")
    return Open(pieces, spacing, variation)


def _step(text: str) -> Piece:
    rate, seconds = _pair("--steps", text, "100:10,200:10")
    if seconds < 0.1:
        raise BadConfig(f"--steps {text!r} lasts {seconds:g} s, want at least 0.1")
    return Piece(seconds, rate, rate)


def _pair(option: str, text: str, example: str) -> tuple[float, float]:
    found = re.fullmatch(r"(\d+\.?\d*):(\d+\.?\d*)", text)
    if found is None:
        raise BadConfig(f"{option} {text!r}, want numbers such as {example}")
    return float(found[1]), float(found[2])


def _weight(text: str) -> tuple[str, float]:
    name, colon, weight = text.partition(":")
    if not colon:
        return name, 1.0
    if not re.fullmatch(r"\d+\.?\d*", weight) or float(weight) <= 0:
        raise BadConfig(f"--model {text!r}, want a name, or a name and a weight such as lenet5:3")
    return name, float(weight)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise BadConfig(f"--size {text!r}, want height and width such as 224x224")
    return int(found[1]), int(found[2])


def _shapes(texts: list[str]) -> dict[str, list[tuple[int, ...]]]:
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for text in texts:
        name, _, sides = text.rpartition(":")
        if not name or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
            raise BadConfig(f"--shape {text!r}, want an input and all of its sides such as image:1x224x224x3")
        shapes.setdefault(name, []).append(tuple(map(int, sides.split("x"))))
    return shapes


def _check_together(protocol: Protocol, images: Path | None, sizes: bool, shapes: bool, picture: Path | None) -> None:
    if protocol == "oip" and (images is not None or sizes):
        raise BadConfig("--protocol oip sends random tensors: --images and --size are for Convoy's own protocol")
    if protocol == "convoy" and shapes:
        raise BadConfig("--shape is for --protocol oip")
    if images is not None and sizes:
        raise BadConfig("--images sends files as they are: leave --size out")
    if images is not None:
        from_folder(images)
    check_picture(picture)


def _announcement(plan: Plan) -> str:
    models = ", ".join(
        plain(f"{model.model} version {model.version}".removesuffix(" version ")) for model in plan.models
    )
    processes = f" from {plan.processes} processes" * (plan.processes > 1)
    images = f"{plan.batch} image{'s' * (plan.batch > 1)} a request"
    times = f"{plan.warm_up:g} s of warm-up and {plan.load.seconds:g} s measured"
    return f"{models}: {in_words(plan.load)}{processes}, {images}, {times}"
