"""Pictures of the commands: files to pixels, masks and heat maps in colour, and images as text on a terminal."""

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps
from numpy.typing import NDArray
from rich.color import Color
from rich.style import Style
from rich.text import Text

from convoy.service.errors import BadImage
from convoy.service.metadata import InputSpec, default_palette

Pixels = NDArray[np.uint8]
_RAMP = " .:-=+*#%@"
_BOX = (0, 255, 120)  # distinct from all colours of the heat map


def read_pixels(data: bytes) -> Pixels | None:
    """An image file as (H, W, 3) RGB pixels as a server decodes it, or None if Pillow cannot read it.

    Rotated by its EXIF orientation, transparency on white, 16 bits scaled to 8.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as file:
            image = PIL.ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):
                # 65535 is 255 * 257; Pillow's own conversion would clip all values above 255.
                return np.repeat(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None], 3, 2)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                paper = PIL.Image.new("RGB", image.size, "white")
                paper.paste(image, mask=image)
                image = paper
            return np.asarray(image.convert("RGB"))
    # Pillow's readers raise all of these for damaged files.
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return None


def cells(height: int, width: int, columns: int, lines: int) -> tuple[int, int]:
    """The lines and columns of a picture of this size, fitted with its aspect ratio.

    A cell is twice as high as wide.
    """
    scale = min(columns / width, 2 * lines / height)
    return max(1, round(height * scale / 2)), max(1, round(width * scale))


def half_blocks(pixels: Pixels, columns: int, lines: int) -> Text:
    """A picture with two pixels in each cell: the upper half block in one colour, its background in the other.

    pixels  (H, W, 3) RGB
    """
    height, width = cells(pixels.shape[0], pixels.shape[1], columns, lines)
    small = _resized(pixels, 2 * height, width).astype(int)
    text = Text(no_wrap=True)
    for line in range(height):
        for upper, lower in zip(small[2 * line].tolist(), small[2 * line + 1].tolist(), strict=True):
            text.append("▀", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
        text.append("\n" if line < height - 1 else "")
    return text


def characters(pixels: Pixels, columns: int, lines: int) -> Text:
    """A picture in characters, from a space for black to @ for white.

    pixels  (H, W, 3) RGB
    """
    height, width = cells(pixels.shape[0], pixels.shape[1], columns, lines)
    small = _resized(pixels, height, width).astype(float)
    brightness = small @ (0.299, 0.587, 0.114)  # luma, ITU-R BT.601
    steps = np.minimum(brightness / 256 * len(_RAMP), len(_RAMP) - 1).astype(int)
    return Text("\n".join("".join(_RAMP[step] for step in row) for row in steps.tolist()), no_wrap=True)


def symbols(mask: Pixels, names: dict[int, str], columns: int, lines: int) -> Text:
    """A mask in characters, `names[i]` for class i.

    mask  (H, W) class indices
    """
    height, width = cells(mask.shape[0], mask.shape[1], columns, lines)
    small = np.asarray(PIL.Image.fromarray(mask).resize((width, height), PIL.Image.Resampling.NEAREST))
    return Text("\n".join("".join(names[index] for index in row) for row in small.tolist()), no_wrap=True)


def read_input(data: bytes, spec: InputSpec) -> Pixels:
    """An image file as the model's input, (H, W, C): upright, on white. Raises BadImage."""
    pixels = read_pixels(data)
    if pixels is None:
        raise BadImage("cannot be read, want an image file")
    if spec.colour == "RGB":
        return pixels
    return np.asarray(PIL.Image.fromarray(pixels).convert("L"))[..., None]


def heat_overlay(
    pixels: Pixels, heat_map: NDArray[np.float32], position: tuple[int, int], size: tuple[int, int]
) -> PIL.Image.Image:
    """The picture in grey under its heat map, each value at the centre of its window, with a box around one window.

    pixels    (H, W, C)
    heat_map  (H - h + 1, W - w + 1); drawn dark below 0, then red, yellow, and white at 1
    position  row and column of the window
    size      (h, w) of the window
    """
    (row, column), (height, width) = position, size
    heat = np.zeros(pixels.shape[:2], np.float32)
    middle = slice(height // 2, height // 2 + heat_map.shape[0]), slice(width // 2, width // 2 + heat_map.shape[1])
    heat[middle] = np.clip(heat_map, 0, 1)
    glow = np.clip(3 * heat[..., None] - np.array([0, 1, 2], np.float32), 0, 1)
    grey = pixels.mean(axis=2, keepdims=True) / 255
    image = PIL.Image.fromarray(np.rint(255 * (0.35 * grey + 0.65 * glow)).astype(np.uint8))
    PIL.ImageDraw.Draw(image).rectangle((column, row, column + width - 1, row + height - 1), outline=_BOX)
    return image


def palette_of(colours: Sequence[tuple[int, int, int]], classes: int) -> Pixels:
    """(classes, 3) uint8 RGB: the model's own colours; without them, the server's default palette."""
    return np.array(colours or default_palette(classes), np.uint8)


def mask_png(mask: Pixels, palette: Pixels) -> bytes:
    """A palette PNG file whose indices are the classes. mask (H, W)."""
    image = PIL.Image.fromarray(mask, "L")
    image.putpalette(palette.tobytes())
    return png(image)


def png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=False)
    return file.getvalue()


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    # Averages areas when reducing; keeps pixels square when enlarging.
    shrinks = height * width < pixels.shape[0] * pixels.shape[1]
    method = PIL.Image.Resampling.BOX if shrinks else PIL.Image.Resampling.NEAREST
    return np.asarray(PIL.Image.fromarray(pixels).resize((width, height), method))
