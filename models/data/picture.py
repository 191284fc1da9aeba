"""Reads image files for training: any format that Pillow opens, as displayed on a white background.

JPEG and PNG files are read by serving's decoders, so that both see the same pixels and reject the same files.
"""

import contextlib
import importlib
import mimetypes
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convoy.models.data.files import nfc
from convoy.models.errors import BadData
from convoy.service.errors import BadImage
from convoy.service.images import decode
from convoy.service.images.geometry import MAX_SIDE, UPRIGHT, is_turned, orientation
from convoy.service.images.names import is_data

# Images that Pillow finds too large raise BadData. Below that a warning is pointless: the files are the user's own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# HEIC, the format of many phones: Pillow opens it if this package is installed.
with contextlib.suppress(ImportError):
    importlib.import_module("pillow_heif").register_heif_opener()

HEIC = (".heic", ".heif", ".hif")
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")
EXIF = b"Exif\0\0"
MANY = "more pixels than Pillow's limit"
# From the stored orientation to the displayed one (EXIF 2.32, section 4.6.4).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """`height` and `width` as displayed, and whether the image is grey."""

    height: int
    width: int
    grey: bool


class MaskHeader(NamedTuple):
    """`palette` is the file's own, possibly with fewer colours than classes; empty for a grey file."""

    height: int
    width: int
    palette: list[tuple[int, int, int]]


def files(folder: Path, below: bool = False) -> list[Path]:
    """Returns the image files directly in a folder, or also in the folders `below` it, by name. Skips other files,
    hidden files and those of operating systems.

    Includes images in formats that Pillow does not open, such as HEIC, and dangling links: reading them reports the
    fault.
    """
    extensions = _extensions()
    return sorted(
        path
        for path in (folder.rglob("*") if below else folder.iterdir())
        if (path.suffix.lower() in extensions or _called_picture(path))
        and is_data(path.relative_to(folder))
        and (path.is_file() or (path.is_symlink() and not path.is_dir()))
    )


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Returns image files by name without the extension, normalised by `one`. Raises BadData if two have the same
    name."""
    images: dict[str, Path] = {}
    for path in paths:
        name = nfc(path.stem)
        if name in images:
            raise BadData(f"{images[name]} and {path} have the same name, want one picture for a mask")
        images[name] = path
    return images


def header(path: Path) -> Header:
    """Returns what an image's header contains, without decoding pixels. Raises BadData."""
    data = _served(path)
    if data is not None:
        inspected = _inspected(path, data)
        return Header(inspected.height, inspected.width, inspected.grey)
    with open_image(path) as image:
        width, height = reversed(image.size) if is_turned(_orientation(image)) else image.size
        return Header(height, width, image.mode in GREY_MODES)


def read(path: Path, colour: Literal["RGB", "L"]) -> NDArray[np.uint8]:
    """Returns the pixels, (H, W, 3) RGB or (H, W, 1) luma of ITU-R BT.601: rotated by EXIF orientation, transparency on
    white, 16 bits scaled to 8, the first frame of an animation. Raises BadData."""
    data = _served(path)
    if data is not None:
        _inspected(path, data)
        try:
            return np.require(decode.decode(data, colour, MAX_SIDE**2).pixels, requirements=["C", "W"])
        except BadImage as error:
            raise _unreadable(path, error) from error
    with open_image(path) as image:
        turn = TURNS.get(_orientation(image))
        pixels = _opaque(_eight_bits(path, image))
        if pixels.mode != colour:
            # Through RGB: there is no direct conversion from CMYK to grey.
            pixels = pixels.convert("RGB").convert(colour)
        if turn is not None:
            pixels = pixels.transpose(turn)
        return np.array(pixels).reshape(pixels.height, pixels.width, -1)


def mask_header(path: Path) -> MaskHeader:
    """Returns a mask file's size and palette, without decoding pixels. Raises BadData."""
    with open_image(path) as image:
        flat = image.getpalette("RGB") if image.mode == "P" else None
        palette = [(red, green, blue) for red, green, blue in zip(*[iter(flat or [])] * 3, strict=True)]
        return MaskHeader(image.height, image.width, palette)


def _called_picture(path: Path) -> bool:
    kind, _ = mimetypes.guess_type(path.name, strict=False)
    return kind is not None and kind.startswith("image/")


def _extensions() -> set[str]:
    return {extension for extension, name in Image.registered_extensions().items() if name in Image.OPEN}


def _served(path: Path) -> bytes | None:
    """Returns the bytes of a file that serving accepts; None for other formats, and for files that cannot be opened."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
            return start + file.read() if decode.is_supported(start) else None
    except (OSError, ValueError):
        return None


def _inspected(path: Path, data: bytes) -> decode.Header:
    # The limit is that of the other formats; a server's limit is a setting of its own.
    try:
        header = decode.inspect(data, MAX_SIDE**2)
    except BadImage as error:
        raise _unreadable(path, error) from error
    if Image.MAX_IMAGE_PIXELS and header.height * header.width > 2 * Image.MAX_IMAGE_PIXELS:
        raise BadData(f"{path} cannot be read ({MANY}), want a picture")
    return header


def _unreadable(path: Path, error: BadImage) -> BadData:
    return BadData(f"{path} cannot be read ({error.message}), want a picture")


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Opens an image without decoding its pixels. Exceptions inside the block become BadData, too."""
    try:
        with Image.open(path) as image:
            yield image
    except BadData:
        raise
    except Exception as error:  # decoders raise exceptions of any class
        many = MANY if isinstance(error, Image.DecompressionBombError) else None
        unsupported = None if path.suffix.lower() in _extensions() else "of a kind that Pillow does not open"
        if unsupported and path.suffix.lower() in HEIC:
            unsupported += "; with HEIC files, pip install pillow-heif"
        why = getattr(error, "strerror", None) or many or unsupported or "damaged, or no picture"
        raise BadData(f"{path} cannot be read ({why}), want a picture") from error


def _orientation(image: Image.Image) -> int:
    # Not getexif(): it reads a whole PNG file to find EXIF, and also uses XMP, which serving ignores.
    if image.format == "TIFF":  # Pillow rotates these itself
        return UPRIGHT
    return orientation(bytes(image.info.get("exif", b"")).removeprefix(EXIF))


def _eight_bits(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # 65535 is 255 * 257; rounded, as in serving.
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadData(f"{path} has 32 bits a pixel, want 8 or 16")
    return image


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image)
    return paper
