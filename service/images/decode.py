"""Decodes the image bytes of a request to pixels: JPEG, PNG or raw, in the network's colours."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convoy.service.errors import BadImage
from convoy.service.images import jpeg, png
from convoy.service.images.geometry import UPRIGHT, check_size, is_turned, upright

Colour = Literal["RGB", "L"]

RAW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# Other formats, by (offset, first bytes), to name them in errors.
OTHER_FORMATS = [
    ("GIF", 0, b"GIF8"),
    ("WebP", 8, b"WEBP"),
    ("BMP", 0, b"BM"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("AVIF", 4, b"ftypavi"),
    ("HEIC", 4, b"ftyphei"),
    ("HEIC", 4, b"ftyphev"),
    ("HEIF", 4, b"ftypmif1"),
    ("HEIF", 4, b"ftypmsf1"),
    ("JPEG 2000", 4, b"jP  \r\n"),
    ("JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("JPEG XL", 4, b"JXL \r\n"),
    ("ICO", 0, b"\0\0\1\0"),
    ("PSD", 0, b"8BPS"),
    ("PDF", 0, b"%PDF"),
    ("SVG", 0, b"<svg"),
]


class Header(NamedTuple):
    """The header of a picture: `height` and `width` after its EXIF rotation; `grey` if stored without colour."""

    format: Literal["JPEG", "PNG"]
    height: int
    width: int
    grey: bool = False


class Picture(NamedTuple):
    """One image's pixels, (h, w, C), 0..255, and its `height` and `width` as sent, after its EXIF rotation.

    The pixels are of that size, or of a half or a quarter of it (rounded up).
    """

    pixels: NDArray[np.uint8]
    height: int
    width: int


def is_supported(data: bytes) -> bool:
    """Whether the bytes start like a JPEG or PNG file, which this module decodes."""
    return data.startswith((jpeg.SIGNATURE, png.SIGNATURE))


def inspect(data: bytes, max_pixels: int) -> Header:
    """The header of an encoded image whose structure is complete, without decoding its pixels.

    Raises BadImage for anything but a JPEG or PNG file, and for a file that is truncated, larger than `max_pixels`
    (height times width) or built to be slow.
    """
    return _read_structure(data, max_pixels)[0]


def estimate(data: bytes) -> float:
    """A rough estimate of the seconds that decoding takes, by the first bytes of a file alone; 0 for anything else."""
    if data.startswith(png.SIGNATURE):
        return png.estimate(data)
    return jpeg.estimate(data) if data.startswith(jpeg.SIGNATURE) else 0.0


def whole(height: int, width: int) -> int:
    """The `reduction` of full size: 1 for every picture."""
    return 1


def decode(data: bytes, colour: Colour, max_pixels: int, reduction: Callable[[int, int], int] = whole) -> Picture:
    """Decode a JPEG or PNG file as a person would see it on white paper.

    colour     "RGB": (H, W, 3); "L": (H, W, 1), the luma of ITU-R BT.601
    reduction  returns for a picture's height and width the factor by which both may be reduced: 1, 2 or 4. Used only
               where the format makes that cheap (JPEG); otherwise the pixels are in full size
    returns    contiguous pixels, rotated by the EXIF orientation; 16 bits are scaled to 8; may be read-only

    Raises BadImage.
    """
    header, structure = _read_structure(data, max_pixels)
    height, width = header.height, header.width
    factor = 1
    try:
        if isinstance(structure, jpeg.Structure):
            factor = _exact(reduction(height, width), structure)
            stored = jpeg.read_pixels(data, structure, colour, factor)
        else:
            stored = _in_colour(png.read_image(data, structure), colour)
        pixels = upright(stored, structure.orientation)
    except BadImage:
        raise
    except Exception:
        # Decoders raise any exception, with messages that name their own internals.
        raise BadImage(f"image is damaged: the pixels of its {header.format} file cannot be decoded") from None
    if pixels.shape[:2] not in ((height, width), (-(-height // factor), -(-width // factor))):
        raise BadImage(f"image is damaged: its {header.format} file contains another size than its header states")
    return Picture(pixels, height, width)


def from_raw(
    pixels: bytes | memoryview, height: int, width: int, channels: int, colour: Colour, max_pixels: int
) -> Picture:
    """Row-by-row pixels, 8 bits a channel (1 grey, 3 RGB, 4 RGBA), as a Picture like `decode` returns.

    If they already have these colours, the result is a read-only view of `pixels`. Raises BadImage.
    """
    if channels not in RAW_MODES:
        raise BadImage(f"raw image has {channels} channels, want 1, 3 or 4")
    check_size(height, width, max_pixels)
    expected = height * width * channels
    if len(pixels) != expected:
        raise BadImage(
            f"raw image is {len(pixels)} bytes, want {expected} = {height} high x {width} wide x {channels} channels"
        )
    if RAW_MODES[channels] == colour:
        values = np.frombuffer(pixels, np.uint8).reshape(height, width, channels)
    else:
        values = _in_colour(
            Image.frombuffer(RAW_MODES[channels], (width, height), np.frombuffer(pixels, np.uint8)), colour
        )
    return Picture(values, height, width)


def _exact(factor: int, structure: jpeg.Structure) -> int:
    # A side that is not a multiple ends in a partial pixel. After rotation, the picture might begin with it.
    if structure.orientation != UPRIGHT and (structure.height % factor or structure.width % factor):
        return 1
    return factor


def _read_structure(data: bytes, max_pixels: int) -> tuple[Header, jpeg.Structure | png.Structure]:
    kind: Literal["JPEG", "PNG"]
    structure: jpeg.Structure | png.Structure
    if data.startswith(jpeg.SIGNATURE):
        kind, structure = "JPEG", jpeg.read_structure(data, max_pixels)
    elif data.startswith(png.SIGNATURE):
        kind, structure = "PNG", png.read_structure(data, max_pixels)
    else:
        raise _unsupported(data)
    height, width = structure.height, structure.width
    if is_turned(structure.orientation):
        height, width = width, height
    return Header(kind, height, width, structure.grey), structure


def _unsupported(data: bytes) -> BadImage:
    if not data:
        return BadImage("image is 0 bytes, want a JPEG or PNG file")
    for name, offset, signature in OTHER_FORMATS:
        if data.startswith(signature, offset):
            return BadImage(f"image is {name}, want JPEG or PNG")
    return BadImage(f"image starts with the bytes {data[:8].hex(' ')}, want JPEG or PNG")


def _in_colour(image: Image.Image, colour: Colour) -> NDArray[np.uint8]:
    if image.mode in ("LA", "RGBA"):
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        image = paper
    elif image.mode == "P":
        image = image.convert("RGB")
    if image.mode != colour:
        image = image.convert(colour)
    return np.asarray(image).reshape(image.height, image.width, -1)
