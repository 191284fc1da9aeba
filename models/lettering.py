"""The font for captions in pictures."""

from functools import cache
from pathlib import Path

import matplotlib as mpl
from PIL import ImageFont


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans, `size` pixels high. It ships with matplotlib and covers more languages than Pillow's."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
