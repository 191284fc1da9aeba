"""Images as text: two coloured pixels per cell, or characters from dark to bright."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray
from rich.color import Color
from rich.style import Style
from rich.text import Text

_RAMP = " .:-=+*#%@"
Pixels = NDArray[np.uint8]


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


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    # Averages areas when reducing; keeps pixels square when enlarging.
    shrinks = height * width < pixels.shape[0] * pixels.shape[1]
    method = PIL.Image.Resampling.BOX if shrinks else PIL.Image.Resampling.NEAREST
    return np.asarray(PIL.Image.fromarray(pixels).resize((width, height), method))
