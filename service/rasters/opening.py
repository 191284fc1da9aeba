"""Opens a picture of any size with the reader that suits it, among those that are installed."""

import importlib.util
import struct
from pathlib import Path

from convoy.service.errors import BadImage
from convoy.service.rasters.raster import Raster
from convoy.service.rasters.samples import Stretch

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
_ONLY_SLIDES = (".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")  # those that no other reader reads
_GEO = (".jp2", ".img")
_GEO_KEYS = 34735
_ENTRIES = 4096  # of a TIFF directory, at most


def opened(path: Path, *, plane: int = 0, stretch: Stretch | None = None) -> Raster:
    """Opens a picture, by its content and by what is installed.

    plane    which picture of a file with several: the planes of a TIFF or OME-TIFF in the order of the file
    stretch  the values that become 0 and 255; needed for samples other than 8 or 16 bits without a sign

    Raises BadImage, which names the extra that would read it if none does; OSError.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if path.suffix.lower() in _SLIDES and plane == 0 and _has("openslide"):
        from convoy.service.rasters.slides import SlideRaster  # noqa: PLC0415  of an extra

        return SlideRaster(path)
    if path.suffix.lower() in _ONLY_SLIDES:
        raise BadImage(f"{str(path)!r} is a scanned slide: to read it, pip install 'convoy[slides]'")
    if start.startswith(_TIFF):
        return _tiff(path, plane, stretch)
    if path.suffix.lower() in _GEO and _has("rasterio"):
        return _geo(path, stretch)
    if plane or stretch is not None:
        raise BadImage(f"{str(path)!r} is not TIFF: --plane and --range are of TIFF files")
    from convoy.service.rasters.pillow import PillowRaster  # noqa: PLC0415  Pillow loads its formats

    return PillowRaster(path)


def _tiff(path: Path, plane: int, stretch: Stretch | None) -> Raster:
    if _is_placed(path) and _has("rasterio") and plane == 0:
        return _geo(path, stretch)
    if _has("tifffile"):
        from convoy.service.rasters.tiff import TiffRaster  # noqa: PLC0415  of an extra

        return TiffRaster(path, plane, stretch)
    if _has("rasterio") and plane == 0:
        return _geo(path, stretch)
    if plane or stretch is not None:
        raise BadImage(f"{str(path)!r}: --plane and --range need more than Pillow: pip install 'convoy[tiff]'")
    from convoy.service.rasters.pillow import PillowRaster  # noqa: PLC0415  see `opened`

    try:
        return PillowRaster(path)
    except BadImage as error:
        raise BadImage(f"{error.message}; to read it in windows, pip install 'convoy[tiff]'") from None


def _geo(path: Path, stretch: Stretch | None) -> Raster:
    from convoy.service.rasters.geo import GeoRaster  # noqa: PLC0415  of an extra

    return GeoRaster(path, stretch)


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _is_placed(path: Path) -> bool:
    """Whether the first directory of a TIFF file (TIFF 6.0, section 2; BigTIFF) has the keys of GeoTIFF."""
    with path.open("rb") as file:
        start = file.read(16)
        order = "<" if start[:2] == b"II" else ">"
        big = b"+" in start[2:4]
        counting, entry = (f"{order}Q", 20) if big else (f"{order}H", 12)
        try:
            (place,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", start, 8 if big else 4)
            file.seek(place)
            (count,) = struct.unpack(counting, file.read(struct.calcsize(counting)))
            entries = file.read(entry * min(count, _ENTRIES))
        except (struct.error, OSError, OverflowError):
            return False
    tags = [struct.unpack_from(f"{order}H", entries, at)[0] for at in range(0, len(entries) - entry + 1, entry)]
    return _GEO_KEYS in tags
