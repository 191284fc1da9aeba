"""Coding of masks: the class of each pixel value, as options specify it and runs record it; and class colours from a
text file."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from convoy.models.data.dataset import IGNORE
from convoy.models.errors import BadNetworkFile, BadTraining
from convoy.service.text import NoText, decoded

Kind = Literal["values", "colours"]
RGB = tuple[int, int, int]

_ITEM = {"values": r"(\d{1,5})(?:=(\d{1,3}))?", "colours": r"#?([0-9a-fA-F]{6})(?:=(\d{1,3}))?"}
_BASE = {"values": 10, "colours": 16}
_SUCH = {"values": "0,255 or 0,128,200=255", "colours": "000000,ff0000 or 000000,ff0000,ffffff=255"}
_HEX = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_NUMBERS = re.compile(r"(\d{1,3})[ ,]+(\d{1,3})[ ,]+(\d{1,3})")
_SOURCE = re.compile(r"(?P<path>.*)#mask-(?P<kind>values|colours)=(?P<text>[^#]+)", re.DOTALL)


class Coding(NamedTuple):
    """The class of each value in a mask. A value is a pixel value, 0..65535, or a colour as 0xRRGGBB; a class is
    0..254, or 255 for a pixel without a class."""

    kind: Kind
    classes: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        """Returns the text that `parse` reads."""
        form = "{:06x}" if self.kind == "colours" else "{}"
        return ",".join(
            form.format(value) + ("" if place == number else f"={number}")
            for place, (value, number) in enumerate(self.classes)
        )

    @property
    def highest(self) -> int:
        """The highest class."""
        return max((number for _, number in self.classes if number != IGNORE), default=0)

    def palette(self) -> list[RGB] | None:
        """Returns the colour of each class if the coding is by colours, else None."""
        if self.kind == "values":
            return None
        of_class: dict[int, RGB] = {}
        for value, number in self.classes:
            of_class.setdefault(number, _rgb(value))
        return [of_class.get(number, (0, 0, 0)) for number in range(self.highest + 1)]


def parse(kind: Kind, text: str) -> Coding:
    """Parses the coding in `0,128` or `000000,ff0000`, the values of classes 0, 1 and so on; `200=255` specifies the
    class of a value, 255 for none. Raises BadTraining."""
    wrong = BadTraining(f"--mask-{kind} {text[:100]!r}, want the {kind} of the classes in order, such as {_SUCH[kind]}")
    classes: list[tuple[int, int]] = []
    for place, item in enumerate(text.split(",")):
        match = re.fullmatch(_ITEM[kind], item.strip())
        if match is None:
            raise wrong
        value, number = int(match[1], _BASE[kind]), place if match[2] is None else int(match[2])
        if number > IGNORE or (number == IGNORE and match[2] is None) or value in dict(classes):
            raise wrong
        if kind == "values" and value > 65_535:
            raise wrong
        classes.append((value, number))
    return Coding(kind, tuple(classes))


def source(path: Path, coding: Coding | None) -> str:
    """Returns the text by which a run records its data: the path, and the coding of its masks, if any."""
    return str(path) if coding is None else f"{path}#mask-{coding.kind}={coding}"


def of_source(name: str) -> tuple[str, Coding | None]:
    """Returns the path and the coding in a text that `source` returned."""
    match = _SOURCE.fullmatch(name)
    if match is None:
        return name, None
    kind: Kind = "values" if match["kind"] == "values" else "colours"
    return match["path"], parse(kind, match["text"])


def read_colours(path: Path) -> list[RGB]:
    """Reads a text with one colour per line. Raises BadNetworkFile."""
    try:
        lines = decoded(path.read_bytes()).rstrip().split("\n")
    except NoText as error:
        raise BadNetworkFile(f"{path}: {error}, one colour a line") from None
    return [_colour(path, number, line.strip()) for number, line in enumerate(lines, start=1)]


def _rgb(value: int) -> RGB:
    return value >> 16, value >> 8 & 255, value & 255


def _colour(path: Path, number: int, line: str) -> RGB:
    match, base = _HEX.fullmatch(line), 16
    if match is None:
        match, base = _NUMBERS.fullmatch(line), 10
    parts = () if match is None else tuple(int(part, base) for part in match.groups())
    if len(parts) != 3 or max(parts) > 255:
        raise BadNetworkFile(f"line {number} of {path} is {line!r}, want a colour such as #ff8000 or 255 128 0")
    return parts[0], parts[1], parts[2]
