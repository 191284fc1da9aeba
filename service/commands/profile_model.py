"""`convoy profile`: measures batch times of a model on this machine, and reports which sizes will be used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from convoy.service import buckets
from convoy.service.buckets import Size
from convoy.service.commands.options import Json, check_picture, duration, parse_size
from convoy.service.commands.terminal import bar, console, milliseconds
from convoy.service.config import BatchingConfig, EngineConfig, LimitsConfig, ModelConfig
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.errors import BadConfig, BadModelFile, UnknownModel, meant
from convoy.service.machine import cores
from convoy.service.repository import MODEL_FILE, model_file, scan, wanted

if TYPE_CHECKING:
    from convoy.service.commands.profile_served import Row
    from convoy.service.engine.profiles import Profile
    from convoy.service.engine.session import Session

_COLUMNS = 24  # of the longest bar


def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the repository, or an .onnx file.")],
    *,
    repository: Annotated[Path, typer.Option("--repository", metavar="DIR", help="The model repository.")] = Path(
        "repository"
    ),
    provider: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--provider", help="Execution provider.")
    ] = "auto",
    device: Annotated[int, typer.Option("--device", metavar="N", min=0, help="Index of the CUDA device.")] = 0,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=0, help="Threads of all sessions in total; 0: one per core.")
    ] = 0,
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", metavar="N", min=1, max=1024, help="The largest batch to try.")
    ] = 32,
    objective: Annotated[
        float, typer.Option("--objective", metavar="TIME", parser=duration(0.0001), help="Target latency.")
    ] = 0.1,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="HxW", help="Image size, if the model accepts any; repeatable."),
    ] = None,
    callers: Annotated[
        int | None,
        typer.Option("--callers", metavar="N", min=1, help="Also serve N callers with each batch size, and compare."),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", metavar="TIME", parser=duration(0.1), help="With --callers: length of each measurement."
        ),
    ] = 3.0,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.png", help="Draw time and throughput by batch size.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure batch times of a model on this machine, and report which batch sizes will be used, and why.

    On the CPU it measures one session with all threads, and several with one each. With --callers it then starts
    servers with fixed batch sizes, and one that chooses by itself, and compares what they serve.
    """
    check_picture(picture)
    sizes = {text: _checked_size(text) for text in size or []}
    if callers and len(sizes) > 1:
        raise BadConfig(f"--callers sends images of one size, but --size is given {len(sizes)} times, want it once")
    file, settings = _find(model, repository)

    from convoy.service.engine import layouts, profiles, profiling
    from convoy.service.engine.providers import Device, gpu_offered
    from convoy.service.engine.session_builder import load_all, measured

    on = Device(provider, EngineConfig(device=device), max_batch_size)
    by_layout: list[list[Profile]] = []  # for each layout, a profile of each shape
    for layout in layouts.layouts("auto", threads or cores(), gpu_offered(provider)):
        try:
            instances = load_all(file, on, layout)
        except BadModelFile as error:
            raise BadModelFile(f"{model}: {error.message}") from None
        session = instances.session
        machine = profiles.machine(file, session.provider, device, layout.threads, layout.instances)
        if callers and not _takes_images(session):
            raise BadConfig(f"--callers sends images, want a classification or segmentation model, not {model}")
        largest = _largest(model, session, settings, sizes, max_batch_size)
        by_layout.append([profiling.measure(measured(instances), machine, *entry) for entry in largest.items()])
    everything = [each for row in by_layout for each in row]
    served: list[Row] = []
    if callers:
        from convoy.service.commands import profile_served

        options = (f"engine.provider={provider}", f"engine.device={device}", f"engine.threads={threads}")
        served = profile_served.compare(file, settings, by_layout, objective, callers, seconds, options)
    if picture is not None:
        from convoy.service.commands import charts

        charts.draw_profiles(everything, [chosen(each, objective) for each in everything], model, picture, served)
    if json:
        print(msgspec.json.encode({"profiles": everything, "served": served} if callers else everything).decode())
        return
    terminal = console()
    for each in [each for row in zip(*by_layout, strict=True) for each in row]:
        terminal.print(f"{model} on {each.machine.device}, {_layout(each)}, {each.dtype} {_shape(each)}")
        terminal.print(_table(each, chosen(each, objective)))
        terminal.print(why(each, objective))
    if len(by_layout) > 1:
        one, several = by_layout
        terminal.print(f'with instances = "auto": {which(one, several, objective)}')
    if served:
        terminal.print(f"\nserved to {callers} callers")
        terminal.print(profile_served.table(served))
        terminal.print(profile_served.verdict(served))


def chosen(measured: "Profile", objective: float) -> int:
    """The largest batch that will be used with a latency objective of `objective` seconds."""
    times = RunTimes(max(measured.batches), measured.seconds)
    return max(1, times.efficient(times.largest_within(objective / 2)))


def why(measured: "Profile", objective: float) -> str:
    times = RunTimes(max(measured.batches), measured.seconds)
    size, fitting = chosen(measured, objective), times.largest_within(objective / 2)
    rate, best = (measured.machine.instances * each / times.predict(each) for each in (size, measured.batch_size))
    text = f"batches of up to {size}: {rate:,.0f} images/s"
    if fitting < 1:
        return f"{text}; even one image takes more than half of the objective of {objective * 1000:g} ms"
    if size < measured.batch_size and rate < 0.998 * best:
        limit = f"two of them in a row fit into the objective of {objective * 1000:g} ms"
        return f"{text}; {limit}, those of {measured.batch_size} would reach {best:,.0f}"
    if size == measured.most:
        return f"{text}; larger ones were not tried"
    return f"{text}; larger ones reach less than 0.2 % more"


def which(one: "Sequence[Profile]", several: "Sequence[Profile]", objective: float) -> str:
    """The choice between one session and several, as text; both have profiles of the same shapes."""
    from convoy.service.engine import layouts

    pairs = list(zip(one, several, strict=True))
    rates = [(layouts.rate(first, objective), layouts.rate(second, objective)) for first, second in pairs]
    gains = [second / first - 1 if first else 0.0 for first, second in rates]
    least = gains.index(min(gains))
    first, second = pairs[least]
    gain = f"{_layout(second)} reach {abs(gains[least]):.0%} {'more' if gains[least] >= 0 else 'fewer'} images/s"
    where = f" at {_shape(first)}" if len(pairs) > 1 else ""
    if layouts.choose(one, several, objective):
        times = " and ".join(f"{milliseconds(each.seconds[1])} ms with {_layout(each)}" for each in (first, second))
        return f"{gain}{where}; one image takes {times}"
    if not rates[least][1]:
        half = f"half of the objective of {objective * 1000:g} ms"
        return f"{_layout(first)}; with {_layout(second)}{where} one image takes more than {half}"
    return f"{_layout(first)}; {gain}{where}, want at least {layouts.GAIN - 1:.0%} more"


def _layout(measured: "Profile") -> str:
    from convoy.service.engine import layouts

    number, threads = layouts.layout_of(measured)
    of_threads = f"{threads} thread{'s' if threads > 1 else ''}"
    return of_threads if number == 1 else f"{number} sessions of {of_threads} each"


def _takes_images(session: "Session") -> bool:
    document = session.document
    return document is not None and document.input is not None and document.task in ("classification", "segmentation")


def _shape(measured: "Profile") -> str:
    return "x".join(map(str, measured.shape))


def _table(measured: "Profile", size: int) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("batch", "ms", "images/s", "CPU ms/image"):
        table.add_column(heading, justify="right")
    table.add_column("")
    number = measured.machine.instances
    rates = {each: number * each / batch.seconds for each, batch in measured.batches.items()}
    for each, batch in measured.batches.items():
        line = bar(rates[each] / max(rates.values()), _COLUMNS).rstrip()
        cpu = milliseconds(batch.cpu_seconds / (number * each))
        cells = (f"{each}", milliseconds(batch.seconds), f"{rates[each]:,.1f}", cpu)
        table.add_row(*cells, Text(f"{line} used" if each <= size else line))
    return table


def _largest(
    model: str, session: "Session", settings: ModelConfig, sizes: Mapping[str, Size], most: int
) -> dict[tuple[int, ...], int]:
    """The shapes to measure, each with the largest batch to try; `sizes` are keyed by their text."""
    from convoy.service.engine import profiling

    document = session.document
    if document is None:
        raise BadModelFile(f"{model} does not describe its input: its batches are measured while it serves")
    free = document.input is not None and document.input.fit == "pad"
    if sizes and not free:
        raise BadModelFile(f"--size {next(iter(sizes))}: {model} accepts one size only, omit --size")
    limits, batching = LimitsConfig(), BatchingConfig()
    own = buckets.configured("none", settings.buckets, document, limits.max_input_pixels).sizes
    chosen_sizes = [buckets.rounded(document.image, *each) for each in sizes.values()] or own
    shapes = profiling.shapes(document, chosen_sizes, most if session.batched else 1, batching.max_batch_pixels)
    if not shapes:
        advice = "want --size HxW, or buckets in its model.toml" if free else "its batches are measured while it serves"
        raise BadModelFile(f"{model} accepts inputs of any size: {advice}")
    return shapes


def _checked_size(text: str) -> Size:
    height, width = parse_size(text)
    most = LimitsConfig().max_input_pixels
    if height * width > most:
        raise BadConfig(f"--size {text!r} has {height * width} pixels, want at most {most}")
    return height, width


def _find(model: str, repository: Path) -> tuple[Path, ModelConfig]:
    """The model file, and the model's own settings."""
    if model.endswith(".onnx"):
        if not Path(model).is_file():
            raise UnknownModel(f"there is no file {model!r}")
        return Path(model), ModelConfig()
    if not repository.is_dir():
        raise UnknownModel(f"there is no model repository {str(repository)!r}, want --repository DIR")
    listings = scan(repository)
    if model in listings and listings[model].problem:
        raise BadConfig(f"{model}: {listings[model].problem}")
    versions = wanted(listings[model], "latest 1") if model in listings else []
    if not versions:
        names = ", ".join(sorted(listings)) or "none"
        what = f"no model {model!r} with a {MODEL_FILE} in {str(repository)!r}, which has: {names}"
        raise UnknownModel(f"{what}{meant(model, listings)}")
    return model_file(repository, model, versions[0]), listings[model].config
