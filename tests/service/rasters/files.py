"""Pictures and masks of the tests: small, with content in every window."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convoy.service.rasters.raster import Georeference, Ground, Raster
from convoy.service.rasters.samples import Closing

UTM = "EPSG:32632"
PLACE = (2.0, 0.0, 500_000.0, 0.0, -2.0, 5_400_000.0)  # 2 m a pixel, in UTM zone 32
WINDOWS = ((0, 0, 70, 90), (0, 0, 1, 1), (17, 33, 40, 31), (69, 0, 1, 90), (5, 89, 64, 1))


def picture(channels: int = 3, height: int = 70, width: int = 90, dtype: Any = np.uint8) -> NDArray[Any]:
    """Noise, (height, width, channels), and (height, width) for one channel."""
    most = np.iinfo(dtype).max
    values = np.random.default_rng(channels).integers(0, most, (height, width, channels), dtype, endpoint=True)
    return values[..., 0] if channels == 1 else values


def patches(height: int, width: int, classes: int = 4, seed: int = 0, size: int = 9) -> NDArray[np.uint8]:
    """A mask of blocks, with single pixels in them."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, classes, (-(-height // size), -(-width // size)), np.uint8)
    mask = np.kron(blocks, np.ones((size, size), np.uint8))[:height, :width]
    spots = random.random(mask.shape) < 0.03
    mask[spots] = random.integers(0, classes, int(spots.sum()), np.uint8)
    return mask


def write_geo(path: Path, values: NDArray[Any], crs: str = UTM, place: Sequence[float] = PLACE, **more: Any) -> Path:
    """A GeoTIFF file of (height, width[, bands])."""
    import rasterio

    bands = np.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0)
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=values.dtype, crs=crs,
        transform=rasterio.Affine(*place), tiled=True, blockxsize=32, blockysize=32, **more,
    ) as data:  # fmt: skip
        data.write(bands)
    return path


def place_of(crs: str, transform: tuple[float, float, float, float, float, float] = PLACE) -> Georeference:
    import rasterio

    return Georeference(rasterio.crs.CRS.from_user_input(crs).to_wkt(), transform)


class Array(Closing):
    """A Raster of an array (height, width, channels)."""

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        ground: Ground | None = None,
        georeference: Georeference | None = None,
        gone: NDArray[np.bool_] | None = None,
    ) -> None:
        self._pixels, self._gone, self.ground, self.georeference = pixels, gone, ground, georeference
        self.height, self.width, self.channels = pixels.shape

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        return self._pixels[top : top + height, left : left + width]

    def absent(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        return None if self._gone is None else self._gone[top : top + height, left : left + width]


def blank(height: int, width: int, **more: Any) -> Raster:
    """A Raster of which only the size matters."""
    return Array(np.broadcast_to(np.uint8(0), (height, width, 1)), **more)
