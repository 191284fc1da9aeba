"""Files of masks that are written from top to bottom."""

import importlib.util
from pathlib import Path

from convoy.service.errors import BadConfig
from convoy.service.rasters.raster import Classes, MaskSink, Raster


def mask_file(path: Path, raster: Raster, classes: Classes, *, cog: bool = False) -> MaskSink:
    """A palette TIFF file, tiled and deflated, for the mask of a picture; its place on the earth is kept.

    cog  a Cloud Optimized GeoTIFF, with overviews; needs rasterio

    Pixels of NO_CLASS are marked as such, unless it is a class. Raises BadConfig, OSError.
    """
    has_rasterio = importlib.util.find_spec("rasterio") is not None
    if cog and not has_rasterio:
        raise BadConfig("--cog: a Cloud Optimized GeoTIFF needs GDAL: pip install 'convoy[geo]'")
    if not path.parent.is_dir():
        raise BadConfig(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    if cog or (raster.georeference is not None and has_rasterio):
        from convoy.service.rasters.geo_mask import GeoMask  # noqa: PLC0415  of an extra

        return GeoMask(path, raster, classes, cog)
    from convoy.service.rasters.tiff_mask import TiffMask  # noqa: PLC0415  as the other

    return TiffMask(path, raster, classes)
