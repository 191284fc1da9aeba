"""`convoy classify`: the ranked labels of images, next to the images."""

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
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
    naming_the_nearest,
)
from convoy.service.commands.terminal import bar, console, plain, print_error, shows_colours, stage_line
from convoy.service.config import DEFAULT_TARGET, LimitsConfig
from convoy.service.errors import BadConfig, BadImage, ConvoyError

if TYPE_CHECKING:
    from convoy.service.client.client import Client
    from convoy.service.client.results import Classification, Label, ServerError

_LIMITS = LimitsConfig()  # a server's defaults
_PICTURE_COLUMNS, _PICTURE_LINES = 28, 14
_NAME_COLUMNS = 24
_CSV_HEADER = ("image", "model", "version", "rank", "label", "probability", "error")

File = tuple[str, bytes | BadImage]  # a name, and the bytes or why there are none


def classify(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|FOLDER", help="Image files, or folders with image files in them.")
    ],
    *,
    model: ModelName = "",
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", min=1, max=2**32 - 1, help="Number of labels to show.")
    ] = 5,
    server: Server = DEFAULT_TARGET,
    tls: UseTls = False,
    ca: CaFile = "",
    certificate: CertificateFile = "",
    key: KeyFile = "",
    token_file: TokenFile = "",
    deadline: Deadline = DEADLINE,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV: a row for each image and label.")] = False,
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Show the images too.")] = True,
) -> None:
    """Classify images: the most probable labels of each, and the time per stage.

    An image that cannot be read or classified does not stop the others; the exit code is then 1.
    """
    if json and csv:
        raise BadConfig("--json and --csv exclude each other, want one of them")
    from convoy.service.client.client import Client

    out, refused = console(), 0
    paths = found(images)
    if csv:
        sys.stdout.write(csv_lines(_CSV_HEADER))
    who = credentials(tls, ca, certificate, key, token_file)
    with (
        naming_the_nearest(model, server, who, deadline),
        Client(server, retry=False, balance=False, credentials=who) as client,
    ):
        for part in requests(read(paths), _LIMITS.max_images, _LIMITS.max_message_bytes):
            for (name, data), answer in zip(part, _answers(client, part, model, top_k, deadline), strict=True):
                refused += isinstance(answer, ConvoyError)
                if json:
                    sys.stdout.write(json_line(name, answer))
                elif csv:
                    sys.stdout.write(csv_lines(*csv_rows(name, answer)))
                else:
                    show(out, name, data if picture and isinstance(data, bytes) else None, answer)
    if refused:
        raise typer.Exit(1)


def found(paths: Iterable[Path]) -> list[Path]:
    """The files, and the image files directly in the folders, by name. Raises BadConfig for a folder without any."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        within = sorted(file for file in path.iterdir() if _is_picture(file))
        if not within:
            raise BadConfig(f"folder {str(path)!r} has no image files in it")
        files += within
    return files


def read(paths: Iterable[Path]) -> "Iterator[File]":
    """Each file with its name, or the error that keeps it from being read."""
    from convoy.service.client.requests import read_image

    for path in paths:
        try:
            yield str(path), read_image(path)
        except BadImage as error:
            yield str(path), error


def requests(files: "Iterable[File]", max_images: int, max_message_bytes: int) -> "Iterator[list[File]]":
    """The files in the fewest requests that the limits allow, in order; a file over the limit is sent alone."""
    part: list[File] = []
    room = max_message_bytes
    for name, data in files:
        # With its field numbers and lengths, and the request's other fields.
        size = len(data) + 64 if isinstance(data, bytes) else 0
        if part and (len(part) == max_images or size > room):
            yield part
            part, room = [], max_message_bytes
        part.append((name, data))
        room -= size
    yield part


def csv_rows(name: str, answer: "Classification | ConvoyError") -> Iterator[Sequence[object]]:
    """The rows of one image under _CSV_HEADER."""
    if isinstance(answer, ConvoyError):
        yield name, "", "", "", "", "", answer.message
        return
    for rank, label in enumerate(answer.labels, 1):
        yield name, answer.model, answer.version, rank, label.name, f"{label.probability:.6g}", ""


def csv_lines(*rows: Sequence[object]) -> str:
    """The rows as lines of a CSV file."""
    import csv

    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def json_line(name: str, answer: "Classification | ConvoyError") -> str:
    """One image's answer as a JSON object on one line."""
    if isinstance(answer, ConvoyError):
        code = getattr(answer, "code", None)  # of a file that could not be read there is none
        name_of_code = "INVALID_ARGUMENT" if code is None else code.name
        fields = {"error": {"code": name_of_code, "reason": answer.reason, "message": answer.message}}
    else:
        fields = msgspec.to_builtins(answer)
    # A file's name may have bytes that are no text.
    readable = name.encode(errors="replace").decode()
    return msgspec.json.encode({"image": readable, **fields}).decode() + "\n"


def show(out: Console, name: str, data: bytes | None, answer: "Classification | ConvoyError") -> None:
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


def _answers(
    client: "Client", part: "Sequence[File]", model: str, top_k: int, deadline: float
) -> "Iterator[Classification | ConvoyError]":
    """What became of each file, in order."""
    readable = [data for _, data in part if isinstance(data, bytes)]
    answers = iter(_classify(client, readable, model, top_k, deadline) if readable else ())
    for _, data in part:
        yield next(answers) if isinstance(data, bytes) else data


def _classify(
    client: "Client", images: Sequence[bytes], model: str, top_k: int, deadline: float
) -> "list[Classification | ServerError]":
    from convoy.service.client.results import ServerError

    try:
        return client.classify_many(images, model, top_k=top_k, deadline=deadline)
    except ServerError as error:
        # A request with a single image fails as a whole if its image does.
        if len(images) == 1 and error.reason == BadImage.reason:
            return [error]
        raise


def _is_picture(path: Path) -> bool:
    from convoy.service.client.pictures import is_called_picture

    # Some systems leave hidden files beside pictures, with their names.
    return is_called_picture(path.name) and not path.name.startswith(".") and path.is_file()


def _bars(labels: "Sequence[Label]", columns: int) -> Iterator[Text]:
    names = [plain(label.name) for label in labels]
    widest = min(max(map(len, names), default=0), _NAME_COLUMNS)
    length = max(10, min(40, columns - widest - 12))
    for rank, (name, label) in enumerate(zip(names, labels, strict=True)):
        style = "bold green" if rank == 0 else ""
        shown = name if len(name) <= widest else name[: widest - 1] + "…"
        line = f"{shown:<{widest}}  {bar(label.probability, length)} {label.probability:>7.1%}"
        yield Text(line, style, no_wrap=True, overflow="ellipsis")
