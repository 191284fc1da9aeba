"""Sheets of pictures in rows, with captions and headings; and films of sheets."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from convoy.models.data.contact_sheet import font
from convoy.models.visualize.subjects import Pixels

ROW = 1000  # pixels, about the width of a page
GAP = 10
TEXT, HEADING = 13, 16  # pixels
INK, PAPER = (32, 32, 32), (255, 255, 255)
FRAME_MS, LAST_FRAME_MS = 120, 1500


class Tile(NamedTuple):
    """`image` (H, W, 3) or (H, W, 1)."""

    image: Pixels
    caption: str = ""


class Section(NamedTuple):
    """Tiles under a heading, in rows of `columns`, or as many as fit. Images smaller than `side` pixels are enlarged to
    about that size, with square pixels."""

    heading: str
    tiles: list[Tile]
    columns: int | None = None
    side: int = 96


def draw(title: str, sections: Sequence[Section]) -> Image.Image:
    """Draws the sheet, RGB. Columns are wide enough for every caption."""
    blocks = [_block(section) for section in sections]
    head = _text(title, HEADING)
    parts = [head, *blocks]
    width = max(part.width for part in parts) + 2 * GAP
    page = Image.new("RGB", (width, sum(part.height + GAP for part in parts) + GAP), PAPER)
    top = GAP
    for part in parts:
        page.paste(part, (GAP, top))
        top += part.height + GAP
    return page


def film(sheets: Sequence[Image.Image], path: Path) -> None:
    """Writes sheets of one size as a looping GIF; the last one is shown longer."""
    # One palette for all of them; otherwise the paper would flicker.
    palette = _beside([*sheets[:: max(1, len(sheets) // 4)], sheets[-1]]).quantize(256)
    frames = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=1)


def _beside(sheets: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (sheets[0].width * len(sheets), sheets[0].height))
    for place, sheet in enumerate(sheets):
        whole.paste(sheet, (place * sheet.width, 0))
    return whole


def _block(section: Section) -> Image.Image:
    tiles = [(_enlarged(tile.image, section.side), _text(tile.caption, TEXT)) for tile in section.tiles]
    width = max(max(image.width, text.width) for image, text in tiles)
    height = max(image.height for image, _ in tiles)
    below = TEXT + 8 if any(tile.caption for tile in section.tiles) else 0
    columns = section.columns or _columns(len(tiles), width)
    rows = math.ceil(len(tiles) / columns)
    heading = _text(section.heading, TEXT)
    above = heading.height + 6 if section.heading else 0
    size = (max(columns * (width + GAP) - GAP, heading.width), above + rows * (height + below + GAP) - GAP)
    block = Image.new("RGB", size, PAPER)
    block.paste(heading, (0, 0))
    for place, (image, text) in enumerate(tiles):
        row, column = divmod(place, columns)
        left, top = column * (width + GAP), above + row * (height + below + GAP)
        block.paste(image, (left, top))
        block.paste(text, (left, top + height + 3))
    return block


def _columns(count: int, width: int) -> int:
    most = max(1, (ROW + GAP) // (width + GAP))
    # As even as possible: ten tiles make two rows of five, not nine and one.
    return math.ceil(count / math.ceil(count / most))


def _enlarged(pixels: Pixels, side: int) -> Image.Image:
    factor = max(1, round(side / max(pixels.shape[:2])))
    image = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])).convert("RGB")
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _text(text: str, size: int) -> Image.Image:
    if not text:
        return Image.new("RGB", (1, 1), PAPER)
    left, _, right, _ = font(size).getbbox(text)
    image = Image.new("RGB", (math.ceil(right - left) + 1, size + 5), PAPER)
    ImageDraw.Draw(image).text((-left, 0), text, fill=INK, font=font(size))
    return image
