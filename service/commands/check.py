"""`convoy check`: tries the models of a repository as a start would, without serving them."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convoy.service.commands.options import ConfigFile, FileArgument, Json, Models, Repository, Settings

if TYPE_CHECKING:
    from convoy.service.config import Config
    from convoy.service.engine.check_apart import Outcome
    from convoy.service.sources import Source

_STYLES = {"serves": "green", "left out": "dim", "fails": "red"}


def check(
    path: FileArgument = None,
    repository: Repository = None,
    models: Models = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    profiles: Annotated[
        bool, typer.Option("--profiles", help="Store the measured batch times beside the models, as a server does.")
    ] = False,
    json: Json = False,
) -> None:
    """Try the models of a repository, or a file, as a server that starts would, without serving them.

    Each version is loaded and run: first in a process of its own, then with its example, alone and in batches. A file
    that ends a process fails alone. The exit code is 0 if all serve, 1 if something fails, 2 if the repository or the
    configuration cannot be used. No port is opened, and nothing is written into the repository.
    """
    from convoy.service import config, log
    from convoy.service.commands.terminal import print_json
    from convoy.service.sources import source_of
    from convoy.service.supervisor import watch

    configuration = config.load(config_file, settings or (), environment=os.environ)
    log.configure("error", "check", configuration.server.log_format)
    source = source_of(path, repository, models or ())
    watch.check(configuration)
    outcome = run(configuration, source.absolute(), profiles=profiles)
    if json:
        print_json({"failed": outcome.failed, "versions": outcome.versions, "warnings": outcome.warnings})
    else:
        show(outcome)
    raise typer.Exit(1 if outcome.failed else 0)


def run(config: "Config", source: "Source", *, profiles: bool = False) -> "Outcome":
    """The outcome for all models. `profiles` are stored beside them if asked for. Raises BadConfig."""
    from dataclasses import replace

    import msgspec
    from rich.console import Console

    from convoy.service import machine
    from convoy.service.engine import check_apart
    from convoy.service.supervisor.store import Store

    devices = config.engine.device_numbers(machine.cuda_devices)
    engine = config.engine.of_device(devices[0], len(devices), machine.cores())
    config = msgspec.structs.replace(config, engine=engine)
    with (
        tempfile.TemporaryDirectory(prefix="convoy-check-") as temporary,
        Store(config.repository.cache, Path(temporary)) as store,
    ):
        cache = store.cache if profiles else Path(temporary)
        source = replace(source, cache=cache, leaves_repository=not profiles)
        job = check_apart.job(source, config, store.folder, store.cache, devices[0])
        with Console(stderr=True, markup=False).status("") as status:  # on a terminal only
            return check_apart.check(job, status.update)


def show(outcome: "Outcome") -> None:
    """Print the table, the warnings, and one line that sums up."""
    from rich.text import Text

    from convoy.service.commands.terminal import console, numbers_table, plain

    out = console()
    table = numbers_table("model", "version")
    table.add_column("state", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("what is wrong")
    for one in outcome.versions:
        table.add_row(
            Text(plain(one.model), "bold", no_wrap=True),
            str(one.version or ""),
            Text(one.state, _STYLES[one.state]),
            f"{one.seconds:.1f}",
            Text(plain(one.reason)),
        )
    if outcome.versions:
        out.print(table)
    for warning in outcome.warnings:
        out.print(Text.assemble(("warning: ", "yellow"), plain(warning)), soft_wrap=True)
    if not any(one.state == "serves" for one in outcome.versions):
        out.print(Text("nothing would serve", "red"))
