"""Reads masks as class numbers, other values, or colours."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from convoy.models.data.dataset import IGNORE
from convoy.models.data.formats.coding import Coding, Kind
from convoy.models.data.picture import open_image
from convoy.models.errors import BadData

# Factor by which Pillow scales the values of a grey file with fewer than 8 bits per pixel, by the file's bits.
_SPREAD = {2: 85, 4: 17}
# Every value is in the file as it was painted. JPEG changes it, WebP may; GIF gets a new palette when it is saved.
_LOSSLESS = ("PNG", "TIFF", "BMP")
_IN_COLOUR = ("RGB", "RGBA")
_BITS_PER_SAMPLE = 258  # TIFF's tag
_SHOWN = 8  # maximum values or colours that a message lists


def read(path: Path, coding: Coding | None = None) -> NDArray[np.uint8]:
    """Returns the class of each pixel, (H, W), 255 for none. Without a coding, the class is the palette index or the
    grey value. Raises BadData."""
    with open_image(path) as image:
        if coding is not None and coding.kind == "colours":
            return _decoded(coding, path, _colours(path, image))
        values = _values(path, image)
    return classes_of(path, values, coding)


def classes_of(path: Path, values: NDArray[Any], coding: Coding | None) -> NDArray[np.uint8]:
    """Returns the class of each pixel, (H, W), of values 0..65535 as they are in a file, (H, W), or of colours,
    (H, W, 3), if the coding is of colours or they are grey. Raises BadData."""
    if values.ndim == 3 and coding is not None and coding.kind == "colours":
        return _decoded(coding, path, _packed(values))
    if values.ndim == 3:
        values = _one_of_three(path, values)
    if coding is not None:
        return _decoded(coding, path, values)
    if values.max(initial=0) > IGNORE:
        raise BadData(
            f"mask {path} has {_listed('values', [int(value) for value in np.unique(values)])}, want the number of its "
            f"class for each pixel, 0 to {IGNORE}, or --mask-values"
        )
    return values.astype(np.uint8)


def _decoded(coding: Coding, path: Path, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Maps values to the class of each pixel, (H, W). Raises BadData if a value has no class; in a coding by values,
    255 defaults to IGNORE."""
    table = dict(coding.classes)
    if coding.kind == "values":
        table.setdefault(IGNORE, IGNORE)
    values, places = np.unique(pixels, return_inverse=True)
    unknown = [int(value) for value in values if int(value) not in table]
    if unknown:
        raise BadData(
            f"mask {path} has {_listed(coding.kind, unknown)}, want only those of --mask-{coding.kind} {coding}"
        )
    return np.array([table[int(value)] for value in values], np.uint8)[places].reshape(pixels.shape)


def colours(path: Path) -> set[int] | None:
    """Returns the colours of a mask, 0xRRGGBB; None if the file has other pixels or cannot be read."""
    try:
        with open_image(path) as image:
            return set(np.unique(_colours(path, image)).tolist()) if image.mode in _IN_COLOUR else None
    except BadData:
        return None


def _values(path: Path, image: Image.Image) -> NDArray[np.generic]:
    """Returns the numbers in the file, without Pillow's scaling of low bit depths or copies in other channels."""
    _check_lossless(path, image)
    bits = _bits(image)
    if image.mode == "L":
        return np.asarray(image) // np.uint8(_SPREAD.get(bits, 1))
    if image.mode in ("P", "1"):
        return np.asarray(image).astype(np.uint8)
    if image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode == "I":
        values = np.asarray(image)
        if values.min(initial=0) >= 0 and values.max(initial=0) <= 65_535:
            return values.astype(np.uint16)
    if image.mode in ("LA", *_IN_COLOUR):
        return _grey(path, image)
    raise _other_kind(path, image)


def _bits(image: Image.Image) -> int:
    """Returns the bits per channel in the file, where Pillow does not change them: then 8."""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))))
    if isinstance(image, PngImageFile):
        # From Pillow's name of the file's pixels, such as L;4 or RGB;16B.
        modes = {str(tile[3]).partition(";")[2].rstrip("B") for tile in image.tile}
        return max((int(mode) for mode in modes if mode.isdecimal()), default=8)
    return 8


def _check_lossless(path: Path, image: Image.Image) -> None:
    if image.format not in _LOSSLESS:
        raise BadData(
            f"mask {path} is {image.format}, which does not keep every value when it is saved, want PNG, TIFF or BMP: "
            "save it as PNG where it was painted"
        )


def _grey(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    return _one_of_three(path, _rgb_of(path, image))


def _one_of_three(path: Path, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey: NDArray[np.uint8] = colours[..., 0]
    if not (colours == grey[..., None]).all():
        packed = [int(value) for value in np.unique(_packed(colours))]
        raise BadData(
            f"mask {path} has {_listed('colours', packed)}, want a PNG file with the number of its class for each "
            "pixel, or --mask-colours with the colours of the classes in order"
        )
    return grey


def _colours(path: Path, image: Image.Image) -> NDArray[np.uint32]:
    _check_lossless(path, image)
    if image.mode.startswith("I") or image.mode == "F":
        raise _other_kind(path, image)
    return _packed(_rgb_of(path, image))


def _rgb_of(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    if _bits(image) > 8:  # Pillow drops the low ones
        raise BadData(f"mask {path} has colours of 16 bits, want 8: the low ones would be lost")
    if image.mode in ("LA", "RGBA"):
        low, _ = image.getchannel("A").getextrema()
        if low != 255:
            raise BadData(f"mask {path} is transparent in places, want the class of each pixel")
    return np.asarray(image.convert("RGB"))


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    wide = colours.astype(np.uint32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], np.uint32)


def _listed(kind: Kind, values: list[int]) -> str:
    shown = [f"#{value:06x}" if kind == "colours" else str(value) for value in values[:_SHOWN]]
    return f"the {kind} {', '.join(shown)}" + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")


def _other_kind(path: Path, image: Image.Image) -> BadData:
    return BadData(
        f"mask {path} is {image.format} with pixels of kind {image.mode}, want a PNG file with a palette: "
        "the number of its class for each pixel"
    )
