"""The options that several client commands share."""

from typing import Annotated

import typer

Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the server listens.")]
ModelName = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Which model; not needed where the server has one for the task.")
]
Deadline = Annotated[
    float, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="How long an answer may take.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of pictures and tables.")]

DEADLINE = 30.0  # seconds: above what a loaded CPU needs for one large image, below a person's patience
