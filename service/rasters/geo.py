"""Pictures with a place on the earth, in windows, by rasterio: GeoTIFF, COG, JPEG 2000, ERDAS Imagine."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadImage
from convoy.service.rasters.raster import Georeference, Ground
from convoy.service.rasters.samples import Closing, Stretch, check_kind, check_window, eight_bits

# By the suffix; all others are GeoTIFF. Not all that GDAL opens: some formats are lists of other files, or of addresses
# that it would fetch.
_DRIVERS = {".jp2": "JP2OpenJPEG", ".img": "HFA"}
# Megabytes of GDAL's cache of blocks, by default a twentieth of the memory; and no look at the files beside.
OPTIONS = {"GDAL_CACHEMAX": 128, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}

MAX_BLOCK_BYTES = 64 << 20  # of one band


class GeoRaster(Closing):
    """A raster of GDAL: one band is grey, a palette or the first three are RGB. Raises BadImage."""

    def __init__(self, path: Path, stretch: Stretch | None = None) -> None:
        self._name, self._stretch = repr(str(path)), stretch
        import rasterio  # noqa: PLC0415  of an extra

        self._rasterio = rasterio
        path.stat()
        with self._reporting():
            self._data = rasterio.open(path, driver=_DRIVERS.get(path.suffix.lower(), "GTiff"))
        try:
            with self._reporting():
                self._choose()
        except BaseException:
            self._data.close()
            raise

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self, top, left, height, width)
        samples = self.stored(top, left, height, width)
        if self._palette is not None:
            colours: NDArray[np.uint8] = self._palette[samples[..., 0]]
            return colours
        return eight_bits(samples, self._bits, self._stretch)

    def stored(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Returns a window as it is stored, (height, width, bands): indices of a palette, any kind of number."""
        with self._reporting():
            values = self._data.read(self._bands, window=self._window(top, left, height, width))
        return np.ascontiguousarray(np.moveaxis(values, 0, -1))

    @property
    def palette(self) -> NDArray[np.uint8] | None:
        """The colours of a palette, (n, 3)."""
        return None if self._palette is None else self._palette[:256]

    def absent(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """Returns where GDAL's mask is 0: by the value for no data, by alpha or by a mask of the file's own."""
        check_window(self, top, left, height, width)
        if not self._masked:
            return None
        with self._reporting():
            valid = self._data.dataset_mask(window=self._window(top, left, height, width))
        gone: NDArray[np.bool_] = valid == 0
        return gone if gone.any() else None

    def close(self) -> None:
        self._data.close()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        with self._rasterio.Env(**OPTIONS), warnings.catch_warnings():
            warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)
            try:
                yield
            except (BadImage, KeyboardInterrupt):
                raise
            except Exception as error:  # GDAL's errors are of many classes
                reason = " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
                raise BadImage(f"{self._name} cannot be read: {reason}") from None

    def _window(self, top: int, left: int, height: int, width: int) -> Any:
        return self._rasterio.windows.Window(left, top, width, height)

    def _choose(self) -> None:
        data, colour = self._data, self._rasterio.enums.ColorInterp
        self.height, self.width = data.height, data.width
        kinds = dict(zip(data.indexes, data.colorinterp, strict=True))
        colours = [index for index, kind in kinds.items() if kind != colour.alpha]
        bands = {kind: index for index, kind in reversed(kinds.items())}
        rgb = [bands.get(one, 0) for one in (colour.red, colour.green, colour.blue)]
        self._bands = rgb if all(rgb) else colours[: 3 if len(colours) >= 3 else 1]
        if not self._bands:
            raise BadImage(f"{self._name} has no band of colour or grey")
        dtype = np.dtype(data.dtypes[self._bands[0] - 1])
        check_kind(self._name, dtype, self._stretch)
        high, wide = data.block_shapes[self._bands[0] - 1]
        size = high * wide * dtype.itemsize
        if size > MAX_BLOCK_BYTES:
            raise BadImage(
                f"{self._name} is stored in pieces of {size >> 20} MB a band, want at most {MAX_BLOCK_BYTES >> 20} MB: "
                "save it in tiles"
            )
        self._bits = 8 * dtype.itemsize
        bits = data.tags(self._bands[0], ns="IMAGE_STRUCTURE").get("NBITS")
        if bits is not None and dtype.kind == "u":
            self._bits = int(bits)
        self._palette = self._colours(kinds, colour.palette)
        self.channels = 3 if len(self._bands) == 3 or self._palette is not None else 1
        flags = self._rasterio.enums.MaskFlags
        self._masked = any(flags.all_valid not in data.mask_flag_enums[band - 1] for band in self._bands)
        which = ", ".join(map(str, self._bands))
        self.notes = () if len(colours) <= len(self._bands) else (f"bands {which} of {data.count} are read",)
        self.georeference = self._place()
        self.ground = self._ground()

    def _colours(self, kinds: dict[int, Any], palette: Any) -> NDArray[np.uint8] | None:
        if len(self._bands) != 1 or kinds[self._bands[0]] != palette:
            return None
        table = np.zeros((65_536, 3), np.uint8)
        for index, entry in self._data.colormap(self._bands[0]).items():
            table[index] = entry[:3]
        return table

    def _place(self) -> Georeference | None:
        if self._data.crs is None:
            return None
        a, b, c, d, e, f = self._data.transform[:6]
        return Georeference(self._data.crs.to_wkt(), (a, b, c, d, e, f))

    def _ground(self) -> Ground | None:
        if self.georeference is None:
            return None
        a, b, _, d, e, _ = self.georeference.transform
        width, height = math.hypot(a, d), math.hypot(b, e)
        if self._data.crs.is_geographic:
            return Ground(width, height, "degree")
        if not self._data.crs.is_projected:
            return None
        _, metres = self._data.crs.linear_units_factor
        return Ground(width * metres, height * metres, "m")
