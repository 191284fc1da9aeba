"""The letters of captions in pictures."""

from functools import cache
from pathlib import Path

import matplotlib as mpl
from PIL import ImageFont


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """So many pixels high. DejaVu, which comes with matplotlib: it has the letters of more languages than Pillow's."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
