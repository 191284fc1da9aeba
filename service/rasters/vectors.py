"""Files of polygons: GeoJSON (RFC 7946), GeoJSON as QuPath reads it, and GeoPackage (OGC 12-128r19)."""

import contextlib
import json
import os
import sqlite3
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadConfig
from convoy.service.rasters.areas import unit_of
from convoy.service.rasters.polygons import Polygons
from convoy.service.rasters.raster import Classes, Georeference, Raster

GEOJSON, GEOPACKAGE = (".geojson", ".json"), (".gpkg",)
_DIGITS = 8  # of degrees: a millimetre
_UNDEFINED = -1  # GeoPackage: the coordinates of no known system
_OWN = 100_000  # GeoPackage: a system without a number of EPSG


def check_name(path: Path) -> None:
    """Raises BadConfig for a file of another format, or in a folder that does not exist."""
    if path.suffix.lower() not in GEOJSON + GEOPACKAGE:
        raise BadConfig(f"--polygons {str(path)!r}, want a name that ends in .geojson, .json or .gpkg")
    if not path.parent.is_dir():
        raise BadConfig(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")


def write(path: Path, polygons: Polygons, raster: Raster, classes: Classes, qupath: bool = False) -> None:
    """Writes polygons in the format that the name says. Raises OSError.

    GeoJSON is in longitudes and latitudes of WGS 84; for QuPath, and of a picture without a place on the earth, in
    pixels.
    GeoPackage is in the picture's own coordinates; without a place in pixels, y upwards, as QGIS shows such a picture.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix.lower() in GEOPACKAGE:
            _write_geopackage(part, polygons, raster, classes)
        else:
            in_pixels = qupath or raster.georeference is None
            features = _qupath(polygons, raster, classes) if in_pixels else _rfc_7946(polygons, raster, classes)
            _write_geojson(part, features)
        part.replace(path)
    except sqlite3.Error as error:
        raise OSError(f"cannot write {str(path)!r}: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def _write_geojson(path: Path, features: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(features):
            file.write(f"{',' if number else ''}\n{feature}")
        file.write("\n]}\n")


def _rfc_7946(polygons: Polygons, raster: Raster, classes: Classes) -> Iterator[str]:
    import shapely  # noqa: PLC0415  of an extra

    assert raster.georeference is not None
    placed = _placed(polygons.shapes, raster.georeference, degrees=True)
    # Outlines counterclockwise, holes clockwise: section 3.1.6.
    shapes = shapely.orient_polygons(shapely.transform(placed, lambda points: np.round(points, _DIGITS)))
    for number, geometry in enumerate(shapely.to_geojson(shapes)):
        yield _feature(geometry, _properties(polygons, number, raster, classes))


def _qupath(polygons: Polygons, raster: Raster, classes: Classes) -> Iterator[str]:
    import shapely  # noqa: PLC0415  see `_rfc_7946`

    for number, geometry in enumerate(shapely.to_geojson(polygons.shapes)):
        index = int(polygons.classes[number])
        measurements: dict[str, float] = {"pixels": int(polygons.pixels[number])}
        if polygons.areas is not None:
            measurements[f"area {unit_of(raster)}"] = float(polygons.areas[number])
        classification = {"name": classes.names[index], "color": list(classes.colours[index])}
        yield _feature(
            geometry, {"objectType": "annotation", "classification": classification, "measurements": measurements}
        )


def _feature(geometry: str, properties: dict[str, Any]) -> str:
    words = json.dumps(properties, ensure_ascii=False)
    return f'{{"type": "Feature", "properties": {words}, "geometry": {geometry}}}'


def _properties(polygons: Polygons, number: int, raster: Raster, classes: Classes) -> dict[str, Any]:
    index = int(polygons.classes[number])
    properties: dict[str, Any] = {
        "class": index,
        "name": classes.names[index],
        "colour": "#{:02x}{:02x}{:02x}".format(*classes.colours[index]),
        "pixels": int(polygons.pixels[number]),
    }
    if polygons.areas is not None:
        properties[f"area_{unit_of(raster)}"] = float(polygons.areas[number])
    return properties


def _placed(shapes: NDArray[Any], place: Georeference, degrees: bool) -> NDArray[Any]:
    """Polygons in the coordinates of their system, or in longitudes and latitudes."""
    import rasterio.warp  # noqa: PLC0415  of an extra
    import shapely  # noqa: PLC0415

    a, b, c, d, e, f = place.transform
    system, wgs_84 = rasterio.crs.CRS.from_wkt(place.crs), rasterio.crs.CRS.from_epsg(4326)

    def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points.T
        x, y = a * x + b * y + c, d * x + e * y + f
        if degrees and system != wgs_84:
            x, y = rasterio.warp.transform(system, wgs_84, x, y)
        return np.stack([x, y], axis=1)

    return np.asarray(shapely.transform(shapes, moved))


_TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
  organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
  description TEXT DEFAULT '', last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
  min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
  CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL,
  geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
  CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name),
  CONSTRAINT uk_gc_table_name UNIQUE (table_name),
  CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
  CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys (srs_id));
CREATE TABLE classes (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON, class INTEGER, name TEXT,
  colour TEXT, pixels INTEGER, area DOUBLE, unit TEXT);
PRAGMA application_id = 1196444487;
PRAGMA user_version = 10300;
"""


def _write_geopackage(path: Path, polygons: Polygons, raster: Raster, classes: Classes) -> None:
    import shapely  # noqa: PLC0415  of an extra

    systems, srs_id = _systems(raster.georeference)
    if raster.georeference is not None:
        shapes = _placed(polygons.shapes, raster.georeference, degrees=False)
    else:
        shapes = shapely.transform(polygons.shapes, lambda points: points * [1, -1])
    bounds = shapely.bounds(shapes)
    low, high = bounds[:, :2], bounds[:, 2:]
    whole = [*low.min(axis=0).tolist(), *high.max(axis=0).tolist()] if len(shapes) else [None] * 4
    rows = (
        (_blob(wkb, box, srs_id), *(properties[key] for key in ("class", "name", "colour", "pixels")), area, unit)
        for number, (wkb, box) in enumerate(zip(shapely.to_wkb(shapes, byte_order=1), bounds, strict=True))
        for properties in [_properties(polygons, number, raster, classes)]
        for area, unit in [_area(polygons, number, raster)]
    )
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.executescript(_TABLES)
        base.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", systems)
        base.execute(
            "INSERT INTO gpkg_contents VALUES ('classes', 'features', 'classes', '', ?, ?, ?, ?, ?, ?)",
            (datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"), *whole, srs_id),
        )
        base.execute("INSERT INTO gpkg_geometry_columns VALUES ('classes', 'geom', 'POLYGON', ?, 0, 0)", (srs_id,))
        base.executemany("INSERT INTO classes VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", rows)
        base.commit()


def _area(polygons: Polygons, number: int, raster: Raster) -> tuple[float | None, str | None]:
    return (None, None) if polygons.areas is None else (float(polygons.areas[number]), unit_of(raster))


def _blob(wkb: bytes, box: NDArray[np.float64], srs_id: int) -> bytes:
    """Clause 2.1.3: a header with the envelope, little end first."""
    west, south, east, north = box.tolist()
    return struct.pack("<2sBBi4d", b"GP", 0, 0b11, srs_id, west, east, south, north) + wkb


def _systems(place: Georeference | None) -> tuple[list[tuple[str, int, str, int, str, str]], int]:
    """The rows of coordinate reference systems, and the number of the picture's."""
    import rasterio.crs  # noqa: PLC0415  of an extra

    wgs_84 = rasterio.crs.CRS.from_epsg(4326).to_wkt(version="WKT1_GDAL")
    rows = [
        ("WGS 84", 4326, "EPSG", 4326, wgs_84, "longitude and latitude"),
        ("Undefined Cartesian", _UNDEFINED, "NONE", -1, "undefined", "pixels"),
        ("Undefined geographic", 0, "NONE", 0, "undefined", ""),
    ]
    if place is None:
        return rows, _UNDEFINED
    system = rasterio.crs.CRS.from_wkt(place.crs)
    code = system.to_epsg()
    if code == 4326:
        return rows, 4326
    name, organisation, number = (f"EPSG:{code}", "EPSG", code) if code else ("the picture's own", "NONE", _OWN)
    try:
        definition = system.to_wkt(version="WKT1_GDAL")
    except rasterio.errors.CRSError:  # what the older form cannot say
        definition = system.to_wkt()
    return [*rows, (name, number, organisation, number, definition, "")], number
