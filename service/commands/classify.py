"""`convoy classify`: the ranked labels of images, next to the images."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from convoy.service.commands.options import (
    DEADLINE,
    CaFile,
    CertificateFile,
    Deadline,
    Json,
    KeyFile,
    ModelName,
    Server,
    TokenFile,
    UseTls,
    credentials,
)
from convoy.service.commands.terminal import bar, console, plain, print_error, shows_colours, stage_line
from convoy.service.config import DEFAULT_TARGET, LimitsConfig
from convoy.service.errors import BadImage, ConvoyError

if TYPE_CHECKING:
    from convoy.service.client.client import Client
    from convoy.service.client.results import Classification, Label, ServerError

_LIMITS = LimitsConfig()  # a server's defaults
_PICTURE_COLUMNS, _PICTURE_LINES = 28, 14
_NAME_COLUMNS = 24


def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="JPEG or PNG files.")],
    *,
    model: ModelName = "",
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", min=1, max=2**32 - 1, help="How many labels to show.")
    ] = 5,
    server: Server = DEFAULT_TARGET,
    tls: UseTls = False,
    ca: CaFile = "",
    certificate: CertificateFile = "",
    key: KeyFile = "",
    token_file: TokenFile = "",
    deadline: Deadline = DEADLINE,
    json: Json = False,
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Show the images too.")] = True,
) -> None:
    """Classify images: the most probable labels of each, and the time per stage."""
    from convoy.service.client.client import Client
    from convoy.service.client.requests import read_image

    files = [(str(path), read_image(path)) for path in images]
    out, refused = console(), 0
    with Client(server, retry=False, credentials=credentials(tls, ca, certificate, key, token_file)) as client:
        for part in requests(files, _LIMITS.max_images, _LIMITS.max_message_bytes):
            for (name, data), answer in zip(part, _classify(client, part, model, top_k, deadline), strict=True):
                refused += isinstance(answer, ConvoyError)
                if json:
                    sys.stdout.write(json_line(name, answer))
                else:
                    show(out, name, data if picture else None, answer)
    if refused:
        raise typer.Exit(1)


def requests(
    files: Sequence[tuple[str, bytes]], max_images: int, max_message_bytes: int
) -> Iterator[list[tuple[str, bytes]]]:
    """The files in the fewest requests that the limits allow, in order; a file over the limit is sent alone."""
    part: list[tuple[str, bytes]] = []
    room = max_message_bytes
    for name, data in files:
        size = len(data) + 64  # its field numbers and lengths, and the request's other fields
        if part and (len(part) == max_images or size > room):
            yield part
            part, room = [], max_message_bytes
        part.append((name, data))
        room -= size
    yield part


def json_line(name: str, answer: "Classification | ServerError") -> str:
    """One image's answer as a JSON object on one line."""
    if isinstance(answer, ConvoyError):
        fields = {"error": {"code": answer.code.name, "reason": answer.reason, "message": answer.message}}
    else:
        fields = msgspec.to_builtins(answer)
    return msgspec.json.encode({"image": name, **fields}).decode() + "\n"


def show(out: Console, name: str, data: bytes | None, answer: "Classification | ServerError") -> None:
    """Print one image's answer, with the picture if `data`, the image file, is not None."""
    if isinstance(answer, ConvoyError):
        print_error(out, name, answer)
        return
    from convoy.service.commands.picture import characters, half_blocks, read_pixels

    title = f"  {plain(answer.model)} version {answer.version}"
    out.print(Text.assemble((plain(name), "bold"), (title, "dim")), soft_wrap=True)
    pixels = read_pixels(data) if data is not None else None
    ranked = Group(*_bars(answer.labels, out.width - (_PICTURE_COLUMNS + 2 if pixels is not None else 0)))
    if pixels is None:
        out.print(ranked)
    else:
        draw = half_blocks if shows_colours(out) else characters
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_row(draw(pixels, _PICTURE_COLUMNS, _PICTURE_LINES), ranked)
        out.print(grid)
    out.print(stage_line(answer.timings, out.width))
    out.print()


def _classify(
    client: "Client", files: Sequence[tuple[str, bytes]], model: str, top_k: int, deadline: float
) -> "list[Classification | ServerError]":
    from convoy.service.client.results import ServerError

    try:
        return client.classify_many([data for _, data in files], model, top_k=top_k, deadline=deadline)
    except ServerError as error:
        # A request with a single image fails as a whole if its image does.
        if len(files) == 1 and error.reason == BadImage.reason:
            return [error]
        raise


def _bars(labels: "Sequence[Label]", columns: int) -> Iterator[Text]:
    names = [plain(label.name) for label in labels]
    widest = min(max(map(len, names), default=0), _NAME_COLUMNS)
    length = max(10, min(40, columns - widest - 12))
    for rank, (name, label) in enumerate(zip(names, labels, strict=True)):
        style = "bold green" if rank == 0 else ""
        shown = name if len(name) <= widest else name[: widest - 1] + "…"
        line = f"{shown:<{widest}}  {bar(label.probability, length)} {label.probability:>7.1%}"
        yield Text(line, style, no_wrap=True, overflow="ellipsis")
