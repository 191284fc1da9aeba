"""A mask as a GeoTIFF file or a Cloud Optimized GeoTIFF, by rasterio."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convoy.service.rasters.geo import OPTIONS
from convoy.service.rasters.raster import NO_CLASS, Classes, Raster
from convoy.service.rasters.tiff_mask import TILE, palette_of


class GeoMask:
    """A MaskSink in bounded memory: GDAL keeps a row of tiles. Its file has another name until it is complete."""

    def __init__(self, path: Path, raster: Raster, classes: Classes, cog: bool = False) -> None:
        import rasterio  # noqa: PLC0415  of an extra
        import rasterio.shutil  # noqa: PLC0415

        self._rasterio, self._cog = rasterio, cog
        self._path, self._part = path, path.with_name(f"{path.name}.tmp")
        self._copy = path.with_name(f"{path.name}.cog.tmp")
        self._height, self._width, self._top = raster.height, raster.width, 0
        place = raster.georeference
        with self._reporting():
            self._data = rasterio.open(
                self._part,
                "w",
                driver="GTiff",
                height=self._height,
                width=self._width,
                count=1,
                dtype="uint8",
                crs=None if place is None else rasterio.crs.CRS.from_wkt(place.crs),
                transform=None if place is None else rasterio.Affine(*place.transform),
                nodata=NO_CLASS if len(classes.names) <= NO_CLASS else None,
                photometric="palette",
                tiled=True,
                blockxsize=TILE,
                blockysize=TILE,
                compress="deflate",
                bigtiff="if_safer",
            )
            self._data.write_colormap(1, {i: (*map(int, rgb), 255) for i, rgb in enumerate(palette_of(classes))})
            self._data.update_tags(**{f"CLASS_{index}": name for index, name in enumerate(classes.names)})

    def write(self, rows: NDArray[np.uint8]) -> None:
        assert rows.shape[1] == self._width, rows.shape
        assert self._top + len(rows) <= self._height, (self._top, len(rows), self._height)
        with self._reporting():
            window = self._rasterio.windows.Window(0, self._top, self._width, len(rows))
            self._data.write(rows, 1, window=window)
        self._top += len(rows)

    def close(self) -> None:
        assert self._top == self._height, (self._top, self._height)
        try:
            with self._reporting():
                self._data.close()
                if self._cog:
                    # Overviews in a COG come before the full level, so they need the whole mask.
                    self._rasterio.shutil.copy(
                        self._part, self._copy, driver="COG", compress="deflate", overview_resampling="nearest",
                        blocksize=TILE, bigtiff="if_safer",
                    )  # fmt: skip
            (self._copy if self._cog else self._part).replace(self._path)
        finally:
            self.abandon()

    def abandon(self) -> None:
        with contextlib.suppress(OSError, self._rasterio.errors.RasterioError):
            self._data.close()
        for path in (self._part, self._copy):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        with self._rasterio.Env(**OPTIONS), warnings.catch_warnings():
            warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)
            try:
                yield
            except self._rasterio.errors.RasterioError as error:
                reason = " ".join(str(error.__cause__ or error).split())[:200]
                raise OSError(f"cannot write {str(self._path)!r}: {reason}") from None
