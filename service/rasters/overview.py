"""A mask reduced to a picture that any viewer shows."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convoy.service.rasters.raster import Classes
from convoy.service.rasters.tiff_mask import palette_of

MAX_SIDE = 2048


class Overview:
    """A palette PNG of at most 2048 pixels a side: of each block of the mask the pixel at its centre."""

    def __init__(self, path: Path, height: int, width: int, classes: Classes) -> None:
        self._path, self._classes, self._top = path, classes, 0
        scale = max(1.0, max(height, width) / MAX_SIDE)
        self._rows, self._columns = _centres(height, scale), _centres(width, scale)
        self._pixels = np.zeros((len(self._rows), len(self._columns)), np.uint8)

    def write(self, rows: NDArray[np.uint8]) -> None:
        first, last = np.searchsorted(self._rows, [self._top, self._top + len(rows)])
        self._pixels[first:last] = rows[self._rows[first:last] - self._top][:, self._columns]
        self._top += len(rows)

    def close(self) -> None:
        image = Image.fromarray(self._pixels)
        image.putpalette(palette_of(self._classes).tobytes())
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            image.save(part, "PNG")
            part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)


def _centres(side: int, scale: float) -> NDArray[np.intp]:
    count = max(1, min(side, round(side / scale)))
    return ((np.arange(count) + 0.5) * side / count).astype(np.intp)
