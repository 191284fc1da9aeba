"""Contact sheet: one image of many samples, each with its caption and its mask, if any, and a legend of mask
colours."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convoy.models.data.dataset import IGNORE, DataSet, Split
from convoy.models.errors import BadTraining
from convoy.service.metadata import default_palette

Palette = Sequence[tuple[int, int, int]]

SIDE, GAP, TEXT = 128, 8, 12  # pixels: side of a sample's square, gap between squares, height of text
COLUMNS = 8
MASK_OPACITY = 0.55  # opacity of a mask over its image
IGNORED = (255, 255, 255)
FRAME = (160, 160, 160)  # around a legend colour, which may be white

SAMPLE_ROWS = 6


class Tile(NamedTuple):
    """`image` (H, W, 1 or 3). `mask` (H, W) is drawn over a second copy of it, in grey, to its right."""

    image: NDArray[np.uint8]
    caption: str
    mask: NDArray[np.uint8] | None = None


def sheet(tiles: Sequence[Tile], palette: Palette | None, labels: Sequence[str]) -> Image.Image:
    """Draws all tiles in rows of eight squares of 128 pixels. Images keep their proportions; small ones are enlarged by
    nearest neighbour, so that their pixels remain visible. Pixels without a class are white. A legend below contains
    the colour of each class that occurs in a mask."""
    colours = palette or default_palette(len(labels))
    wide = 2 if any(tile.mask is not None for tile in tiles) else 1
    columns = min(len(tiles), COLUMNS // wide)
    step_x, step_y = wide * SIDE + GAP, SIDE + TEXT + 2 * GAP
    rows = -(-len(tiles) // columns)
    width, height = columns * step_x + GAP, rows * step_y + GAP
    legend = _legend(_occurring(tiles), colours, labels, width)
    paper = Image.new("RGB", (width, height + legend.height), "white")
    paper.paste(legend, (0, height))
    letters, pen = font(TEXT), ImageDraw.Draw(paper)
    for place, tile in enumerate(tiles):
        left, top = GAP + place % columns * step_x, GAP + place // columns * step_y
        for offset, picture in enumerate(_pictures(tile, colours)):
            paper.paste(picture, (left + offset * SIDE, top))
        pen.text((left, top + SIDE + 2), _shortened(tile.caption, letters, wide * SIDE), fill="black", font=letters)
    return paper


def save_samples(data: DataSet, file: Path) -> int:
    """Writes a PNG file of training images, with their class names or with their masks drawn over them. Returns their
    number. Classes have equal numbers of images, as far as space permits. Raises BadTraining if there are no images."""
    if data.colour is None:
        raise BadTraining(f"{data.name} has no images to show")
    split = data.split("train")
    if data.task == "classification":
        chosen = _balanced(_by_class(split), SAMPLE_ROWS * COLUMNS)
    else:
        chosen = _evenly_spread(range(len(split)), SAMPLE_ROWS * COLUMNS // 2)
    tiles = [_tile(data, split, index) for index in chosen]
    sheet(tiles, data.palette, data.labels).save(file, "PNG")
    return len(tiles)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans, `size` pixels high. It ships with matplotlib and covers more languages than Pillow's."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _occurring(tiles: Sequence[Tile]) -> list[int]:
    """Returns the classes that occur in the masks, without IGNORE."""
    occurs = np.zeros(256, bool)
    for tile in tiles:
        if tile.mask is not None:
            occurs[np.unique(tile.mask)] = True
    return np.flatnonzero(occurs[:IGNORE]).tolist()


def _legend(classes: Sequence[int], colours: Palette, labels: Sequence[str], width: int) -> Image.Image:
    letters, line = font(TEXT), TEXT + GAP
    places: list[tuple[int, int]] = []
    left, top = GAP, 0
    for number in classes:
        needed = TEXT + GAP + round(letters.getlength(labels[number])) + 2 * GAP
        if left > GAP and left + needed > width:
            left, top = GAP, top + line
        places.append((left, top))
        left += needed
    paper = Image.new("RGB", (width, top + line if classes else 0), "white")
    pen = ImageDraw.Draw(paper)
    for number, (x, y) in zip(classes, places, strict=True):
        pen.rectangle((x, y + 2, x + TEXT, y + 2 + TEXT), fill=colours[number], outline=FRAME)
        pen.text((x + TEXT + GAP, y), labels[number], fill="black", font=letters)
    return paper


def _pictures(tile: Tile, colours: Palette) -> list[Image.Image]:
    pixels = np.broadcast_to(tile.image, (*tile.image.shape[:2], 3))
    if tile.mask is None:
        return [_square(pixels)]
    table = np.full((256, 3), IGNORED, np.uint8)
    shown = colours[:IGNORE]
    table[: len(shown)] = shown
    # On a grey image, so that every colour marks a class.
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    covered = np.rint((1 - MASK_OPACITY) * grey + MASK_OPACITY * table[tile.mask]).astype(np.uint8)
    return [_square(pixels), _square(covered)]


def _square(pixels: NDArray[np.uint8]) -> Image.Image:
    height, width = pixels.shape[:2]
    factor = SIDE / max(height, width)
    size = max(1, round(factor * width)), max(1, round(factor * height))
    method = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (SIDE, SIDE), (224, 224, 224))
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, method)
    square.paste(resized, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square


def _shortened(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _tile(data: DataSet, split: Split, index: int) -> Tile:
    image, target = split[index]
    if isinstance(target, np.ndarray):
        present = [name for number, name in enumerate(data.labels) if (target == number).any()]
        return Tile(image, ", ".join(present), target)
    return Tile(image, data.labels[target])


def _by_class(split: Split) -> dict[int, list[int]]:
    places: dict[int, list[int]] = defaultdict(list)
    for index in range(len(split)):
        target = split[index][1]
        assert isinstance(target, int)
        places[target].append(index)
    return places


def _balanced(places: dict[int, list[int]], room: int) -> list[int]:
    shown = _evenly_spread(sorted(places), room)
    return [index for name in shown for index in _evenly_spread(places[name], max(1, room // len(shown)))]


def _evenly_spread(values: Sequence[int], count: int) -> list[int]:
    """Returns at most `count` of the values, evenly spread."""
    if len(values) <= count:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, count).round().astype(int)]
