"""Reads masks as class numbers, other values, or colours."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from convoy.models.data.dataset import IGNORE
from convoy.models.data.formats.coding import Coding, Kind
from convoy.models.data.picture import open_image
from convoy.models.errors import BadData

# Factor by which Pillow scales the values of a grey PNG file with fewer than 8 bits per pixel.
_SPREAD = {"L": 1, "L;2": 85, "L;4": 17}
_SHOWN = 8  # maximum values or colours that a message lists


def read(path: Path, coding: Coding | None = None) -> NDArray[np.uint8]:
    """Returns the class of each pixel, (H, W), 255 for none. Without a coding, the class is the palette index or the
    grey value. Raises BadData."""
    with open_image(path) as image:
        if coding is not None and coding.kind == "colours":
            return _decoded(coding, path, _colours(path, image))
        values = _values(path, image)
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


def _values(path: Path, image: Image.Image) -> NDArray[np.generic]:
    """Returns the numbers in the file, without Pillow's scaling of low bit depths or copies in other channels."""
    if isinstance(image, PngImageFile):
        spread = {_SPREAD.get(str(tile[3])) for tile in image.tile}
        if image.mode == "L" and spread <= set(_SPREAD.values()) and len(spread) == 1:
            (by,) = spread
            return np.asarray(image) // np.uint8(by or 1)
        if image.mode in ("P", "1"):
            return np.asarray(image).astype(np.uint8)
        if image.mode.startswith("I;16"):
            return np.asarray(image)
        if image.mode in ("LA", "RGB", "RGBA"):
            return _grey(path, image)
    raise _other_kind(path, image)


def _grey(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    colours = _rgb_of(path, image)
    grey: NDArray[np.uint8] = colours[..., 0]
    if not (colours == grey[..., None]).all():
        packed = [int(value) for value in np.unique(_packed(colours))]
        raise BadData(
            f"mask {path} has {_listed('colours', packed)}, want a PNG file with the number of its class for each "
            "pixel, or --mask-colours with the colours of the classes in order"
        )
    return grey


def _colours(path: Path, image: Image.Image) -> NDArray[np.uint32]:
    if not isinstance(image, PngImageFile) or image.mode.startswith("I"):
        raise _other_kind(path, image)
    return _packed(_rgb_of(path, image))


def _rgb_of(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    if isinstance(image, PngImageFile) and any(str(tile[3]).endswith(";16B") for tile in image.tile):
        # Pillow drops the low bits.
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
