"""Class maps as people paint them: the numbers of classes, other values, or colours."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from convoy.models.data.dataset import IGNORE
from convoy.models.data.picture import opened
from convoy.models.errors import BadData, BadTraining

Kind = Literal["values", "colours"]
RGB = tuple[int, int, int]

_ITEM = {"values": r"(\d{1,5})(?:=(\d{1,3}))?", "colours": r"#?([0-9a-fA-F]{6})(?:=(\d{1,3}))?"}
_BASE = {"values": 10, "colours": 16}
_SUCH = {"values": "0,255 or 0,128,200=255", "colours": "000000,ff0000 or 000000,ff0000,ffffff=255"}
_SOURCE = re.compile(r"(?P<path>.*)#mask-(?P<kind>values|colours)=(?P<text>[^#]+)", re.DOTALL)
# How far Pillow spreads the numbers of a grey PNG file with fewer than 8 bits a pixel.
_SPREAD = {"L": 1, "L;2": 85, "L;4": 17}
_SHOWN = 8  # values or colours of a mask that a message lists


class Coding(NamedTuple):
    """Which class each value in a mask stands for. A value is that of a pixel, 0..65535, or its colour as 0xRRGGBB;
    a class is 0..254, or 255 for a pixel of no class."""

    kind: Kind
    classes: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        """As `parse` reads it."""
        form = "{:06x}" if self.kind == "colours" else "{}"
        return ",".join(
            form.format(value) + ("" if place == number else f"={number}")
            for place, (value, number) in enumerate(self.classes)
        )

    @property
    def highest(self) -> int:
        """The highest class that a value stands for."""
        return max((number for _, number in self.classes if number != IGNORE), default=0)

    def applied(self, path: Path, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
        """The class of each pixel, (H, W), of its value. Raises BadData where one stands for no class; of 255, where it
        is not named, it is known that it is none."""
        table = dict(self.classes)
        if self.kind == "values":
            table.setdefault(IGNORE, IGNORE)
        values, places = np.unique(pixels, return_inverse=True)
        strange = [int(value) for value in values if int(value) not in table]
        if strange:
            raise BadData(
                f"mask {path} has {_listed(self.kind, strange)}, want only those of --mask-{self.kind} {self}"
            )
        return np.array([table[int(value)] for value in values], np.uint8)[places].reshape(pixels.shape)

    def palette(self) -> list[RGB] | None:
        """The colour of each class, where the coding is by colours."""
        if self.kind == "values":
            return None
        of_class: dict[int, RGB] = {}
        for value, number in self.classes:
            of_class.setdefault(number, _rgb(value))
        return [of_class.get(number, (0, 0, 0)) for number in range(self.highest + 1)]


def parse(kind: Kind, text: str) -> Coding:
    """The coding of `0,128` or `000000,ff0000`, the values of the classes 0, 1 and on; `200=255` says which class one
    stands for, 255 for none. Raises BadTraining."""
    wrong = BadTraining(f"--mask-{kind} {text[:100]!r}, want the {kind} of the classes in order, such as {_SUCH[kind]}")
    classes: list[tuple[int, int]] = []
    for place, item in enumerate(text.split(",")):
        match = re.fullmatch(_ITEM[kind], item.strip())
        if match is None:
            raise wrong
        value, number = int(match[1], _BASE[kind]), place if match[2] is None else int(match[2])
        if number > IGNORE or (number == IGNORE and match[2] is None) or value in dict(classes):
            raise wrong
        if kind == "values" and value > np.iinfo(np.uint16).max:
            raise wrong
        classes.append((value, number))
    return Coding(kind, tuple(classes))


def two(value: int) -> Coding:
    """0 and another value, for two classes."""
    return Coding("values", ((0, 0), (value, 1)))


def source(path: Path, coding: Coding | None) -> str:
    """How a run notes its data: the path, and how its masks are coded where they are."""
    return str(path) if coding is None else f"{path}#mask-{coding.kind}={coding}"


def of_source(name: str) -> tuple[str, Coding | None]:
    """The path and the coding of what `source` answered."""
    match = _SOURCE.fullmatch(name)
    if match is None:
        return name, None
    kind: Kind = "values" if match["kind"] == "values" else "colours"
    return match["path"], parse(kind, match["text"])


def read(path: Path, coding: Coding | None = None) -> NDArray[np.uint8]:
    """The class of each pixel, (H, W), 255 for none: the index in the palette or the grey value, where no coding says
    what it stands for. Raises BadData."""
    with opened(path) as image:
        if coding is not None and coding.kind == "colours":
            return coding.applied(path, _colours(path, image))
        values = _values(path, image)
    if coding is not None:
        return coding.applied(path, values)
    if values.max(initial=0) > IGNORE:
        raise BadData(
            f"mask {path} has {_listed('values', [int(value) for value in np.unique(values)])}, want the number of its "
            f"class for each pixel, 0 to {IGNORE}, or --mask-values"
        )
    return values.astype(np.uint8)


def _values(path: Path, image: Image.Image) -> NDArray[np.generic]:
    """The numbers in the file: what another program spreads or triples is undone."""
    if isinstance(image, PngImageFile):
        spread = {_SPREAD.get(str(tile[3])) for tile in image.tile}
        if image.mode == "L" and spread <= set(_SPREAD.values()) and len(spread) == 1:
            (by,) = spread
            return np.asarray(image) // np.uint8(by or 1)
        if image.mode in ("P", "1"):
            return np.asarray(image).astype(np.uint8)
        if image.mode.startswith("I;16"):
            return np.asarray(image)
        if image.mode in ("LA", "RGB", "RGBA"):
            return _grey(path, image)
    raise _other_kind(path, image)


def _grey(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    colours = _rgb_of(path, image)
    grey: NDArray[np.uint8] = colours[..., 0]
    if not (colours == grey[..., None]).all():
        found = [int(value) for value in np.unique(_packed(colours))]
        raise BadData(
            f"mask {path} has {_listed('colours', found)}, want a PNG file with the number of its class for each "
            "pixel, or --mask-colours with the colours of the classes in order"
        )
    return grey


def _colours(path: Path, image: Image.Image) -> NDArray[np.uint32]:
    if not isinstance(image, PngImageFile) or image.mode.startswith("I"):
        raise _other_kind(path, image)
    return _packed(_rgb_of(path, image))


def _rgb_of(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    if isinstance(image, PngImageFile) and any(str(tile[3]).endswith(";16B") for tile in image.tile):
        raise BadData(f"mask {path} has colours of 16 bits, want 8: the low ones would be lost")  # Pillow drops them
    if image.mode in ("LA", "RGBA"):
        low, _ = image.getchannel("A").getextrema()
        if low != 255:
            raise BadData(f"mask {path} is transparent in places, want the class of each pixel")
    return np.asarray(image.convert("RGB"))


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    wide = colours.astype(np.uint32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], np.uint32)


def _rgb(value: int) -> RGB:
    return value >> 16, value >> 8 & 255, value & 255


def _listed(kind: Kind, values: list[int]) -> str:
    shown = [f"#{value:06x}" if kind == "colours" else str(value) for value in values[:_SHOWN]]
    return f"the {kind} {', '.join(shown)}" + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")


def _other_kind(path: Path, image: Image.Image) -> BadData:
    return BadData(
        f"mask {path} is {image.format} with pixels of kind {image.mode}, want a PNG file with a palette: "
        "the number of its class for each pixel"
    )
