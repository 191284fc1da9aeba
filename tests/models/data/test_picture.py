"""Training reads picture files as serving decodes them, other formats too, and sizes without pixels."""

import struct
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convoy.models.data import picture
from convoy.models.data.formats import masks
from convoy.models.errors import BadData
from convoy.service.errors import BadImage
from convoy.service.images.decode import decode

COLOURS: tuple[Literal["RGB", "L"], ...] = ("RGB", "L")
ORIENTATION = 0x0112


def pixels(mode: str, size: tuple[int, int] = (23, 14)) -> Image.Image:
    """A smooth picture of that mode, 23 wide and 14 high, no two corners alike."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    channels = [255 * x, 255 * y, 128 + 60 * np.sin(4 * x + 3 * y), 255 * (x + y) / 2]
    bands = len(Image.new(mode, (1, 1)).getbands()) if mode != "P" else 3
    stacked = np.stack(channels[:bands], axis=-1).round().astype(np.uint8)
    image = Image.fromarray(stacked if bands > 1 else stacked[..., 0], None if mode == "P" else mode)
    return image.quantize(16) if mode == "P" else image


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def difference(path: Path, colour: Literal["RGB", "L"]) -> int:
    """How far training's pixels are from serving's, at most."""
    ours, served = picture.read(path, colour), decode(path.read_bytes(), colour, 10**6).pixels
    assert ours.shape == served.shape
    assert ours.dtype == np.uint8
    return int(np.abs(ours.astype(int) - served).max())


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_read_as_serving_decodes_it(tmp_path: Path, mode: str, colour: Literal["RGB", "L"]) -> None:
    # Of CMYK Pillow writes and reads the same inversion that serving undoes.
    path = saved(pixels(mode), tmp_path / "a.jpg", quality=90)
    assert difference(path, colour) <= (1 if mode == "CMYK" else 0)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
def test_png_is_read_as_serving_decodes_it(tmp_path: Path, mode: str, colour: Literal["RGB", "L"]) -> None:
    image = pixels("L").convert("1") if mode == "1" else pixels(mode)
    assert difference(saved(image, tmp_path / "a.png"), colour) <= (1 if mode.endswith("A") else 0)


def test_transparent_palette_is_on_white_as_in_serving(tmp_path: Path) -> None:
    path = saved(pixels("P"), tmp_path / "a.png", transparency=bytes(range(0, 256, 16)))
    assert difference(path, "RGB") <= 1


@pytest.mark.parametrize("colour", COLOURS)
def test_sixteen_bits_are_scaled_as_serving_scales_them(tmp_path: Path, colour: Literal["RGB", "L"]) -> None:
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    assert difference(saved(Image.fromarray(values), tmp_path / "a.png"), colour) == 0


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_as_exif_says(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(pixels("RGB"), tmp_path / f"a.{kind}", exif=exif)
    assert difference(path, "RGB") == 0
    assert picture.header(path)[:2] == picture.read(path, "RGB").shape[:2]
    # The negative control: as it is stored, it is another picture.
    assert (orientation == 1) == (picture.read(path, "RGB").tobytes() == np.asarray(Image.open(path)).tobytes())


@pytest.mark.parametrize("kind", ["bmp", "gif", "tif", "webp", "ppm"])
def test_other_formats_are_read_too(tmp_path: Path, kind: str) -> None:
    path = saved(pixels("RGB"), tmp_path / f"a.{kind}")
    found = picture.read(path, "RGB").astype(int)
    assert found.shape == (14, 23, 3)
    assert np.abs(found - np.asarray(pixels("RGB"))).mean() < 12
    assert picture.header(path) == (14, 23, False)


def test_header_tells_grey_from_colour(tmp_path: Path) -> None:
    for mode, grey in (("L", True), ("LA", True), ("RGB", False), ("P", False)):
        assert picture.header(saved(pixels(mode), tmp_path / "a.png")).grey == grey


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    file = BytesIO()
    pixels(mode).save(file, "JPEG", **options)
    return file.getvalue()


def png(mode: str = "RGB", **options: object) -> bytes:
    file = BytesIO()
    pixels(mode).save(file, "PNG", **options)
    return file.getvalue()


def turned(order: str, kind: int, value: int) -> bytes:
    """EXIF of one orientation, stored as that kind of integer."""
    code = {1: "B", 3: "H", 4: "I", 9: "i"}[kind]
    entry = struct.pack(f"{order}{code}", value).ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(f"{order}IHHHI", 8, 1, ORIENTATION, kind, 1) + entry + bytes(4)


SCAN = jpeg().index(b"\xff\xda")
CORPUS = {
    "stray bytes before the end": jpeg()[:-2] + b"\x12\x34" * 5 + jpeg()[-2:],
    "stray bytes between segments": jpeg()[:SCAN] + b"\1\2\3" + jpeg()[SCAN:],
    "bytes after the end of a JPEG": jpeg() + b"trailing",
    "scan cut before its end": jpeg()[:-30] + b"\xff\xd9",
    "progressive scan cut before its end": jpeg(progressive=True)[:-8] + b"\xff\xd9",
    "no end of image": jpeg()[:-2],
    "half a JPEG": jpeg()[:-150],
    "odd JFIF revision": jpeg()[:11] + b"\0" + jpeg()[12:],
    "print colours": jpeg("CMYK"),
    "grey JPEG": jpeg("L"),
    "PNG without its end": png()[:-12],
    "PNG cut in its end": png()[:-5],
    "half a PNG": png()[:-60],
    "bytes after the end of a PNG": png() + b"trailing",
    "wrong checksum of pixels": png()[:-13] + bytes([png()[-13] ^ 1]) + png()[-12:],
    "wrong checksum of the header": png()[:29] + bytes([png()[29] ^ 1]) + png()[30:],
    "transparent palette": png("P", transparency=bytes(range(0, 256, 16))),
    "grey with alpha": png("LA"),
    "colour with alpha": png("RGBA"),
    "four bits": png("P", bits=4),
    **{
        f"orientation {value} as kind {kind} {order}": jpeg(exif=turned(order, kind, value))
        for value in (0, 6, 9)
        for kind in (1, 3, 4, 9)
        for order in "<>"
    },
}
BROKEN = {
    "scan cut before its end": "a part of its JPEG scan is missing or garbled",
    "progressive scan cut before its end": "a part of its JPEG scan is missing or garbled",
    "no end of image": "image is truncated",
    "half a JPEG": "image is truncated",
    "half a PNG": "image is truncated",
    "wrong checksum of the header": "does not match its checksum",
}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("name", CORPUS)
def test_training_and_serving_agree_on_every_file(tmp_path: Path, name: str, colour: Literal["RGB", "L"]) -> None:
    path = tmp_path / "a"
    path.write_bytes(CORPUS[name])
    if name in BROKEN:
        with pytest.raises(BadImage, match=BROKEN[name]):
            decode(CORPUS[name], colour, 10**6)
        with pytest.raises(BadData, match=BROKEN[name]):
            picture.read(path, colour)
    else:
        served = decode(CORPUS[name], colour, 10**6)
        ours = picture.read(path, colour)
        assert (ours == served.pixels).all()
        assert ours.flags.writeable
        assert picture.header(path)[:2] == ours.shape[:2] == (served.height, served.width)


def arithmetic(data: bytes) -> bytes:
    """The JPEG file declared to be arithmetic coded: the same bytes are then another picture."""
    return data.replace(b"\xff\xc0", b"\xff\xc9", 1)


def test_arithmetic_coded_jpeg_is_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(arithmetic(jpeg("L")))
    ours = picture.read(path, "L")
    assert (ours == decode(path.read_bytes(), "L", 10**6).pixels).all()
    assert (ours == np.asarray(Image.open(path))[..., None]).all()


def test_reading_refuses_flipped_bits_as_serving_does(tmp_path: Path) -> None:
    path, rng = tmp_path / "a", np.random.default_rng(5)
    outcomes = set()
    for _ in range(200):
        data = bytearray(list(CORPUS.values())[rng.integers(len(CORPUS))])
        data[rng.integers(12, len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            served = decode(bytes(data), "RGB", 10**10).pixels.tobytes()
        except BadImage as error:
            with pytest.raises(BadData) as refused:
                picture.read(path, "RGB")
            assert error.message in refused.value.message or picture.MANY in refused.value.message  # noqa: PT017 - two readers, one outcome
            outcomes.add("refused")
        else:
            assert picture.read(path, "RGB").tobytes() == served
            outcomes.add("read")
    assert outcomes == {"read", "refused"}


def test_truncated_picture_is_refused_by_its_header_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png()[:100])
    for read in (picture.header, lambda path: picture.read(path, "RGB")):
        with pytest.raises(BadData, match=r"a\.png cannot be read \(image is truncated: 100 bytes of PNG"):
            read(tmp_path / "a.png")


def test_what_is_no_picture_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name, why in (("text.png", "damaged"), ("none.png", "No such file"), ("float.tif", "32 bits a pixel")):
        with pytest.raises(BadData, match=why) as caught:
            picture.read(tmp_path / name, "L")
        assert name in caught.value.message
        assert "\n" not in caught.value.message


def test_picture_of_too_many_pixels_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(pixels("RGB"), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadData, match="more pixels than Pillow's limit"):
        picture.read(path, "RGB")


def mask() -> NDArray[np.uint8]:
    return np.array([[0, 1, 2], [255, 1, 0]], np.uint8)


def test_mask_is_the_indices_of_a_palette_or_of_grey(tmp_path: Path) -> None:
    image = Image.fromarray(mask())
    assert (masks.read(saved(image, tmp_path / "grey.png")) == mask()).all()
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90] + 247 * [0, 0, 0])
    path = saved(image, tmp_path / "palette.png")
    assert (masks.read(path) == mask()).all()
    assert picture.mask_header(path).palette[:3] == [(10, 20, 30), (40, 50, 60), (70, 80, 90)]


def test_mask_of_another_kind_is_told(tmp_path: Path) -> None:
    path = saved(Image.fromarray(mask()), tmp_path / "lossy.jpg")
    with pytest.raises(BadData, match="is JPEG, which does not keep every value") as caught:
        masks.read(path)
    assert str(path) in caught.value.message
    np.testing.assert_array_equal(
        masks.read(saved(Image.fromarray(mask()), tmp_path / "bmp.png", format="BMP")), mask()
    )


def test_files_are_pictures_by_name_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in picture.files(tmp_path)] == ["a.png", "b.JPG"]
