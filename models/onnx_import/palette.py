"""Class colours from a file: text with one colour per line, or a picture with a palette."""

import re
from pathlib import Path

from convoy.models.data import picture
from convoy.models.errors import BadNetworkFile
from convoy.service.text import NoText, decoded

Colour = tuple[int, int, int]
_HEX = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_NUMBERS = re.compile(r"(\d{1,3})[ ,]+(\d{1,3})[ ,]+(\d{1,3})")


def read_palette(path: Path, classes: int) -> list[Colour]:
    """Returns `classes` colours, (red, green, blue) in 0..255, from lines such as `#ff8000` or `255 128 0`, or from the
    palette of a PNG. Raises BadNetworkFile, BadData."""
    colours = picture.mask_header(path).palette if path.suffix.lower() == ".png" else read_colours(path)
    if len(colours) < classes:
        raise BadNetworkFile(f"{path} has {len(colours)} colours for {classes} classes")
    return colours[:classes]


def read_colours(path: Path) -> list[Colour]:
    """Reads a text with one colour per line. Raises BadNetworkFile."""
    try:
        lines = decoded(path.read_bytes()).rstrip().split("\n")
    except NoText as error:
        raise BadNetworkFile(f"{path}: {error}, one colour a line") from None
    return [_colour(path, number, line.strip()) for number, line in enumerate(lines, start=1)]


def _colour(path: Path, number: int, line: str) -> Colour:
    match, base = _HEX.fullmatch(line), 16
    if match is None:
        match, base = _NUMBERS.fullmatch(line), 10
    parts = () if match is None else tuple(int(part, base) for part in match.groups())
    if len(parts) != 3 or max(parts) > 255:
        raise BadNetworkFile(f"line {number} of {path} is {line!r}, want a colour such as #ff8000 or 255 128 0")
    return parts[0], parts[1], parts[2]
