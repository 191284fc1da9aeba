"""Samples of any kind as pixels of 8 bits, grey or RGB, as servers and training make them of small pictures."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadImage
from convoy.service.rasters.raster import Raster


class Stretch(NamedTuple):
    """The values that become black and white; what lies beyond them is cut off, what lies between is linear."""

    low: float
    high: float


class Closing:
    """`with` for a raster: closes it at the end."""

    def close(self) -> None:
        """Nothing to close, unless a reader says so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_kind(name: str, dtype: np.dtype[np.generic], stretch: Stretch | None) -> None:
    """Raises BadImage for samples that are no pixels without a stretch."""
    if stretch is None and dtype not in (np.uint8, np.uint16, np.bool_):
        raise BadImage(f"{name} has samples of {dtype}, want 8 or 16 bits without a sign, or --range LOW:HIGH")
    if dtype.kind not in "buif":
        raise BadImage(f"{name} has samples of {dtype}, want real numbers")


def eight_bits(values: NDArray[np.generic], bits: int, stretch: Stretch | None) -> NDArray[np.uint8]:
    """Samples of `bits` as 0..255: by the stretch, otherwise by their full range, rounded."""
    if stretch is not None:
        scale = 255 / (stretch.high - stretch.low)
        scaled = np.nan_to_num((values.astype(np.float32) - np.float32(stretch.low)) * np.float32(scale), posinf=255.0)
        stretched: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
        return stretched
    if bits == 8 and values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    most = 2**bits - 1
    full: NDArray[np.uint8] = ((values.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)
    return full


def on_white(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8], premultiplied: bool = False) -> NDArray[np.uint8]:
    """Pixels (h, w, channels) on white paper. alpha (h, w), 255 is opaque."""
    cover = alpha[..., None].astype(np.uint16)
    colour = pixels.astype(np.uint16) * 255 if premultiplied else pixels * cover
    # 16 bits have room for it: 255 * 255 + 127.
    both: NDArray[np.uint8] = ((np.minimum(colour, 255 * cover) + 255 * (255 - cover) + 127) // 255).astype(np.uint8)
    return both


def check_window(raster: Raster, top: int, left: int, height: int, width: int) -> None:
    """Asserts that a window lies inside the picture."""
    assert 0 <= top <= top + height <= raster.height, (top, height, raster.height)
    assert 0 <= left <= left + width <= raster.width, (left, width, raster.width)
