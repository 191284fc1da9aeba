"""Options shared by several commands, and their help: options under headings."""

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from convoy.service.errors import BadConfig

if TYPE_CHECKING:
    from typer import Context

    from convoy.service.client.credentials import Credentials

_CONNECTION: dict[str, Any] = {"rich_help_panel": "Connection", "show_envvar": True}

Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the server listens.")]
ModelName = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Which model; not needed if the server has one for the task.")
]
Deadline = Annotated[
    float, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="How long an answer may take.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of pictures and tables.")]

# How to connect. Containers set the variables once, for probes that run a command in them.
UseTls = Annotated[
    bool,
    typer.Option("--tls", envvar="CONVOY_TLS", help="Connect by TLS; --ca and --certificate do so too.", **_CONNECTION),
]
CaFile = Annotated[
    str,
    typer.Option(
        "--ca",
        metavar="FILE",
        envvar="CONVOY_CA",
        help="PEM: who may have signed the server's certificate.",
        **_CONNECTION,
    ),
]
CertificateFile = Annotated[
    str,
    typer.Option(
        "--certificate", metavar="FILE", envvar="CONVOY_CERTIFICATE", help="PEM: your certificate.", **_CONNECTION
    ),
]
KeyFile = Annotated[
    str, typer.Option("--key", metavar="FILE", envvar="CONVOY_KEY", help="PEM: its key.", **_CONNECTION)
]
TokenFile = Annotated[
    str,
    typer.Option(
        "--token-file", metavar="FILE", envvar="CONVOY_TOKEN_FILE", help="A file with your token.", **_CONNECTION
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


class Sections(TyperCommand):
    """A command whose help lists each option under its `rich_help_panel` heading, the others under Options."""

    def format_options(self, ctx: "Context", formatter: Any) -> None:  # type: ignore[override]
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_heading(parameter), []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


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
