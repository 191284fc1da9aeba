"""What a large picture is to the code that tiles it, and where its mask goes."""

from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

NO_CLASS = 255  # in a mask: where the picture has no data


class Ground(NamedTuple):
    """The size of a pixel, in a unit of length."""

    width: float
    height: float
    unit: str  # "m", "um" or "degree"


class Georeference(NamedTuple):
    """Where a picture lies on the earth.

    crs        the coordinate reference system, as WKT
    transform  a, b, c, d, e, f: pixel (column, row) lies at x = a column + b row + c, y = d column + e row + f; the
               coordinates of a pixel are those of its top left corner
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]


class Classes(NamedTuple):
    """The classes of a mask: the name and the (red, green, blue) of each."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]


class Raster(Protocol):
    """A picture of any size. One caller at a time.

    channels      1 is grey, 3 is RGB
    notes         what was left out or converted, for a person: a line each
    ground        the size of a pixel, where the file says it
    georeference  where the file has one
    """

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def ground(self) -> Ground | None: ...
    @property
    def georeference(self) -> Georeference | None: ...

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Returns the pixels of a window inside the picture: uint8 (height, width, channels). Raises BadImage."""

    def absent(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """Returns where a window has no data, bool (height, width); None: nowhere. Raises BadImage."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class MaskSink(Protocol):
    """Where the rows of a mask go, from top to bottom. Nothing has its final name before `close`."""

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Appends rows: uint8 (any number, width), class indices, NO_CLASS where `Raster.absent`. Raises OSError."""

    def close(self) -> None:
        """Completes the file. Raises OSError."""

    def abandon(self) -> None:
        """Ends without a file of the final name."""
