"""The size limits of a picture, and its orientation: the one EXIF tag that changes what a person sees.

EXIF is a TIFF file's directory (EXIF 2.32, section 4.6; TIFF 6.0, section 2).
"""

import struct

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadImage

MAX_SIDE = 65_535  # JPEG's own limit
UPRIGHT = 1
ORIENTATION = 0x0112
# The standard wants SHORT; some phones write LONG. Any integer type that fits the entry is accepted.
INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
MAX_ENTRIES = 1000  # a camera writes a few dozen
BLOCK = 64  # columns rotated at a time


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raises BadImage unless both sides are 1 to 65535 and the image has at most `max_pixels` pixels."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise BadImage(f"image is {width}x{height} pixels, want 1 to {MAX_SIDE} a side")
    if height * width > max_pixels:
        raise BadImage(f"image is {width}x{height} = {height * width} pixels, {_at_most(max_pixels)}")


def is_too_large(error: BadImage, max_pixels: int) -> bool:
    """Whether it says that an image has more than `max_pixels`; the error may come from another process."""
    return error.message.endswith(_at_most(max_pixels))


def _at_most(pixels: int) -> str:
    return f"want at most {pixels}"


def orientation(exif: bytes | memoryview) -> int:
    """The orientation, 1 to 8, in an EXIF block (from its byte order mark on); 1 if it contains none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(exif[:4]))
    try:
        if order is None:
            return UPRIGHT
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for position in range(directory + 2, directory + 2 + 12 * min(entries, MAX_ENTRIES), 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, position)
            if tag == ORIENTATION:
                if kind not in INTEGERS or count != 1:
                    return UPRIGHT
                (value,) = struct.unpack_from(f"{order}{INTEGERS[kind]}", exif, position + 8)
                return int(value) if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # it is truncated, so it contains no orientation
        pass
    return UPRIGHT


def is_turned(orientation: int) -> bool:
    """Whether the orientation exchanges height and width."""
    return orientation >= 5


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The upright picture (H, W, C), contiguous; `pixels` itself if `orientation` is 1."""
    view = pixels.transpose(1, 0, 2) if is_turned(orientation) else pixels
    if orientation in (3, 4, 7, 8):
        view = view[::-1]
    if orientation in (2, 3, 6, 7):
        view = view[:, ::-1]
    if view is pixels:
        return pixels
    # By blocks of columns: copied whole, a rotated picture misses the cache at every pixel and takes three times as
    # long.
    turned = np.empty(view.shape, np.uint8)
    for left in range(0, view.shape[1], BLOCK):
        turned[:, left : left + BLOCK] = view[:, left : left + BLOCK]
    return turned
