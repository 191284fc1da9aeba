"""JPEG files: their structure, checked without decoding, and their pixels (ITU-T T.81, annex B)."""

from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from convoy.service.errors import BadImage
from convoy.service.images.geometry import UPRIGHT, check_size, orientation

SIGNATURE = b"\xff\xd8\xff"

SOI, EOI, SOS, APP1 = 0xD8, 0xD9, 0xDA, 0xE1
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BARE = frozenset(range(0xD0, SOI)) | {0x01}  # markers without a length
# Segments that a decoder does not need: comments, and application segments but JFIF's (APP0) and Adobe's (APP14).
NOTES = frozenset(range(APP1, 0xF0)) - {0xEE} | {0xFE}
EXIF = b"Exif\0\0"

MAX_SEGMENTS = 4096  # 64 MiB contain at most 1025 segments of the maximum length
SECONDS = 8e-9  # that a pixel takes to be decoded
PASSES = 5  # times as long as a plain file takes one with several scans, or with arithmetic coding
PLAIN = frozenset({0xC0, 0xC1})  # frames with Huffman codes and usually one scan
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SEEN = 64  # segments that are looked at for an estimate
_HIDDEN = 1.0  # seconds; the estimate where the frame is not among them
MAX_SCANS = 100  # each is a pass over the whole picture; a progressive file has about ten
MAX_SCANNED_PIXELS = 1_000_000_000  # of all scans together: 20 of the largest picture
# A file that is not progressive has each of its components in one scan. More are harmless in a small one.
MAX_PLAIN_SCANS = 4
MAX_PLAIN_PIXELS = 10_000_000
BLOCK_BYTES = 65_536  # fits into the cache

# Decoder warnings that mean a part of the picture is lost. Its other warnings concern harmless irregularities, such as
# stray bytes before a marker.
LOSSES = ("premature end", "bad huffman code", "bad arithmetic code", "instead of rst")


class Structure(NamedTuple):
    """The structure of a JPEG file. `height` and `width` are as stored, before its orientation is applied."""

    height: int
    width: int
    components: int  # 1 grey, 3 colour, 4 CMYK
    orientation: int
    notes: list[slice]  # segments irrelevant to the pixels
    strays: list[slice]  # stray bytes between segments

    @property
    def grey(self) -> bool:
        return self.components == 1


class _Frame(NamedTuple):
    height: int
    width: int
    components: int
    progressive: bool


def estimate(data: bytes) -> float:
    """See decode.estimate. A file with many segments before its frame counts as slow."""
    position = len(SIGNATURE) - 1
    for _ in range(_SEEN):
        position = data.find(b"\xff", position)
        if not 0 <= position <= len(data) - 9:
            return 0.0
        code = data[position + 1]
        if code in FRAMES:
            height, width = (int.from_bytes(data[start : start + 2]) for start in (position + 5, position + 7))
            return SECONDS * height * width * (1 if code in PLAIN else PASSES)
        bare = code in BARE or code in (0, 0xFF)
        position += (2 if code != 0xFF else 1) if bare else 2 + int.from_bytes(data[position + 2 : position + 4])
    return _HIDDEN


def read_structure(data: bytes, max_pixels: int) -> Structure:
    """Walk the markers up to the end of the image. Raises BadImage; takes at most about 20 ms for 64 MiB."""
    frame: _Frame | None = None
    turned: int | None = None
    notes: list[slice] = []
    strays: list[slice] = []
    scans = 0
    position = len(SIGNATURE) - 1
    for _ in range(MAX_SEGMENTS):
        prefix, code = _marker(data, position)
        if prefix != 0xFF or code == 0:
            # Some cameras leave a few bytes between two segments; every viewer skips to the next marker.
            next_marker = data.find(b"\xff", position + 1 + (prefix == 0xFF))
            if next_marker < 0:
                raise _truncated(data)
            strays.append(slice(position, next_marker))
            position = next_marker
            continue
        if code == EOI:
            if frame is None or not scans:
                raise BadImage("image has no picture: the JPEG file ends before its first scan")
            return Structure(frame.height, frame.width, frame.components, turned or UPRIGHT, notes, strays)
        if code == 0xFF or code in BARE:
            position += 1 if code == 0xFF else 2
            continue
        body = _body(data, position)
        segment = slice(position, position + 4 + len(body))
        position = segment.stop
        if code in NOTES:
            notes.append(segment)
        if code in FRAMES:
            frame = _frame(body, max_pixels, code, frame)
        elif code == APP1 and turned is None and body.startswith(EXIF):
            turned = orientation(body[len(EXIF) :])
        elif code == SOS:
            if frame is None:
                raise BadImage("image is damaged: a JPEG scan precedes the frame header")
            scans += 1
            if scans > MAX_SCANS:
                raise BadImage(f"image has more than {MAX_SCANS} scans, want at most {MAX_SCANS}")
            _check_scans(frame, scans)
            position = _end_of_scan(data, position)
    raise BadImage(f"image has more than {MAX_SEGMENTS} JPEG segments, want at most {MAX_SEGMENTS}")


def read_pixels(
    data: bytes, structure: Structure, colour: Literal["RGB", "L"], reduction: int = 1
) -> NDArray[np.uint8]:
    """The pixels as stored, (H, W, 3) or (H, W, 1).

    Raises BadImage if a part of the picture is lost, even if a decoder could conceal that, and any decoder error.

    With a `reduction` of 2 or 4 each side is a half or a quarter of that, rounded up: fewer frequencies of each block
    are decoded to fewer pixels, which is much cheaper. Rare kinds of files are decoded in full size regardless.
    """
    least = {"min_height": -(-structure.height // reduction), "min_width": -(-structure.width // reduction)}
    tidy = _without(data, structure.strays) if structure.strays else data
    try:
        if structure.components == 4:
            # All writers of CMYK files follow Adobe, which stores them inverted.
            inks = simplejpeg.decode_jpeg(tidy, "CMYK", strict=True, **least)
            return _pixels(Image.frombuffer("CMYK", inks.shape[1::-1], np.invert(inks, out=inks)), colour)
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            tidy, "GRAY" if colour == "L" else "RGB", strict=True, **least
        )
        return pixels
    except ValueError as error:
        if any(loss in str(error).lower() for loss in LOSSES):
            raise BadImage("image is damaged: a part of its JPEG scan is missing or garbled") from None
    return _patient(_without(data, sorted([*structure.notes, *structure.strays], key=lambda each: each.start)), colour)


def _patient(data: bytes, colour: Literal["RGB", "L"]) -> NDArray[np.uint8]:
    # The fast decoder supports only the usual chroma subsampling (4:4:4, 4:2:2, 4:2:0 ...) and Huffman coding, and
    # stops at every warning; 3:1:1, 4:1:0 and arithmetic coding are equally valid.
    image = JpegImageFile(BytesIO(data))
    if colour == "L":
        image.draft("L", image.size)  # the luma in the file, as in the fast decoder
    return _pixels(image, colour)


def _pixels(image: Image.Image, colour: Literal["RGB", "L"]) -> NDArray[np.uint8]:
    # Through RGB: Pillow has no direct conversion from CMYK to grey.
    return np.asarray(image.convert("RGB").convert(colour)).reshape(image.height, image.width, -1)


def _without(data: bytes, notes: list[slice]) -> bytes:
    # Pillow reads more of a file than its pixels, and warns about it.
    starts = [0, *(note.stop for note in notes)]
    stops = [*(note.start for note in notes), len(data)]
    return b"".join(memoryview(data)[start:stop] for start, stop in zip(starts, stops, strict=True))


def _marker(data: bytes, position: int) -> tuple[int, int]:
    if position + 2 > len(data):
        raise _truncated(data)
    return data[position], data[position + 1]


def _body(data: bytes, position: int) -> bytes:
    length = int.from_bytes(data[position + 2 : position + 4])
    if position + 2 + max(length, 2) > len(data):
        raise _truncated(data)
    if length < 2:
        raise BadImage(f"image is damaged: the JPEG segment at byte {position} is {length} bytes, want at least 2")
    return data[position + 4 : position + 2 + length]


def _frame(body: bytes, max_pixels: int, code: int, before: _Frame | None) -> _Frame:
    if before is not None:
        # Decoders differ in which one counts, and may allocate and convert as many pixels as the other one states.
        raise BadImage("image is damaged: it has several JPEG frame headers, want 1")
    if len(body) < 6:
        raise BadImage(f"image is damaged: its JPEG frame header is {len(body)} bytes, want at least 6")
    bits, components = body[0], body[5]
    frame = _Frame(int.from_bytes(body[1:3]), int.from_bytes(body[3:5]), components, code in PROGRESSIVE)
    check_size(frame.height, frame.width, max_pixels)
    if bits != 8:
        raise BadImage(f"image is a JPEG of {bits} bits a sample, want 8")
    if components not in (1, 3, 4):
        raise BadImage(f"image is a JPEG of {components} components, want 1, 3 or 4")
    return frame


def _check_scans(frame: _Frame, scans: int) -> None:
    pixels = frame.height * frame.width
    most = MAX_SCANNED_PIXELS if frame.progressive else max(MAX_PLAIN_PIXELS, MAX_PLAIN_SCANS * pixels)
    if scans * pixels > most:
        raise BadImage(
            f"image has {scans} or more scans of {frame.width}x{frame.height} pixels, want at most {most // pixels}"
        )


def _end_of_scan(data: bytes, position: int) -> int:
    codes = np.frombuffer(data, np.uint8)
    for start in range(position, len(data) - 1, BLOCK_BYTES):
        block = codes[start : start + BLOCK_BYTES + 1]
        first, second = block[:-1], block[1:]
        # 0xFF, followed by neither 0 (a data byte 0xFF), 0xFF (fill) nor a restart marker; `- 1` wraps around. A fixed
        # number of passes whatever the bytes, so that no file is slow.
        is_marker = (first == 0xFF) & (second - 1 < 0xFE) & (second & 0xF8 != 0xD0)
        where = int(is_marker.argmax())
        if is_marker[where]:
            return start + where
    raise _truncated(data)


def _truncated(data: bytes) -> BadImage:
    return BadImage(
        f"image is truncated: {len(data)} bytes of JPEG without an end-of-image marker, want the whole file"
    )
