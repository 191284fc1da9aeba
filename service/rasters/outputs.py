"""All that is written of one mask: the file itself, areas, an overview, polygons."""

import csv
import io
import json
import os
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadConfig
from convoy.service.rasters import polygons, vectors
from convoy.service.rasters.areas import Areas, ClassArea
from convoy.service.rasters.masks import mask_file
from convoy.service.rasters.overview import Overview
from convoy.service.rasters.raster import Classes, Raster

_AREAS = (".csv", ".json")


class Files(NamedTuple):
    """What to write. `mask` is always there; the polygons are traced in it.

    cog       the mask as a Cloud Optimized GeoTIFF
    polygons  a file of polygons: .geojson, .json or .gpkg
    qupath    GeoJSON in pixels, as QuPath reads it
    left_out  classes without polygons
    simplify  see polygons.traced, in pixels
    areas     a table of areas: .csv or .json
    overview  a PNG of the mask
    """

    mask: Path
    cog: bool = False
    polygons: Path | None = None
    qupath: bool = False
    left_out: tuple[str, ...] = ()
    simplify: float = 0.0
    areas: Path | None = None
    overview: Path | None = None


class Outputs:
    """A MaskSink that writes all of them. Raises BadConfig at once for what could not be written at the end."""

    def __init__(self, files: Files, raster: Raster, classes: Classes) -> None:
        self._files, self._raster, self._classes = files, raster, classes
        self._left_out = _check(files, classes)
        self._areas = Areas(raster, classes)
        self._overview = files.overview and Overview(files.overview, raster.height, raster.width, classes)
        self._mask = mask_file(files.mask, raster, classes, cog=files.cog)

    def write(self, rows: NDArray[np.uint8]) -> None:
        self._mask.write(rows)
        self._areas.write(rows)
        if self._overview:
            self._overview.write(rows)

    def close(self) -> None:
        """Completes the mask, then writes the others. Raises OSError."""
        self._mask.close()
        if self._files.areas is not None:
            _write(self._files.areas, _table(self._files.areas, self.areas()))
        if self._overview:
            self._overview.close()
        if self._files.polygons is not None:
            traced = polygons.traced(
                self._files.mask, self._raster, self._classes, self._left_out, self._files.simplify
            )
            vectors.write(self._files.polygons, traced, self._raster, self._classes, self._files.qupath)

    def abandon(self) -> None:
        self._mask.abandon()

    def areas(self) -> list[ClassArea]:
        """The area of each class, once all rows are written."""
        return self._areas.results()

    def written(self) -> list[Path]:
        """The files, in the order in which they are written."""
        files = self._files
        return [path for path in (files.mask, files.areas, files.overview, files.polygons) if path is not None]


def _check(files: Files, classes: Classes) -> frozenset[int]:
    """Returns the classes without polygons. Raises BadConfig."""
    if files.polygons is None:
        options = {"--qupath": files.qupath, "--leave-out": files.left_out, "--simplify": files.simplify}
        for option, given in options.items():
            if given:
                raise BadConfig(f"{option} is about polygons, want --polygons FILE too")
    else:
        vectors.check_name(files.polygons)
        polygons.check_installed()
    if files.qupath and files.polygons is not None and files.polygons.suffix.lower() in vectors.GEOPACKAGE:
        raise BadConfig(f"--qupath: QuPath reads GeoJSON, want --polygons FILE.geojson, not {str(files.polygons)!r}")
    if not (0 <= files.simplify < 1000):
        raise BadConfig(f"--simplify {files.simplify:g}, want 0 to 1000 pixels")
    unknown = [name for name in files.left_out if name not in classes.names]
    if unknown:
        raise BadConfig(f"--leave-out {unknown[0]!r}, want classes of the model: {', '.join(classes.names)[:300]}")
    if files.areas is not None and files.areas.suffix.lower() not in _AREAS:
        raise BadConfig(f"--areas {str(files.areas)!r}, want a name that ends in .csv or .json")
    if files.overview is not None and files.overview.suffix.lower() != ".png":
        raise BadConfig(f"--overview {str(files.overview)!r}, want a name that ends in .png")
    for path in (files.areas, files.overview):
        if path is not None and not path.parent.is_dir():
            raise BadConfig(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    return frozenset(index for index, name in enumerate(classes.names) if name in files.left_out)


def _table(path: Path, areas: list[ClassArea]) -> str:
    if path.suffix.lower() == ".json":
        return json.dumps([msgspec.structs.asdict(each) for each in areas], ensure_ascii=False, indent=1) + "\n"
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(ClassArea.__struct_fields__)
    rows.writerows(msgspec.structs.astuple(each) for each in areas)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
