"""What slide scanners write, in windows, by OpenSlide."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadImage
from convoy.service.rasters.raster import Ground
from convoy.service.rasters.samples import Closing, check_window, on_white


class SlideRaster(Closing):
    """The full level of a slide, on white where the scanner left out glass. Raises BadImage."""

    channels = 3
    georeference = None
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self._name = repr(str(path))
        import openslide  # noqa: PLC0415  of an extra

        path.stat()
        with self._reporting():
            self._slide = openslide.OpenSlide(path)
        self.width, self.height = self._slide.dimensions
        self.ground = self._ground(openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        region = self._region(top, left, height, width)
        return on_white(region[..., :3], region[..., 3])

    def absent(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """Returns where the slide is transparent: the scanner took no picture there."""
        gone: NDArray[np.bool_] = self._region(top, left, height, width)[..., 3] == 0
        return gone if gone.any() else None

    def close(self) -> None:
        self._slide.close()

    def _region(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self, top, left, height, width)
        with self._reporting():
            return np.asarray(self._slide.read_region((left, top), 0, (width, height)))

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            raise
        except Exception as error:  # OpenSlide's errors, and those of Pillow
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BadImage(f"{self._name} cannot be read: {reason}") from None

    def _ground(self, across: str, down: str) -> Ground | None:
        with contextlib.suppress(KeyError, ValueError):
            width, height = (float(self._slide.properties[name]) for name in (across, down))
            if math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0:
                return Ground(width, height, "um")
        return None
