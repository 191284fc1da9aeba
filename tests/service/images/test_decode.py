"""Which files are images, what they show, and how fast the others are refused."""

import io
import random
import re
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convoy.service.errors import BadImage
from convoy.service.images import decode as decoding
from convoy.service.images.decode import Colour, Header, inspect

LIMIT = 50_000_000
MIB = 1 << 20
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
KINDS = [
    *((GREY, bits) for bits in (1, 2, 4, 8, 16)),
    *((kind, bits) for kind in (RGB, GREY_ALPHA, RGB_ALPHA) for bits in (8, 16)),
]
# Adam7: first column, first row, step across, step down.
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]

T = TypeVar("T")
Pixels = NDArray[np.uint8]
Samples = NDArray[np.uint16]


def decode(data: bytes, colour: Colour, max_pixels: int) -> Pixels:
    return decoding.decode(data, colour, max_pixels).pixels


def from_raw(pixels: bytes, height: int, width: int, channels: int, colour: Colour, max_pixels: int) -> Pixels:
    picture = decoding.from_raw(pixels, height, width, channels, colour, max_pixels)
    assert picture.pixels.shape[:2] == (picture.height, picture.width)
    return picture.pixels


# A PNG writer of our own: Pillow writes neither interlaced files nor most of the 16-bit kinds.


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_file(
    samples: Samples,
    bits: int,
    kind: int,
    interlaced: bool = False,
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG file of (H, W, S) samples, its rows filtered with all five filters in turn, its data in two chunks."""
    height, width = samples.shape[:2]
    parts = [samples[y::down, x::across] for x, y, across, down in PASSES] if interlaced else [samples]
    packed = zlib.compress(b"".join(filtered(part, bits) for part in parts if part.size))
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *before, (b"IDAT", packed[:9]), (b"IDAT", packed[9:]), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in chunks)


def filtered(samples: Samples, bits: int) -> bytes:
    distance = max(1, samples.shape[2] * bits // 8)
    out, above = bytearray(), None
    for number, row in enumerate(samples):
        planes = (row.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1
        line = np.packbits(planes.astype(np.uint8)).astype(int)
        above = np.zeros_like(line) if above is None else above
        left = np.concatenate([np.zeros(distance, int), line])[: len(line)]
        corner = np.concatenate([np.zeros(distance, int), above])[: len(line)]
        estimate = left + above - corner
        candidates = np.stack([left, above, corner])
        paeth = candidates[np.abs(estimate - candidates).argmin(axis=0), np.arange(len(line))]
        predicted = [0 * line, left, above, (left + above) // 2, paeth][number % 5]
        out += bytes([number % 5]) + ((line - predicted) % 256).astype(np.uint8).tobytes()
        above = line
    return bytes(out)


def random_samples(height: int, width: int, kind: int, bits: int) -> Samples:
    rng = np.random.default_rng(bits * 7 + kind)
    samples = rng.integers(0, 2**bits, (height, width, SAMPLES[kind]), dtype=np.uint16)
    if kind in (GREY_ALPHA, RGB_ALPHA):
        samples[: height // 2, :, -1] = rng.choice([0, 2**bits - 1], (height // 2, width))
    return samples


def seen(samples: Samples, bits: int, kind: int, colour: Colour, clear: NDArray[np.bool_] | None = None) -> Pixels:
    """What a person sees of the samples on white paper, by arithmetic: 8 bits, composited, then luma (BT.601)."""
    values = np.floor(samples.astype(float) * 255 / (2**bits - 1) + 0.5)
    if kind in (GREY_ALPHA, RGB_ALPHA):
        alpha = values[..., -1:]
        values = np.floor((values[..., :-1] * alpha + 255 * (255 - alpha)) / 255 + 0.5)
    if clear is not None:
        values[clear] = 255
    rgb = np.broadcast_to(values, (*values.shape[:2], 3)).astype(np.int64)
    if colour == "RGB":
        return rgb.astype(np.uint8)
    return ((rgb @ np.array([19595, 38470, 7471]) + 0x8000) >> 16).astype(np.uint8)[..., None]


def saved(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photograph(height: int = 40, width: int = 56) -> Image.Image:
    """Smooth colours that differ in every corner."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * x // width, 255 * y // height, 255 - 255 * (x + y) // (height + width)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


JPEG = saved(photograph(), "JPEG")
PNG = saved(photograph(16, 20), "PNG")
PROGRESSIVE = saved(photograph(), "JPEG", progressive=True)


# What the pixels are.


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
@pytest.mark.parametrize("size", [(13, 21), (1, 1), (3, 2)])
def test_every_kind_of_png_shows_what_it_holds(
    kind: int, bits: int, interlaced: bool, colour: Colour, size: tuple[int, int]
) -> None:
    samples = random_samples(*size, kind, bits)
    pixels = decode(png_file(samples, bits, kind, interlaced), colour, LIMIT)
    assert (pixels == seen(samples, bits, kind, colour)).all()
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize(("kind", "bits"), [(k, b) for k, b in KINDS if k in (GREY, RGB)])
def test_png_of_one_transparent_colour_is_white_there_only(kind: int, bits: int, colour: Colour) -> None:
    samples = random_samples(13, 21, kind, bits)
    # Neighbours of the transparent colour, which 8 bits could not tell from it.
    samples[4, 4] = samples[5, 5]
    samples[6, 6] = samples[5, 5] ^ 1
    key = b"".join(int(value).to_bytes(2) for value in samples[5, 5])
    pixels = decode(png_file(samples, bits, kind, before=[(b"tRNS", key)]), colour, LIMIT)
    clear = (samples == samples[5, 5]).all(axis=2)
    assert clear[4, 4]
    assert not clear[6, 6]
    assert (pixels == seen(samples, bits, kind, colour, clear)).all()


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_palette_png_shows_its_colours(bits: int, interlaced: bool, transparent: bool, colour: Colour) -> None:
    rng = np.random.default_rng(bits)
    palette = rng.integers(0, 256, (2**bits, 3), dtype=np.uint16)
    alpha = rng.integers(0, 256, (2**bits, 1), dtype=np.uint16)
    alpha[2 ** (bits - 1) :] = 255  # a shorter tRNS: the rest is opaque
    indices = random_samples(13, 21, PALETTE, bits)
    before = [(b"PLTE", palette.astype(np.uint8).tobytes())]
    if transparent:
        before.append((b"tRNS", alpha[: 2 ** (bits - 1)].astype(np.uint8).tobytes()))
    pixels = decode(png_file(indices, bits, PALETTE, interlaced, before), colour, LIMIT)
    colours = np.concatenate([palette, alpha if transparent else np.full_like(alpha, 255)], axis=1)
    assert (pixels == seen(colours[indices[..., 0]], 8, RGB_ALPHA, colour)).all()


def test_palette_index_beyond_the_palette_is_black() -> None:
    indices = np.array([[[0], [1], [9]]], np.uint16)
    pixels = decode(png_file(indices, 8, PALETTE, before=[(b"PLTE", bytes([9, 9, 9, 8, 8, 8]))]), "L", LIMIT)
    assert pixels.ravel().tolist() == [9, 8, 0]


def test_bright_16_bit_grey_is_scaled_not_clipped() -> None:
    samples = np.array([[[0], [255], [256], [0x8000], [0xFFFF]]], np.uint16)
    assert decode(png_file(samples, 16, GREY), "L", LIMIT).ravel().tolist() == [0, 1, 1, 128, 255]


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}, {"keep_rgb": True}, {"restart_marker_blocks": 1}],
)
def test_jpeg_shows_what_pillow_sees(mode: str, colour: Colour, options: dict[str, object]) -> None:
    data = saved(photograph().convert(mode), "JPEG", **options)
    image = Image.open(io.BytesIO(data))
    expected = np.asarray(image.convert("RGB").convert(colour)).reshape(40, 56, -1)
    # Grey of a colour file is its own luma channel, not that of the colours it was turned into.
    assert np.abs(decode(data, colour, LIMIT).astype(int) - expected).max() <= (2 if colour == "L" else 0)


@pytest.mark.parametrize("shade", ["white", "black", "red", "lime", "blue"])
def test_print_colours_keep_their_meaning(shade: str) -> None:
    image = Image.new("RGB", (16, 16), shade)
    data = saved(image.convert("CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data
    assert np.abs(decode(data, "RGB", LIMIT).astype(int) - np.asarray(image)).max() <= 3


def test_print_colours_as_luma_and_chroma_are_read() -> None:
    cmyk = saved(photograph().convert("CMYK"), "JPEG", quality=100)
    at = cmyk.index(b"Adobe") + 11
    assert cmyk[at] == 0
    data = cmyk[:at] + b"\2" + cmyk[at + 1 :]  # the same numbers, declared YCCK
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (decode(data, "RGB", LIMIT) == expected).all()
    assert (decode(data, "RGB", LIMIT) != decode(cmyk, "RGB", LIMIT)).any()


def plain_jpeg(height: int, width: int, sampling: Sequence[tuple[int, int]]) -> bytes:
    """A grey JPEG whose components have (across, down) samples each: a way Pillow does not offer.

    Both Huffman tables hold one code, `0`: no difference to the last block, no more coefficients.
    """
    across, down = (max(factors) for factors in zip(*sampling, strict=True))
    blocks = -(-width // (8 * across)) * -(-height // (8 * down)) * sum(h * v for h, v in sampling)
    frame = struct.pack(">BHHB", 8, height, width, len(sampling))
    frame += b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in enumerate(sampling, 1))
    tables = [bytes([kind, 1, *bytes(15), 0]) for kind in (0x00, 0x10)]
    scan = bytes([len(sampling), *(b for i in range(1, len(sampling) + 1) for b in (i, 0)), 0, 63, 0])
    segments = [(0xDB, bytes([0] + [16] * 64)), (0xC0, frame), *((0xC4, table) for table in tables), (0xDA, scan)]
    head = b"".join(bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body for code, body in segments)
    padding = -2 * blocks % 8
    data = (2**padding - 1).to_bytes((2 * blocks + padding) // 8)
    return b"\xff\xd8" + head + data + b"\xff\xd9"


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize(
    "sampling",
    [
        [(1, 1)],
        [(2, 2)],
        [(2, 2), (1, 1), (1, 1)],
        [(4, 1), (1, 1), (1, 1)],
        [(3, 1), (1, 1), (1, 1)],
        [(4, 2), (1, 1), (1, 1)],
        [(1, 1), (2, 1), (2, 1)],
    ],
)
def test_colour_may_be_thinned_out_in_any_way(sampling: Sequence[tuple[int, int]], colour: Colour) -> None:
    data = plain_jpeg(30, 50, sampling)
    # A camera's notes, broken: what decodes the rare files would otherwise read them and warn.
    notes = b"\xff\xe1\0\x1eExif\0\0MM\0*\0\0\0\x08\0\1\x01\x1a\0\5\0\0\0\1\0\0\xff\xff\xff\xfe\0\4ab"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode(data[:2] + notes + data[2:], colour, LIMIT)
    assert pixels.shape == (30, 50, 3 if colour == "RGB" else 1)
    assert (pixels == 128).all()
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_the_way_exif_says(kind: str, orientation: int, order: str) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    exif = mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    image = photograph(130, 70)
    if kind == "JPEG":
        plain = saved(image, kind)
        data = saved(image, kind, exif=b"Exif\0\0" + exif)
    else:
        plain = png_file(np.asarray(image).astype(np.uint16), 8, RGB)
        data = png_file(np.asarray(image).astype(np.uint16), 8, RGB, before=[(b"eXIf", exif)])
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels = decode(data, "RGB", LIMIT)
    assert (pixels == np.asarray(turned)).all()
    assert pixels.flags.c_contiguous
    assert inspect(data, LIMIT) == Header(kind, *pixels.shape[:2])  # type: ignore[arg-type]
    # Independent of Pillow: where the picture's own first pixel is, by the table of EXIF 2.32.
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert (pixels[corner[orientation]] == decode(plain, "RGB", LIMIT)[0, 0]).all()
    assert pixels.shape[:2] == ((70, 130) if orientation >= 5 else (130, 70))


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"XX*\0" + bytes(20),
        b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, 9, 0),
        b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 5, 1, 6, 0),
        b"II*\0" + struct.pack("<IH", 8, 65_535),
    ],
)
def test_exif_that_says_nothing_leaves_the_picture_as_it_is(exif: bytes) -> None:
    samples = random_samples(5, 9, GREY, 8)
    data = png_file(samples, 8, GREY, before=[(b"eXIf", exif)])
    assert (decode(data, "L", LIMIT) == samples).all()
    image = saved(photograph(), "JPEG", exif=b"Exif\0\0" + exif)
    assert inspect(image, LIMIT) == Header("JPEG", 40, 56)


def test_animation_shows_its_first_frame() -> None:
    first, second = (Image.new("RGB", (16, 12), shade) for shade in ("red", "blue"))
    data = saved(first, "PNG", save_all=True, append_images=[second, first])
    assert b"acTL" in data
    assert (decode(data, "RGB", LIMIT) == (255, 0, 0)).all()


def test_bytes_after_the_end_of_the_image_do_not_matter() -> None:
    for data in (JPEG, PNG):
        assert (decode(data + b"\0" * 100 + data, "RGB", LIMIT) == decode(data, "RGB", LIMIT)).all()


def test_pixel_limit_is_the_one_that_was_given_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (PNG, JPEG, saved(photograph().convert("CMYK"), "JPEG")):
            header = inspect(data, LIMIT)
            pixels = header.height * header.width
            assert decode(data, "RGB", pixels).shape[:2] == header[1:3]
            with pytest.raises(BadImage, match=f"= {pixels} pixels, want at most {pixels - 1}"):
                decode(data, "RGB", pixels - 1)


# Raw pixels.


def test_raw_pixels_in_the_wanted_colours_are_not_copied() -> None:
    data = bytes(range(24))
    for channels, colour in ((3, "RGB"), (1, "L")):
        pixels = from_raw(data, 2, 12 // channels, channels, colour, LIMIT)  # type: ignore[arg-type]
        assert pixels.shape == (2, 12 // channels, channels)
        assert np.shares_memory(pixels, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize(("channels", "kind"), [(1, GREY), (3, RGB), (4, RGB_ALPHA)])
def test_raw_pixels_are_converted_like_a_file(channels: int, kind: int, colour: Colour) -> None:
    samples = random_samples(9, 7, kind, 8)
    pixels = from_raw(samples.astype(np.uint8).tobytes(), 9, 7, channels, colour, LIMIT)
    assert (pixels == seen(samples, 8, kind, colour)).all()
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("size", "height", "width", "channels", "message"),
    [
        (11, 2, 2, 3, "raw image is 11 bytes, want 12 = 2 high x 2 wide x 3 channels"),
        (0, 1, 1, 1, "raw image is 0 bytes, want 1 "),
        (8, 2, 2, 2, "raw image has 2 channels, want 1, 3 or 4"),
        (0, 2, 2, 0, "raw image has 0 channels"),
        (0, 0, 2, 3, "image is 2x0 pixels, want 1 to 65535 a side"),
        (0, 2, 0, 3, "image is 0x2 pixels"),
        (16, 2**32 - 1, 2**32 - 1, 1, "image is 4294967295x4294967295 pixels, want 1 to 65535 a side"),
        (16, 65_535, 65_535, 4, "= 4294836225 pixels, want at most 50000000"),
    ],
)
def test_raw_pixels_that_do_not_fit_are_refused(
    size: int, height: int, width: int, channels: int, message: str
) -> None:
    with pytest.raises(BadImage, match=re.escape(message)):
        from_raw(bytes(size), height, width, channels, "RGB", LIMIT)


# What is refused, and in which words.


def jpeg_of(width: int, height: int) -> bytes:
    """The JPEG file with other numbers in its header."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def png_of(width: int, height: int, bits: int = 8, kind: int = RGB, tail: bytes = b"") -> bytes:
    """A PNG file with a small, valid body under any header."""
    header = struct.pack(">IIBB", width, height, bits, kind) + (tail or bytes(3))
    return PNG[:8] + chunk(b"IHDR", header) + PNG[33:]


def box(brand: bytes) -> bytes:
    return b"\0\0\0\x1cftyp" + brand + bytes(16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "image is 0 bytes, want a JPEG or PNG file"),
        (b"hello, world", "image starts with the bytes 68 65 6c 6c 6f 2c 20 77, want JPEG or PNG"),
        (b"\xff\xd8", "image starts with the bytes ff d8, want"),
        (saved(photograph(), "GIF"), "image is GIF, want JPEG or PNG"),
        (saved(photograph(), "WEBP"), "image is WebP, want JPEG or PNG"),
        (saved(photograph(), "BMP"), "image is BMP, want JPEG or PNG"),
        (saved(photograph(), "TIFF"), "image is TIFF, want JPEG or PNG"),
        (b"MM\0*" + bytes(8), "image is TIFF, want JPEG or PNG"),
        (saved(photograph(), "ICO"), "image is ICO, want JPEG or PNG"),
        (box(b"avif"), "image is AVIF, want JPEG or PNG"),
        (box(b"heic"), "image is HEIC, want JPEG or PNG"),
        (box(b"mif1"), "image is HEIF, want JPEG or PNG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "image is JPEG 2000, want JPEG or PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "image is JPEG XL, want JPEG or PNG"),
        (b"%PDF-1.7", "image is PDF, want JPEG or PNG"),
        (JPEG[:-2], f"image is truncated: {len(JPEG) - 2} bytes of JPEG without an end-of-image marker"),
        (PROGRESSIVE[:-2], "image is truncated"),
        (PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")], "image is truncated"),
        (JPEG[:2] + b"\xff\xd9", "image has no picture"),
        (JPEG[:2] + b"\xff\xfe\0\1" + JPEG[2:], "segment at byte 2 is 1 bytes, want at least 2"),
        (PNG[:-13], f"image is truncated: {len(PNG) - 13} bytes of PNG without an IEND chunk"),
        (PNG[:33] + PNG[-12:], "image is truncated: 0 bytes of PNG data for 960 bytes of pixels"),
        (png_of(7000, 7000), "of PNG data for 147000000 bytes of pixels"),
        (jpeg_of(60_000, 60_000), "image is 60000x60000 = 3600000000 pixels, want at most 50000000"),
        (png_of(60_000, 60_000), "image is 60000x60000 = 3600000000 pixels, want at most 50000000"),
        (jpeg_of(0, 40), "image is 0x40 pixels, want 1 to 65535 a side"),
        (jpeg_of(40, 0), "image is 40x0 pixels, want 1 to 65535 a side"),
        (png_of(0, 40), "image is 0x40 pixels, want 1 to 65535 a side"),
        (png_of(1, 65_536), "image is 1x65536 pixels, want 1 to 65535 a side"),
        (png_of(2**31, 2**32 - 1), "image is 2147483648x4294967295 pixels, want 1 to 65535 a side"),
        (png_of(16, 20, 3), "PNG of 3 bits, colour type 2"),
        (png_of(16, 20, 8, 5), "PNG of 8 bits, colour type 5"),
        (png_of(16, 20, tail=b"\0\0\2"), "interlace 2: no such kind"),
        (png_of(16, 20, 8, PALETTE), "a palette PNG without a palette"),
        (PNG[:8] + PNG[33:], "a PNG file without a header of 13 bytes"),
    ],
)
def test_what_is_no_image_is_refused_saying_what_was_wanted(data: bytes, message: str) -> None:
    for call in (lambda: inspect(data, LIMIT), lambda: decode(data, "RGB", LIMIT)):
        with pytest.raises(BadImage, match=re.escape(message)):
            call()


@pytest.mark.parametrize(("offset", "value"), [(4, 12), (9, 2), (9, 5)])
def test_jpeg_of_another_depth_or_number_of_components_is_refused(offset: int, value: int) -> None:
    at = JPEG.index(b"\xff\xc0") + offset
    with pytest.raises(BadImage, match=f"image is a JPEG of {value} (bits a sample|components), want"):
        inspect(JPEG[:at] + bytes([value]) + JPEG[at + 1 :], LIMIT)


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, PNG], ids=["JPEG", "progressive JPEG", "PNG"])
def test_file_cut_anywhere_is_refused_by_its_structure(data: bytes) -> None:
    inspect(data, LIMIT)
    for length in range(len(data) if data != PNG else len(data) - 12):  # the last 12 bytes of a PNG only end it
        with pytest.raises(BadImage):
            inspect(data[:length], LIMIT)


def test_second_frame_header_is_refused_before_its_pixels_are_allocated() -> None:
    at = JPEG.index(b"\xff\xc0")
    second = JPEG[at : at + 5] + struct.pack(">HH", 65_535, 65_535) + JPEG[at + 9 : at + 19]
    with pytest.raises(BadImage, match="several JPEG frame headers, want 1"):
        inspect(JPEG[: at + 19] + second + JPEG[at + 19 :], LIMIT)


def test_scan_that_ends_early_is_refused_although_its_markers_are_there() -> None:
    inspect(JPEG[:-40] + b"\xff\xd9", LIMIT)
    with pytest.raises(BadImage, match="a part of its JPEG scan is missing or garbled"):
        decode(JPEG[:-200] + b"\xff\xd9", "RGB", LIMIT)


def test_picture_that_is_higher_than_its_data_is_refused() -> None:
    with pytest.raises(BadImage, match="the pixels of its PNG file cannot be decoded"):
        decode(png_of(16, 200), "RGB", LIMIT)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_chunk_that_does_not_match_its_checksum_is_refused(name: bytes) -> None:
    before = [(b"PLTE", bytes(48)), (b"tRNS", bytes(4))]
    data = bytearray(png_file(random_samples(5, 5, PALETTE, 4), 4, PALETTE, before=before))
    decode(bytes(data), "RGB", LIMIT)
    data[data.index(name) + 4 + (8 if name == b"IDAT" else 3)] ^= 16
    with pytest.raises(BadImage):
        decode(bytes(data), "RGB", LIMIT)


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize("name", ["before the end", "between segments", "escaped", "JFIF revision"])
def test_untidy_jpeg_shows_what_the_tidy_one_does(name: str, colour: Colour) -> None:
    scan = JPEG.index(b"\xff\xda")
    untidy = {
        "before the end": JPEG[:-2] + b"\x12\x34\x56" * 5 + JPEG[-2:],
        "between segments": JPEG[:20] + bytes(9) + JPEG[20:scan] + b"\1\2\3" + JPEG[scan:],
        "escaped": JPEG[:scan] + b"\xff\0\xff\0" + JPEG[scan:],
        "JFIF revision": JPEG[:11] + b"\0" + JPEG[12:],
    }[name]
    assert inspect(untidy, LIMIT) == inspect(JPEG, LIMIT)
    assert (decode(untidy, colour, LIMIT) == decode(JPEG, colour, LIMIT)).all()


def test_png_without_its_end_is_a_picture_where_its_pixels_are_whole() -> None:
    for length in range(len(PNG) - 12, len(PNG)):
        assert (decode(PNG[:length], "RGB", LIMIT) == decode(PNG, "RGB", LIMIT)).all()
    assert (decode(PNG[:-12] + bytes(100), "RGB", LIMIT) == decode(PNG, "RGB", LIMIT)).all()
    samples = random_samples(16, 20, RGB, 16)
    whole = png_file(samples, 16, RGB)
    first = whole[: whole.index(b"IDAT") + 4 + 9 + 4]
    with pytest.raises(BadImage, match=r"image is truncated: \d+ bytes of PNG"):
        decode(first, "RGB", LIMIT)


def test_wrong_checksum_of_pixels_that_can_be_read_does_not_matter() -> None:
    data = bytearray(PNG)
    data[-13] ^= 1
    assert (decode(bytes(data), "RGB", LIMIT) == decode(PNG, "RGB", LIMIT)).all()
    data[data.index(b"IDAT") + 4] ^= 0xFF
    with pytest.raises(BadImage, match="does not match its checksum"):
        decode(bytes(data), "RGB", LIMIT)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "code", "count", "turned"),
    [
        *((kind, code, 1, 1) for kind, code in ((1, "B"), (3, "H"), (4, "I"), (6, "b"), (8, "h"), (9, "i"))),
        *((kind, code, 1, 0) for kind, code in ((2, "B"), (5, "I"), (7, "B"), (11, "f"))),
        (3, "H", 2, 0),
        (4, "I", 0, 0),
    ],
)
def test_orientation_is_any_one_integer(kind: int, code: str, count: int, turned: int, order: str) -> None:
    for value in (6, 0, 9):
        entry = struct.pack(f"{order}{code}", value).ljust(4, b"\0")
        mark = b"II*\0" if order == "<" else b"MM\0*"
        exif = mark + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, count) + entry + bytes(4)
        data = saved(photograph(), "JPEG", exif=b"Exif\0\0" + exif)
        assert inspect(data, LIMIT)[1:3] == ((56, 40) if turned and value == 6 else (40, 56))


# Whatever comes, it is a picture of the announced size or a BadImage in our own words.

LEAKS = re.compile(r"(?<!image is )\b0x[0-9a-f]{5,}|/|PIL|[Pp]illow|libjpeg|turbo|zlib|Traceback|\.py|\n")


def attempt(call: Callable[[], T]) -> T | BadImage:
    """What the call returns, or the refusal it raises, its message checked."""
    try:
        return call()
    except BadImage as refusal:
        if LEAKS.search(refusal.message) or len(refusal.message) > 200:
            raise AssertionError(f"not our words: {refusal.message}") from refusal
        return refusal


def outcome(data: bytes, colour: Colour = "RGB") -> str:
    """Decode, check what may come out, and tell which it was."""
    header = attempt(lambda: inspect(data, 1_000_000))
    pixels = attempt(lambda: decode(data, colour, 1_000_000))
    if isinstance(header, BadImage):
        assert isinstance(pixels, BadImage)
        return "refused"
    if isinstance(pixels, BadImage):
        return "undecodable"
    assert pixels.shape == (header.height, header.width, 3 if colour == "RGB" else 1)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return "decoded"


FILES = [
    JPEG,
    PROGRESSIVE,
    PNG,
    saved(photograph(9, 9).convert("L"), "JPEG"),
    saved(photograph(24, 24).convert("CMYK"), "JPEG"),
    saved(photograph(24, 16), "JPEG", exif=b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)),
    *(png_file(random_samples(6, 7, kind, bits), bits, kind, True) for kind, bits in KINDS),
    png_file(random_samples(6, 7, PALETTE, 4), 4, PALETTE, before=[(b"PLTE", bytes(range(48))), (b"tRNS", b"\0\7")]),
]


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", JPEG[:200], PNG[:60]]))
@example(b"", JPEG)
@example(b"", PNG)
def test_random_bytes_are_refused_in_our_own_words(data: bytes, prefix: bytes) -> None:
    assert outcome(prefix + data) == ("decoded" if prefix in (JPEG, PNG) else "refused")


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FILES), st.sampled_from(["RGB", "L"]), st.data())
def test_flipped_bits_never_give_another_error_or_another_size(
    file: bytes, colour: Colour, data: st.DataObject
) -> None:
    damaged = bytearray(file)
    for at in data.draw(st.lists(st.integers(0, 8 * len(file) - 1), min_size=1, max_size=6)):
        damaged[at // 8] ^= 1 << at % 8
    outcome(bytes(damaged), colour)


def mended(data: bytearray) -> bytes:
    """Damaged PNG bytes with checksums that hold, so that what is behind them is reached."""
    position = 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4])
        data[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4)
        position = end + 4
    return bytes(data)


def test_each_kind_of_outcome_comes_of_damage_with_checksums_that_hold() -> None:
    rng = random.Random(11)
    outcomes = set()
    for _ in range(600):
        file = bytearray(rng.choice(FILES))
        for _ in range(rng.randint(1, 4)):
            file[rng.randrange(8, len(file))] = rng.randrange(256)
        outcomes.add(outcome(mended(file) if file.startswith(PNG[:8]) else bytes(file)))
    assert outcomes == {"refused", "undecodable", "decoded"}


# What is built to be slow or large.


def cpu_seconds(call: Callable[[], object]) -> float:
    """The least of three runs: of this thread, so that what others do on the machine counts little."""
    times = []
    for _ in range(3):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


def jpeg_with(before_scan: bytes = b"", in_scan: bytes = b"") -> bytes:
    """The JPEG file with more in front of its scan, and in it."""
    scan = JPEG.index(b"\xff\xda")
    length = int.from_bytes(JPEG[scan + 2 : scan + 4])
    return JPEG[:scan] + before_scan + JPEG[scan : scan + 2 + length] + in_scan + JPEG[scan + 2 + length :]


def png_with(chunks: bytes) -> bytes:
    return PNG[:33] + chunks + PNG[33:]


def filled(pattern: bytes, size: int = 64 * MIB - 4096) -> bytes:
    return pattern * (size // len(pattern))


SCAN = JPEG[JPEG.index(b"\xff\xda") :][:14]

SLOW = {
    "scan of stuffed bytes": lambda: jpeg_with(in_scan=filled(b"\xff\0")),
    "scan of restart markers": lambda: jpeg_with(in_scan=filled(b"\xff\xd0")),
    "scan of fill bytes": lambda: jpeg_with(in_scan=filled(b"\xff") + b"\0"),
    "scan of almost markers": lambda: jpeg_with(in_scan=filled(b"\xd9\xda")),
    "scan without an end": lambda: jpeg_with(in_scan=filled(b"\x5a"))[: 64 * MIB - 8192],
    "many empty scans": lambda: jpeg_with(before_scan=filled(SCAN)),
    "many empty comments": lambda: jpeg_with(before_scan=filled(b"\xff\xfe\0\2")),
    "long comments": lambda: jpeg_with(before_scan=filled(b"\xff\xfe\xff\xff" + bytes(65_533))),
    "fill bytes": lambda: jpeg_with(before_scan=filled(b"\xff")),
    "restart markers": lambda: jpeg_with(before_scan=filled(b"\xff\xd0")),
    "rubbish": lambda: jpeg_with(before_scan=filled(b"\0")),
    "many directories": lambda: jpeg_with(
        before_scan=filled(
            b"\xff\xe1\xff\xffExif\0\0MM\0*\0\0\0\x08" + (5000).to_bytes(2) + bytes(65_533 - 16),
        )
    ),
    "empty PNG chunks": lambda: png_with(filled(chunk(b"teSt", b""))),
    "empty pixel chunks": lambda: png_with(filled(chunk(b"IDAT", b""))),
    "as many pixel chunks as are read": lambda: png_with(chunk(b"IDAT", bytes(4000)) * 16_380),
    "one long chunk": lambda: png_with(chunk(b"teSt", filled(b"\0"))),
    "long pixel chunk": lambda: png_with(chunk(b"IDAT", filled(b"\0"))),
    "long palette": lambda: png_with(chunk(b"PLTE", filled(b"\0"))),
    "long directory": lambda: png_with(chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + filled(b"\0"))),
    "PNG without an end": lambda: PNG[:-12] + filled(b"\0"),
    "64 MiB of nothing": lambda: bytes(64 * MIB),
}


@pytest.mark.parametrize("name", SLOW)
def test_structure_of_64_mib_takes_no_longer_than_a_few_checksums(name: str) -> None:
    """At most 50 ms on most machines; at 40 bytes a step in Python it would be a second."""
    data = SLOW[name]()
    checksum = cpu_seconds(lambda: zlib.crc32(data))
    assert cpu_seconds(lambda: attempt(lambda: inspect(data, LIMIT))) < 4 * checksum


def test_photograph_is_inspected_well_within_a_millisecond() -> None:
    data = saved(photograph(480, 640), "JPEG", quality=95)
    assert cpu_seconds(lambda: inspect(data, LIMIT)) < 0.001


def test_more_scans_than_any_camera_writes_are_refused() -> None:
    scan = JPEG[JPEG.index(b"\xff\xda") : -2]
    assert inspect(JPEG[:-2] + scan * 99 + JPEG[-2:], LIMIT)
    with pytest.raises(BadImage, match="more than 100 scans, want at most 100"):
        inspect(JPEG[:-2] + scan * 100 + JPEG[-2:], LIMIT)


@cache
def bomb() -> bytes:
    """64 MiB of zeros in 65 kB."""
    return zlib.compress(bytes(64 * MIB), 9)


@cache
def seconds_to_inflate_the_bomb() -> float:
    return cpu_seconds(lambda: zlib.decompress(bomb()))


def test_png_that_inflates_to_more_than_its_header_says_costs_no_more_than_its_header_says() -> None:
    header = struct.pack(">IIBBBBB", 8, 8, 8, GREY, 0, 0, 0)
    data = PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", bomb()) + chunk(b"IEND", b"")
    assert decode(data, "L", LIMIT).shape == (8, 8, 1)
    assert cpu_seconds(lambda: decode(data, "L", LIMIT)) < seconds_to_inflate_the_bomb() / 10


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("after_the_pixels", [False, True])
def test_text_or_profile_that_inflates_without_end_is_never_inflated(name: bytes, after_the_pixels: bool) -> None:
    prefix = b"key\0\1\0\0\0" if name == b"iTXt" else b"key\0\0"
    extra = [(name, prefix + bomb())] * 4
    samples = random_samples(5, 5, RGB, 8)
    data = png_file(samples, 8, RGB, before=[] if after_the_pixels else extra, after=extra if after_the_pixels else [])
    assert (decode(data, "RGB", LIMIT) == samples).all()
    assert cpu_seconds(lambda: decode(data, "RGB", LIMIT)) < seconds_to_inflate_the_bomb() / 10
