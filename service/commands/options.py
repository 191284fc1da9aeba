"""Options shared by several commands."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from convoy.service.errors import BadConfig

Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the server listens.")]
ModelName = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Which model; not needed where the server has one for the task.")
]
Deadline = Annotated[
    float, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="How long an answer may take.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of pictures and tables.")]

DEADLINE = 30.0  # seconds: more than a loaded CPU needs for one large image, less than a person's patience


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
