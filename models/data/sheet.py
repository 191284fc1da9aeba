"""A sheet of samples as one picture: each with its caption, and with its mask laid over it where it has one."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.data.dataset import IGNORE
from models.lettering import font

Palette = Sequence[tuple[int, int, int]]

SIDE, GAP, TEXT = 128, 8, 12  # pixels: of a sample's square, between two, of a letter
COLUMNS = 8
COVER = 0.55  # of a mask over its image
IGNORED = (255, 255, 255)


class Tile(NamedTuple):
    """`image` (H, W, 1 or 3), and the `mask` (H, W) that is laid over a second copy of it, to its right."""

    image: NDArray[np.uint8]
    caption: str
    mask: NDArray[np.uint8] | None = None


def sheet(tiles: Sequence[Tile], palette: Palette | None, classes: int) -> Image.Image:
    """All tiles in rows of eight squares of 128 pixels. Images keep their proportions; small ones are enlarged by
    nearest neighbour, so that their pixels can be seen. Pixels of no class are white."""
    colours = palette or distinct(classes)
    wide = 2 if any(tile.mask is not None for tile in tiles) else 1
    columns = min(len(tiles), COLUMNS // wide)
    step_x, step_y = wide * SIDE + GAP, SIDE + TEXT + 2 * GAP
    rows = -(-len(tiles) // columns)
    paper = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    letters, pen = font(TEXT), ImageDraw.Draw(paper)
    for place, tile in enumerate(tiles):
        left, top = GAP + place % columns * step_x, GAP + place // columns * step_y
        for offset, picture in enumerate(_pictures(tile, colours)):
            paper.paste(picture, (left + offset * SIDE, top))
        pen.text((left, top + SIDE + 2), _fitting(tile.caption, letters, wide * SIDE), fill="black", font=letters)
    return paper


def distinct(classes: int) -> list[tuple[int, int, int]]:
    """Colours for classes that have none, those of Pascal VOC: the bits of the number, dealt to red, green and blue in
    turn from the highest bit of each."""
    found = []
    for number in range(classes):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        found.append((channels[0], channels[1], channels[2]))
    return found


def _pictures(tile: Tile, colours: Palette) -> list[Image.Image]:
    pixels = np.broadcast_to(tile.image, (*tile.image.shape[:2], 3))
    if tile.mask is None:
        return [_square(pixels)]
    table = np.full((256, 3), IGNORED, np.uint8)
    shown = colours[:IGNORE]
    table[: len(shown)] = shown
    covered = np.rint((1 - COVER) * pixels + COVER * table[tile.mask]).astype(np.uint8)
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


def _fitting(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
