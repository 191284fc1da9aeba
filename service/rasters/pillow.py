"""Pictures that fit into memory, by the decoders of the client and the server."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convoy.service.client.pictures import accepted
from convoy.service.errors import BadImage
from convoy.service.images import decode
from convoy.service.rasters.samples import Closing, check_window

MAX_PIXELS = 100_000_000  # 300 MB in colour


class PillowRaster(Closing):
    """A whole picture in memory, with the very pixels that a server would see. Raises BadImage."""

    ground = None
    georeference = None
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of what it tolerates
                data = accepted(path.read_bytes(), repr(str(path)))
            header = decode.inspect(data, max_pixels)
            self._pixels = decode.decode(data, "L" if header.grey else "RGB", max_pixels).pixels
        except BadImage as error:
            named = error.message if str(path) in error.message else f"{str(path)!r}: {error.message}"
            raise BadImage(named) from None
        self.height, self.width, self.channels = self._pixels.shape

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self, top, left, height, width)
        return self._pixels[top : top + height, left : left + width]

    def absent(self, top: int, left: int, height: int, width: int) -> None:
        """Returns None: what is transparent is white."""
