"""The areas of a mask's classes as polygons with holes, along the edges of its pixels.

GDAL reads the mask file line by line; what is in memory are the polygons.
"""

import importlib.util
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadConfig
from convoy.service.rasters.areas import row_areas
from convoy.service.rasters.geo import OPTIONS
from convoy.service.rasters.raster import NO_CLASS, Classes, Raster

_POLYGON = 3  # shapely.GeometryType.POLYGON


class Polygons(NamedTuple):
    """The connected areas of the classes. Pixels that touch at a corner alone are not connected.

    classes  (n,) class indices
    shapes   (n,) of shapely; x is the column, y the row
    pixels   (n,) how many there are in each, before simplification
    areas    (n,) in m2 or um2, before simplification; None if the size of pixels is unknown
    """

    classes: NDArray[np.uint8]
    shapes: NDArray[Any]
    pixels: NDArray[np.int64]
    areas: NDArray[np.float64] | None


def check_installed() -> None:
    """Raises BadConfig where the packages that polygons need are missing: before a mask is computed."""
    if any(importlib.util.find_spec(package) is None for package in ("rasterio", "shapely")):
        raise BadConfig("--polygons needs rasterio and shapely: pip install 'convoy[geo]'")


def traced(
    mask: Path, raster: Raster, classes: Classes, left_out: frozenset[int] = frozenset(), simplify: float = 0.0
) -> Polygons:
    """The polygons of a mask file.

    left_out  classes without polygons; NO_CLASS never has one, unless it is a class
    simplify  vertices are removed while they change the outline by less than a triangle of this length squared, in
              pixels; neighbours keep their common borders. 0 keeps the edges of the pixels
    """
    import shapely  # noqa: PLC0415  of an extra

    numbers, shapes = _shapes(mask)
    pixels = np.rint(shapely.area(shapes)).astype(np.int64)
    rows = row_areas(raster)
    areas = None if rows is None else _areas(shapes, rows)
    if simplify > 0 and len(shapes):
        # With those that are left out: borders with them are simplified like all others.
        shapes = shapely.coverage_simplify(_noded(shapes), simplify)
    if len(classes.names) <= NO_CLASS:
        left_out |= {NO_CLASS}
    kept = ~np.isin(numbers, list(left_out))
    return Polygons(numbers[kept], shapes[kept], pixels[kept], None if areas is None else areas[kept])


def _shapes(mask: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    import rasterio.features  # noqa: PLC0415  see `traced`
    import shapely  # noqa: PLC0415

    numbers, rings, of_polygon, coordinates = [], [0], [0], []
    with rasterio.Env(**OPTIONS), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        # In pixels: otherwise GDAL would place the polygons.
        data = rasterio.open(mask, GEOREF_SOURCES="NONE")
    with rasterio.Env(**OPTIONS), data:
        for shape, value in rasterio.features.shapes(rasterio.band(data, 1), connectivity=4):
            numbers.append(int(value))
            for ring in shape["coordinates"]:
                coordinates.append(np.array(ring, np.float64))
                rings.append(rings[-1] + len(ring))
            of_polygon.append(len(rings) - 1)
    if not numbers:
        return np.zeros(0, np.uint8), np.zeros(0, object)
    shapes = shapely.from_ragged_array(_POLYGON, np.concatenate(coordinates), (np.array(rings), np.array(of_polygon)))
    return np.array(numbers, np.uint8), shapes


def _areas(shapes: NDArray[Any], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The areas of polygons along pixels whose areas differ by row: the integral of x over the area above y."""
    import shapely  # noqa: PLC0415  see `traced`

    if not len(shapes):
        return np.zeros(0)
    _, points, (rings, of_polygon) = shapely.to_ragged_array(shapes)
    above = np.concatenate([[0.0], np.cumsum(rows)])[points[:, 1].astype(np.intp)]
    steps = np.diff(above, append=0.0) * points[:, 0]
    steps[rings[1:] - 1] = 0  # from the end of one ring to the start of the next
    return np.abs(np.add.reduceat(steps, rings[of_polygon[:-1]]))


def _noded(shapes: NDArray[Any]) -> NDArray[Any]:
    """The same polygons, with every vertex of a neighbour on their own edges as a vertex: a coverage of shapely."""
    import shapely  # noqa: PLC0415  see `traced`

    _, points, (rings, of_polygon) = shapely.to_ragged_array(shapes)
    x, y = points.astype(np.int64).T
    side = max(x.max(), y.max()) + 1
    starts = np.ones(len(x), np.bool_)
    starts[rings[1:] - 1] = False  # the last point of a ring is its first
    start, end = np.flatnonzero(starts), np.flatnonzero(starts) + 1
    across = y[start] == y[end]
    first, counts = np.zeros(len(start), np.int64), np.zeros(len(start), np.int64)
    keys = {}
    for flat in (True, False):
        line, along = (y, x) if flat else (x, y)
        keys[flat] = np.unique(line * side + along)
        chosen = across == flat
        low = line[start] * side + np.minimum(along[start], along[end])
        high = line[start] * side + np.maximum(along[start], along[end])
        first[chosen] = np.searchsorted(keys[flat], low[chosen], "right")
        counts[chosen] = np.searchsorted(keys[flat], high[chosen], "left") - first[chosen]
    # Each edge becomes its start and the vertices on it, in its direction.
    edge = np.repeat(np.arange(len(start)), counts + 1)
    places = np.cumsum(counts + 1) - (counts + 1)
    number = np.arange(len(edge)) - places[edge]  # 0 is the start
    forward = (x[end] > x[start]) | (y[end] > y[start])
    at = np.where(forward[edge], first[edge] + number - 1, first[edge] + counts[edge] - number)
    new = np.empty((len(edge), 2), np.int64)
    for flat in (True, False):
        chosen = (number > 0) & (across[edge] == flat)
        line, along = np.divmod(keys[flat][at[chosen]], side)
        new[chosen] = np.stack([along, line] if flat else [line, along], axis=1)
    new[number == 0] = np.stack([x[start], y[start]], axis=1)
    # Back to closed rings.
    edges_before = np.concatenate([[0], np.cumsum(starts)])[rings]
    bounds = np.concatenate([places, [len(edge)]])[edges_before]
    closed = np.insert(new, bounds[1:], new[bounds[:-1]], axis=0).astype(np.float64)
    return np.asarray(shapely.from_ragged_array(_POLYGON, closed, (bounds + np.arange(len(bounds)), of_polygon)))
