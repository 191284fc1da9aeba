"""The area of each class of a mask, in pixels and on the ground."""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from convoy.service.rasters.raster import NO_CLASS, Classes, Raster

# The ellipsoid of WGS 84; that of GRS 80 differs in the tenth digit.
_A, _F = 6_378_137.0, 1 / 298.257223563
_E2 = _F * (2 - _F)
SQUARE = {"m": "m2", "um": "um2", "degree": "m2"}  # the unit of areas, by the unit of lengths


class ClassArea(msgspec.Struct, frozen=True):
    """`share` is of the pixels with a class. `area`, in `unit`, is None if the size of the pixels is unknown."""

    index: int
    name: str
    pixels: int
    share: float
    area: float | None
    unit: str


class Areas:
    """Counts the pixels of each class, row by row."""

    def __init__(self, raster: Raster, classes: Classes) -> None:
        self._classes, self._rows = classes, row_areas(raster)
        self._unit = unit_of(raster)
        self._counts = np.zeros(256, np.int64)
        self._areas = np.zeros(256)
        self._top = 0

    def write(self, rows: NDArray[np.uint8]) -> None:
        for row in rows:
            counts = np.bincount(row, minlength=256)
            self._counts += counts
            if self._rows is not None:
                self._areas += counts * self._rows[self._top]
            self._top += 1

    def results(self) -> list[ClassArea]:
        """All classes, in their order."""
        names = self._classes.names
        total = max(1, int(self._counts[: len(names)].sum()))
        return [
            ClassArea(
                index,
                name,
                int(self._counts[index]),
                int(self._counts[index]) / total,
                None if self._rows is None else float(self._areas[index]),
                self._unit,
            )
            for index, name in enumerate(names)
        ]

    def without(self) -> int:
        """The number of pixels of NO_CLASS."""
        return int(self._counts[NO_CLASS]) if len(self._classes.names) <= NO_CLASS else 0


def unit_of(raster: Raster) -> str:
    """The unit of areas: m2, um2, or nothing if they are known in pixels alone."""
    return "" if row_areas(raster) is None or raster.ground is None else SQUARE[raster.ground.unit]


def row_areas(raster: Raster) -> NDArray[np.float64] | None:
    """The area of one pixel in each row, (height,), in square metres or micrometres; None if it is unknown.

    In degrees, by the latitudes of the row on the ellipsoid of WGS 84, if the rows run from west to east.
    """
    ground, place = raster.ground, raster.georeference
    if ground is None:
        return None
    if ground.unit != "degree":
        return np.full(raster.height, ground.width * ground.height)
    if place is None or place.transform[1] or place.transform[3]:
        return None
    a, _, _, _, e, f = place.transform
    latitudes = np.radians(np.clip(f + e * np.arange(raster.height + 1), -90, 90))
    return abs(math.radians(a)) * np.abs(np.diff(_below(np.sin(latitudes))))


def _below(sines: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area of the ellipsoid between the equator and a latitude, per radian of longitude (Snyder 1987, 3-12)."""
    e = math.sqrt(_E2)
    return _A**2 * (1 - _E2) / 2 * (sines / (1 - _E2 * sines**2) + np.arctanh(e * sines) / e)
