"""`convoy token`: makes the token of a caller, and its line for the file of callers."""

import os
import re
import secrets
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from convoy.service.errors import BadConfig

_PREFIX = "convoy_"  # by which scanners recognise a token that has got into a file
_BYTES = 32
_MODEL = re.compile(r"\*|[a-z0-9_-]{1,64}")


def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the caller, or the name in its certificate.")],
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="Model that the caller may use; repeatable.  [default: all]"),
    ] = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="Allow reading the metrics.")] = False,
    admin: Annotated[bool, typer.Option("--admin", help="Allow managing the server, such as loading models.")] = False,
    days: Annotated[
        int | None, typer.Option("--days", metavar="N", min=1, max=36_500, help="Days until the token expires.")
    ] = None,
    by_certificate: Annotated[
        bool, typer.Option("--by-certificate", help="Create no token: its certificate identifies the caller.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the token into a new file that only you can read."),
    ] = None,
) -> None:
    """Create a token. Prints the line for the file of `access.callers` to standard output, the token to standard error.

    The server knows only the token's digest, so a lost token cannot be shown again.
    """
    wrong = next((each for each in model or [] if not _MODEL.fullmatch(each)), None)
    if wrong is not None:
        raise BadConfig(f"--model {wrong!r}, want * or a model's name: a-z, 0-9, - and _")
    if by_certificate and output is not None:
        raise BadConfig("--by-certificate makes no token: omit --output")
    scopes = [name for name, chosen in (("metrics", metrics), ("admin", admin)) if chosen]
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    if by_certificate:
        typer.echo(line(name, None, model or ["*"], scopes, expires))
        return
    made = _PREFIX + secrets.token_urlsafe(_BYTES)
    if output is None:
        print(made, file=sys.stderr)
    else:
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(made + "\n")
    typer.echo(line(name, made, model or ["*"], scopes, expires))


def line(name: str, made: str | None, models: list[str], scopes: list[str], expires: datetime | None) -> str:
    """The TOML of a caller; `made` is its token, None: it is known by a certificate."""
    fields = ["certificate = true" if made is None else f'sha256 = "{sha256(made.encode()).hexdigest()}"']
    fields.append(f"models = {_listed(models)}")
    if scopes:
        fields.append(f"scopes = {_listed(scopes)}")
    if expires is not None:
        fields.append(f"expires = {expires:%Y-%m-%dT%H:%M:%SZ}")
    return f"{_key(name)} = {{ {', '.join(fields)} }}"


def _key(name: str) -> str:
    if not (name and name.isprintable()):
        raise BadConfig(f"NAME is {name!r}, want printable characters")
    if re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _listed(words: list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"
