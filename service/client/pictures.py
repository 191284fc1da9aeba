"""Pictures of formats that a server does not decode, as PNG files: TIFF, WebP, BMP, GIF, AVIF, HEIC and others.

They become what training makes of the same files: rotated by their EXIF orientation, 16 bits kept, of an animation the
first frame. They are decoded in the caller's own process, JPEG and PNG files only in the server.
"""

import importlib
import importlib.util
import io
from pathlib import PurePath

import numpy as np
import PIL.Image

from convoy.service.errors import BadImage
from convoy.service.images.geometry import UPRIGHT, orientation

_SERVED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG, PNG: sent as they are
# Not all that Pillow opens: for some it would start other programs, and some have no signature.
_FORMATS = ("TIFF", "WEBP", "BMP", "DIB", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM", "ICO")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEIF_NAMES = (".heic", ".heif")
_EXIF = b"Exif\0\0"
# From the stored orientation to the displayed one (EXIF 2.32, section 4.6.4).
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def accepted(data: bytes, name: str = "image") -> bytes:
    """The bytes of a file that a server decodes; those of no known format as they are, for the server to refuse.

    Raises BadImage, naming the file, for a picture that is damaged, and for HEIC without pillow-heif.
    """
    if data.startswith(_SERVED):
        return data
    heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF
    if heif and not _opens_heif():
        raise BadImage(f"{name} is HEIC: to send it, pip install pillow-heif, or convert it to JPEG")
    PIL.Image.init()
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=[each for each in _FORMATS if each in PIL.Image.OPEN])
    except PIL.UnidentifiedImageError:
        return data
    except Exception as error:  # decoders raise exceptions of any class
        raise _damaged(name, error) from None
    with image:
        return as_png(image, name)


def is_called_picture(name: str) -> bool:
    """Whether a file has the name of a picture that `accepted` makes acceptable, or of one that it explains."""
    formats = PIL.Image.registered_extensions()
    suffix = PurePath(name).suffix.lower()
    return suffix in _HEIF_NAMES or formats.get(suffix) in ("JPEG", "PNG", *_FORMATS)


def as_png(image: PIL.Image.Image, name: str = "image") -> bytes:
    """A picture that Pillow has opened or made as a PNG file, upright: of several frames its current one.

    Raises BadImage.
    """
    try:
        image.load()
        turn = _TURNS.get(_orientation(image))
        plain = _plain(image, name)
        file = io.BytesIO()
        # The fastest level: photographs hardly shrink further.
        (plain if turn is None else plain.transpose(turn)).save(file, "PNG", compress_level=1)
    except BadImage:
        raise
    except Exception as error:
        raise _damaged(name, error) from None
    return file.getvalue()


def _opens_heif() -> bool:
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    importlib.import_module("pillow_heif").register_heif_opener()
    return True


def _orientation(image: PIL.Image.Image) -> int:
    # Not getexif(): it also uses XMP, which servers and training ignore. Pillow rotates TIFF itself.
    if image.format == "TIFF":
        return UPRIGHT
    return orientation(bytes(image.info.get("exif", b"")).removeprefix(_EXIF))


def _plain(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """The pixels alone, in a mode of PNG that every server reads, without the file's other data."""
    if image.mode in ("I", "F"):
        raise BadImage(f"{name} has 32 bits a pixel, want 8 or 16")
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray(np.asarray(image).astype(np.uint16))
    mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    plain = image.convert(mode) if image.mode != mode else image.copy()
    plain.info = {}
    return plain


def _damaged(name: str, error: Exception) -> BadImage:
    if isinstance(error, PIL.Image.DecompressionBombError):
        return BadImage(f"{name} has more pixels than Pillow's limit, {2 * (PIL.Image.MAX_IMAGE_PIXELS or 0)}")
    return BadImage(f"{name} cannot be decoded ({' '.join(str(error).split())[:200] or type(error).__name__})")
