"""What several commands share: options, their conversion from text, and printing."""

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from convoy.models import launch
from convoy.models.data.formats.coding import Coding, parse, read_colours, source
from convoy.models.data.registry import resolve
from convoy.models.errors import BadTraining
from convoy.models.training.run import RunFolder
from convoy.service.errors import BadConfig

MAX_SIDE = 65_535

MaskValues = Annotated[
    str | None,
    typer.Option(
        metavar="VALUE,VALUE", help="The mask values of class 0, 1 and so on, such as 0,255; VALUE=255 is no class."
    ),
]
MaskColours = Annotated[
    str | None,
    typer.Option(
        metavar="RRGGBB|FILE,...",
        help="The mask colours of class 0, 1 and so on, or files of them, one per line; RRGGBB=255 is no class.",
    ),
]


def checkpoint_of(path: Path | None) -> Path | None:
    """Returns the chosen checkpoint of a run, if the path is a folder, and prints which; other paths unchanged. Raises
    BadRun."""
    if path is None or not path.is_dir():
        return path
    folder = RunFolder(path)
    chosen = folder.chosen()
    if launch.is_first():
        what = "the last step" if chosen == folder.last else "the lowest validation loss"
        print(f"checkpoint {chosen} ({what})", file=sys.stderr)
    return chosen


def last_of(path: Path | None) -> Path | None:
    """Returns the checkpoint of a run's last step, if the path is a folder; other paths unchanged."""
    return RunFolder(path).last if path is not None and path.is_dir() else path


def check_exists(*paths: Path | None) -> None:
    """Raises OSError, which names the file, if one does not exist."""
    for path in paths:
        if path is not None:
            path.stat()


def check_picture(path: Path | None) -> None:
    """Raises BadConfig if an image could not be written: now, not after minutes of work."""
    if path is not None and not path.parent.is_dir():
        raise BadConfig(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")


def check_data(data: str | None) -> None:
    """Raises BadTraining if the data does not exist."""
    if data:
        resolve(data)


def assignments(texts: list[str]) -> dict[str, str]:
    """Returns the values of `NAME=VALUE` texts by name. Raises BadTraining."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, sign, _) in zip(texts, pairs, strict=True):
        if not (name and sign):
            raise BadTraining(f"--set {text!r}, want NAME=VALUE")
    return {name: value for name, _, value in pairs}


def with_masks(data: str, values: str | None, colours: str | None) -> str:
    """Returns data and the coding of its masks as one text for `convoy.models.data.registry.resolve`. Raises
    BadTraining, BadNetworkFile."""
    coding = mask_coding(values, colours)
    return data if coding is None else source(Path(data), coding)


def mask_coding(values: str | None, colours: str | None) -> Coding | None:
    """Returns the coding of masks that the options describe. Raises BadTraining, BadNetworkFile."""
    if values is not None and colours is not None:
        raise BadTraining("--mask-values and --mask-colours are alternatives, want one of them")
    if values is not None:
        return parse("values", values)
    if colours is not None:
        listed = [colour for part in colours.split(",") for colour in _colours(part)]
        return parse("colours", ",".join(listed))
    return None


def print_step(text: str) -> None:
    """Prints a long step of a command before it begins, on stderr."""
    print(f"{text} ...", file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Prints a value that msgspec encodes."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(table: Table) -> None:
    """Prints a table in its full width, on a narrower terminal too: truncated figures would be useless."""
    console = Console()
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, width)).print(table)


def _colours(part: str) -> list[str]:
    file = Path(part)
    return [bytes(colour).hex() for colour in read_colours(file)] if part and file.is_file() else [part]


def parse_size(text: str) -> tuple[int, int]:
    """Parses `HxW`, or one number for both, into height and width. Raises BadTraining."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise BadTraining(f"--size {text!r}, want HEIGHTxWIDTH such as 224x224, each 1 to {MAX_SIDE}")
    return sides


def parse_range(option: str, text: str) -> tuple[float, float]:
    """Parses `LEAST:LARGEST`, two factors of 0.1 to 10. Raises BadTraining."""
    match = re.fullmatch(r"(\d*\.?\d+):(\d*\.?\d+)", text)
    least, largest = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not 0.1 <= least <= largest <= 10:
        raise BadTraining(f"{option} {text!r}, want LEAST:LARGEST such as 0.8:1.2, each 0.1 to 10")
    return least, largest


def parse_bounds(text: str) -> list[float]:
    """Parses bounds such as `32,96`, ascending sides in pixels. Raises BadTraining."""
    words = text.split(",")
    bounds = [float(word) for word in words if word.strip().isdecimal()]
    if len(bounds) < len(words) or bounds[0] < 1 or any(a >= b for a, b in pairwise(bounds)):
        raise BadTraining(f"--slices {text!r}, want ascending sides in pixels with commas between, such as 32,96")
    return bounds
