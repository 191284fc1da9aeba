"""Options shared by several commands, and their help: options under headings."""

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from convoy.service import address
from convoy.service.commands.examples import EXAMPLES
from convoy.service.errors import BadConfig, UnknownModel, meant

if TYPE_CHECKING:
    from typer import Context

    from convoy.service.client.credentials import Credentials

_CONNECTION: dict[str, Any] = {"rich_help_panel": "Connection", "show_envvar": True}


def duration(least: float, most: float = float("inf")) -> Callable[[str | float], float]:
    """Reads times as 500ms, 2s or 1.5min, in seconds: a number alone is seconds. Raises BadParameter."""

    def read(given: str | float) -> float:
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(us|ms|s|min|h|)", str(given).strip())
        if match is None:
            raise typer.BadParameter(f"{given!r}, want a time such as 500ms or 2s")
        seconds = float(match[1]) * _UNITS[match[2]]
        if not least <= seconds <= most:
            limit = f"at least {shown(least)}" if seconds < least else f"at most {shown(most)}"
            raise typer.BadParameter(f"{given!r}, want {limit}")
        return seconds

    return read


def shown(seconds: float) -> str:
    """A time as an option is given it."""
    return f"{seconds:g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:g}ms"


def target(given: str) -> str:
    """The HOST:PORT of a server's gRPC, of which the port may be left out. Raises BadParameter."""
    try:
        return address.target(given)
    except BadConfig as error:
        raise typer.BadParameter(error.message.removeprefix("address ")) from None


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}

Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", parser=target, help="Address of the server.")]
# What to serve, and how.
FileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="An ONNX file, or a folder: of one model, or a repository.")
]
Repository = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The model repository: <model>/<version>/model.onnx below it.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME=PATH", help="One more model, its file or folder; repeatable."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="A TOML file.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting, over all others.")
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME", help="Name of the model; may be omitted if the server has only one for the task."
    ),
]
Deadline = Annotated[
    float,
    typer.Option("--deadline", metavar="TIME", parser=duration(0.001), help="Time limit for an answer, such as 500ms."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# How to connect. Containers set the variables once, for probes that run a command in them.
UseTls = Annotated[
    bool,
    typer.Option("--tls", envvar="CONVOY_TLS", help="Use TLS; implied by --ca and --certificate.", **_CONNECTION),
]
CaFile = Annotated[
    str,
    typer.Option(
        "--ca",
        metavar="FILE",
        envvar="CONVOY_CA",
        help="PEM file of the certificate authorities to trust.",
        **_CONNECTION,
    ),
]
CertificateFile = Annotated[
    str,
    typer.Option(
        "--certificate",
        metavar="FILE",
        envvar="CONVOY_CERTIFICATE",
        help="PEM file of your client certificate.",
        **_CONNECTION,
    ),
]
KeyFile = Annotated[
    str, typer.Option("--key", metavar="FILE", envvar="CONVOY_KEY", help="PEM file of its private key.", **_CONNECTION)
]
TokenFile = Annotated[
    str,
    typer.Option(
        "--token-file", metavar="FILE", envvar="CONVOY_TOKEN_FILE", help="File that contains your token.", **_CONNECTION
    ),
]

DEADLINE = 30.0  # seconds: more than a loaded CPU needs for one large image, less than a person's patience


def credentials(tls: bool, ca: str, certificate: str, key: str, token_file: str) -> "Credentials":
    """What the options say. Raises BadConfig."""
    from convoy.service.client.credentials import Credentials

    if bool(certificate) != bool(key):
        one, other = ("--certificate", "--key") if certificate else ("--key", "--certificate")
        raise BadConfig(f"{one} is given without {other}, want both")
    return Credentials(tls=tls, ca=ca, certificate=certificate, key=key, token_file=token_file)


@contextlib.contextmanager
def naming_the_nearest(model: str, server: str, who: "Credentials", deadline: float) -> Iterator[None]:
    """Adds to the error of a server that has no such model the nearest name that it has."""
    from convoy.service.client.client import Client
    from convoy.service.client.results import ServerError

    try:
        yield
    except ServerError as error:
        if error.reason != UnknownModel.reason or not model:
            raise
        try:
            with Client(server, retry=False, balance=False, credentials=who) as client:
                names = {each.model for each in client.models(deadline)}
        except ServerError:
            names = set()
        error.message += meant(model, sorted(names - {model}))
        raise


class Sections(TyperCommand):
    """A command whose help lists each option under its `rich_help_panel` heading, the others under Options.

    The help ends with the command's example.
    """

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:  # type: ignore[override]
        return ["[OPTIONS]", *(_usage(each) for each in self.get_params(ctx) if each.param_type_name == "argument")]

    def format_options(self, ctx: "Context", formatter: Any) -> None:  # type: ignore[override]
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_heading(parameter), []).append(_readable(parameter, *record))
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: "Context", formatter: Any) -> None:  # type: ignore[override]
        _write_example(ctx, formatter)


class Group(TyperGroup):
    """A command with subcommands, whose help ends with an example."""

    def format_epilog(self, ctx: "Context", formatter: Any) -> None:  # type: ignore[override]
        _write_example(ctx, formatter)


def parse_size(text: str) -> tuple[int, int]:
    """The (height, width) of a `--size`. Raises BadConfig."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise BadConfig(f"--size {text!r}, want HEIGHTxWIDTH such as 224x224")
    return int(match[1]), int(match[2])


def check_png(option: str, file: Path | None) -> None:
    """Raises BadConfig for a file name whose suffix is not that of the format written."""
    if file is not None and file.suffix.lower() != ".png":
        raise BadConfig(f"{option} {str(file)!r}, want a name that ends in .png")


def check_picture(picture: Path | None) -> None:
    """Raises BadConfig if the picture could not be drawn: before the measurement, not after it."""
    if picture is None:
        return
    check_png("--picture", picture)
    if importlib.util.find_spec("matplotlib") is None:
        raise BadConfig("--picture needs matplotlib: install convoy[bench]")
    if not picture.parent.is_dir():
        raise BadConfig(f"--picture {str(picture)!r}: there is no such folder")


def _heading(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return getattr(parameter, "rich_help_panel", None) or "Options"


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("[]")
    name += "..." * (argument.nargs != 1 and not name.endswith("..."))
    return name if argument.required else f"[{name}]"


def _readable(parameter: Any, name: str, text: str) -> tuple[str, str]:
    """The two columns of a parameter in the help, in words: neither Python's types nor inequalities."""
    if parameter.param_type_name == "argument":
        name = (parameter.metavar or parameter.name.upper()).strip("[]")
        text = re.sub(r"\s*\[required\]$", "", text)
    if parameter.metavar == "TIME":
        text = re.sub(r"(?<=\[default: )[\d.e-]+(?=[;\]])", lambda found: shown(float(found[0])), text)
    return re.sub(r"<([^<>]*)>", r"\1", name), _RANGE.sub(_range, text)


_RANGE = re.compile(r"(?:([\d.-]+)<=)?x(<=|>=)([\d.-]+)(?=[;\]])")
_UNBOUNDED = 2**31 - 1  # as the largest value: the size of a field, which means nothing to a reader


def _range(found: re.Match[str]) -> str:
    least, relation, bound = found[1], found[2], found[3]
    if relation == ">=":
        return f"{bound} or more"
    if float(bound) >= _UNBOUNDED:
        return f"{least} or more" if least is not None else ""
    return f"at most {bound}" if least is None else f"{least} to {bound}"


def _write_example(ctx: "Context", formatter: Any) -> None:
    example = EXAMPLES.get(ctx.command_path.removeprefix("convoy "))
    if example is not None:
        with formatter.section("Example"):
            formatter.write(f"{'':{formatter.current_indent}}{example}\n")  # on one line, to be copied
