"""PNG files: their structure, checked without inflating, and their pixels (PNG specification, third edition)."""

import struct
import zlib
from collections.abc import Iterable
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from convoy.service.errors import BadImage
from convoy.service.images.geometry import UPRIGHT, check_size, orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
BITS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}

MAX_CHUNKS = 16_384  # 64 MiB in pieces of 4 KiB
MAX_DEEP_PIXELS = 25_000_000  # of 16 bits: they take several times the memory and time of 8 bits
ROWS = 64  # rows of 16-bit samples scaled at a time
SECONDS = 8e-9  # that a sample of 8 bits takes to be decoded
DEEP = 4  # times as long takes one of 16 bits
MAX_INFLATION = 1032  # deflate's maximum: 258 bytes in 2 bits

_CHUNK = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIBBBBB")


class Structure(NamedTuple):
    """The structure of a PNG file. `height` and `width` are as stored, before its orientation is applied."""

    height: int
    width: int
    bits: int  # per sample
    kind: int  # colour type
    interlaced: int
    palette: slice | None  # position of the chunk: 3 bytes a colour
    transparency: slice | None  # alpha of the palette's colours, or the single transparent colour
    pieces: list[slice]  # the chunks with the pixels
    orientation: int
    ended: bool  # whether it has an IEND chunk

    @property
    def grey(self) -> bool:
        return self.kind in (GREY, GREY_ALPHA)


def estimate(data: bytes) -> float:
    """See decode.estimate."""
    end = len(SIGNATURE) + 8 + _HEADER.size
    if len(data) < end:
        return 0.0
    width, height, bits, kind, *_ = _HEADER.unpack_from(data, len(SIGNATURE) + 8)
    return float(SECONDS * height * width * SAMPLES.get(kind, 1) * (DEEP if bits == 16 else 1))


def read_structure(data: bytes, max_pixels: int) -> Structure:
    """Walk the chunks up to IEND, or to the end of the last whole chunk with pixels.

    Raises BadImage; takes at most about 20 ms for any file.
    """
    chunks: dict[bytes, slice] = {}
    pieces: list[slice] = []
    header: tuple[int, ...] | None = None
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        length, name = _CHUNK.unpack_from(data, position) if position + 8 <= len(data) else (0, b"")
        chunk = slice(position, position + 12 + length)
        position = chunk.stop
        if header and pieces and name != b"IDAT" and (position > len(data) or not name.isalpha()):
            # No IEND: decoding the pixels will show whether the picture is complete.
            return _structure(data, header, chunks, pieces, name == b"IEND")
        if position > len(data):
            raise _truncated(data)
        if header is None:
            header = _header(name, data, chunk, max_pixels)
        elif name == b"IDAT":
            pieces.append(chunk)
        elif name == b"IEND":
            return _structure(data, header, chunks, pieces, ended=True)
        elif name in (b"PLTE", b"tRNS", b"eXIf"):
            chunks.setdefault(name, chunk)
    raise BadImage(f"image has more than {MAX_CHUNKS} PNG chunks, want at most {MAX_CHUNKS}")


def read_image(data: bytes, png: Structure) -> Image.Image:
    """The pixels as stored: mode 1, L, RGB, LA or RGBA, or P without transparency.

    Transparency by a colour or by the palette is already white; an alpha channel is left to the caller. For an
    animation, this is the picture that a viewer without animation support shows. Raises BadImage if the checksum of a
    palette is wrong or pixels are missing, and any decoder error.
    """
    for chunk in (png.palette, png.transparency):
        if chunk is not None:
            _check_sum(data, chunk)
    try:
        return _image(data, png)
    except Exception:
        # Checksums of pixels matter only if decoding fails: they then explain why.
        for chunk in png.pieces:
            _check_sum(data, chunk)
        if not png.ended:
            raise _truncated(data) from None
        raise


def _image(data: bytes, png: Structure) -> Image.Image:
    key = _key(data, png)
    if png.bits == 16:
        return Image.fromarray(_eight_bits(*_halves(data, png), key))
    image = _open(data, png, png.bits, png.kind)
    image.load()
    if key is None:
        return image
    pixels = np.array(image.convert("L") if png.kind == GREY else image)
    samples = pixels.reshape(png.height, png.width, -1)
    return Image.fromarray(_whitened(pixels, samples == key * (255 // (2**png.bits - 1))))


def _header(name: bytes, data: bytes, chunk: slice, max_pixels: int) -> tuple[int, ...]:
    body = _body(data, chunk)
    if name != b"IHDR" or len(body) != _HEADER.size:
        raise BadImage("image is damaged: a PNG file without a header of 13 bytes")
    fields: tuple[int, ...] = _HEADER.unpack(body)
    width, height, bits, kind, compression, filtering, interlaced = fields
    check_size(height, width, max_pixels)
    if bits not in BITS.get(kind, ()) or compression or filtering or interlaced > 1:
        raise BadImage(
            f"image is a PNG of {bits} bits, colour type {kind}, compression {compression}, filter {filtering}, "
            f"interlace {interlaced}: no such kind is defined"
        )
    if bits == 16 and height * width > MAX_DEEP_PIXELS:
        raise BadImage(
            f"image is {width}x{height} = {height * width} pixels of 16 bits, want at most {MAX_DEEP_PIXELS}: "
            "send it with 8 bits"
        )
    _check_sum(data, chunk)
    return fields


def _structure(
    data: bytes, header: tuple[int, ...], chunks: dict[bytes, slice], pieces: list[slice], ended: bool
) -> Structure:
    width, height, bits, kind, _, _, interlaced = header
    # Before allocating memory for the pixels: a few bytes cannot contain a large picture.
    expected = height * width * bits * SAMPLES[kind] // 8
    available = sum(chunk.stop - chunk.start - 12 for chunk in pieces)
    if not available or available * MAX_INFLATION < expected:
        raise BadImage(f"image is truncated: {available} bytes of PNG data for {expected} bytes of pixels")
    if kind == PALETTE and b"PLTE" not in chunks:
        raise BadImage("image is damaged: a palette PNG without a palette")
    turned = orientation(_body(data, chunks[b"eXIf"])) if b"eXIf" in chunks else UPRIGHT
    palette, transparency = chunks.get(b"PLTE"), chunks.get(b"tRNS")
    return Structure(height, width, bits, kind, interlaced, palette, transparency, pieces, turned, ended)


def _body(data: bytes, chunk: slice | None) -> memoryview:
    return memoryview(data)[chunk.start + 8 : chunk.stop - 4] if chunk is not None else memoryview(b"")


def _check_sum(data: bytes, chunk: slice) -> None:
    if zlib.crc32(memoryview(data)[chunk.start + 4 : chunk.stop - 4]) != int.from_bytes(
        data[chunk.stop - 4 : chunk.stop]
    ):
        raise BadImage(f"image is damaged: the PNG chunk at byte {chunk.start} does not match its checksum")


def _open(data: bytes, png: Structure, bits: int, kind: int) -> PngImageFile:
    # The decoder receives only the chunks with pixels: no profiles, texts or frames to inflate. Constructed directly,
    # because Image.open has its own pixel limit.
    header = _HEADER.pack(png.width, png.height, bits, kind, 0, 0, png.interlaced)
    chunks = [(b"IHDR", header), (b"IDAT", b"".join(_body(data, piece) for piece in png.pieces))]
    if kind == PALETTE:
        chunks.insert(1, (b"PLTE", _on_white(data, png)))
    return PngImageFile(BytesIO(_file(chunks)))


def _file(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    parts = [SIGNATURE]
    for name, body in (*chunks, (b"IEND", b"")):
        parts += [_CHUNK.pack(len(body), name), body, zlib.crc32(body, zlib.crc32(name)).to_bytes(4)]
    return b"".join(parts)


def _on_white(data: bytes, png: Structure) -> bytes:
    # 256 colours, so that an index beyond the palette is black in every file.
    colours, alpha = np.zeros(256 * 3, np.int64), np.full(256, 255)
    stored = np.frombuffer(_body(data, png.palette)[: 256 * 3], np.uint8)
    colours[: stored.size] = stored
    stored = np.frombuffer(_body(data, png.transparency)[:256], np.uint8)
    alpha[: stored.size] = stored
    weighted = colours.reshape(256, 3) * alpha[:, None] + 255 * (255 - alpha[:, None])
    return bytes(((weighted + 127) // 255).astype(np.uint8))


def _key(data: bytes, png: Structure) -> NDArray[np.uint16] | None:
    # The single transparent colour, in the file's samples.
    body = _body(data, png.transparency)
    if png.kind not in (GREY, RGB) or len(body) != 2 * SAMPLES[png.kind]:
        return None
    mask = np.uint16(2**png.bits - 1)
    return np.frombuffer(body, ">u2").astype(np.uint16) & mask


def _halves(data: bytes, png: Structure) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    # The high and the low bytes, (H, W, samples), of 16-bit samples. Pillow reduces to 8 bits or clips. But PNG filters
    # work on bytes, so 16-bit grey (with alpha) can be read as 8-bit grey with alpha (as RGBA). Three and four samples
    # have no such equivalent: they are read twice, as they are and with the byte order swapped.
    if png.kind in (GREY, GREY_ALPHA):
        pixels = np.asarray(_open(data, png, 8, GREY_ALPHA if png.kind == GREY else RGB_ALPHA))
        return pixels[..., 0::2], pixels[..., 1::2]
    high, low = _open(data, png, 16, png.kind), _open(data, png, 16, png.kind)
    low.tile = [tile._replace(args=f"{low.mode};16L") for tile in low.tile]
    return np.asarray(high), np.asarray(low)


def _eight_bits(high: NDArray[np.uint8], low: NDArray[np.uint8], key: NDArray[np.uint16] | None) -> NDArray[np.uint8]:
    # (256 high + low) / 257 = high + (low - high) / 257, rounded; in blocks of rows, to bound temporary memory.
    pixels = np.empty(high.shape, np.uint8)
    for top in range(0, len(pixels), ROWS):
        hi, lo = high[top : top + ROWS], low[top : top + ROWS]
        rows = pixels[top : top + ROWS]
        rows[...] = hi + ((lo > hi) & (lo - hi > 128)) - ((hi > lo) & (hi - lo > 128))
        if key is not None:
            _whitened(rows, (hi == key >> 8) & (lo == key & 0xFF))
    return pixels[..., 0] if high.shape[2] == 1 else pixels


def _whitened(pixels: NDArray[np.uint8], matches: NDArray[np.bool_]) -> NDArray[np.uint8]:
    # Set pixels to white, in place, where all samples of `matches` (H, W, samples) do.
    pixels[matches.all(axis=2)] = 255
    return pixels


def _truncated(data: bytes) -> BadImage:
    return BadImage(f"image is truncated: {len(data)} bytes of PNG without an IEND chunk, want the whole file")
