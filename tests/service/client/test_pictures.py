"""Pictures of formats that a server does not decode reach it as the same picture that training would see."""

import io
import sys
import types
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageOps
import pytest

from convoy.models.data import picture
from convoy.models.errors import BadData
from convoy.service.client.client import Client
from convoy.service.client.pictures import accepted, as_png, is_called_picture
from convoy.service.client.requests import read_image
from convoy.service.errors import BadImage
from convoy.service.images.decode import decode

ORIENTATION = 0x0112
LOSSLESS = {"tif": {}, "bmp": {}, "gif": {}, "webp": {"lossless": True}, "ppm": {}, "ico": {}, "jp2": {}}


def gradient(mode: str = "RGB", width: int = 24, height: int = 16) -> PIL.Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[:4, :4] = 255  # no two orientations look the same
    return PIL.Image.fromarray(pixels).convert(mode)


def saved(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, {"tif": "TIFF", "jp2": "JPEG2000"}.get(kind, kind.upper()), **options)
    return file.getvalue()


def turned(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def served(data: bytes, colour: str = "RGB") -> np.ndarray:
    """The pixels that a server sees."""
    return decode(accepted(data), colour, 10**8).pixels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", LOSSLESS)
def test_picture_is_what_training_sees(tmp_path: Path, kind: str, mode: str) -> None:
    try:
        image = gradient("L") if mode == "I;16" else gradient(mode, 16, 16) if kind == "ico" else gradient(mode)
        if mode == "I;16":
            image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 200)
        data = saved(image, kind, **LOSSLESS[kind])
    except (OSError, ValueError, KeyError, NotImplementedError):
        pytest.skip(f"{kind} has no {mode}")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(data)
    if (kind, mode) == ("ppm", "I;16"):  # Pillow reads 32 bits
        with pytest.raises(BadData):
            picture.read(path, "RGB")
        with pytest.raises(BadImage):
            served(data)
        return
    for colour in ("RGB", "L"):
        off = np.abs(served(data, colour).astype(int) - picture.read(path, colour))
        assert off.max() <= 1, colour  # grey is rounded once or twice


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["tif", "webp", "avif"])
def test_picture_is_upright_as_its_exif_says(kind: str, orientation: int) -> None:
    if kind == "avif" and not PIL.features.check("avif"):
        pytest.skip("Pillow without AVIF")
    options = {"lossless": True} if kind == "webp" else {"quality": 100} if kind == "avif" else {}
    data = saved(gradient(), kind, exif=turned(orientation), **options)
    wanted = saved(gradient(), "png", exif=turned(orientation))  # a server's own rotation
    assert (orientation == 1) == np.array_equal(served(wanted), np.asarray(gradient()))
    assert np.abs(served(data).astype(int) - served(wanted)).max() <= (60 if kind == "avif" else 0)
    assert np.abs(served(data).astype(int) - served(wanted)).mean() < 4


def test_animation_is_its_first_frame() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("gif", "webp"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, lossless=True)
        assert served(data)[0, 0].tolist() == [255, 0, 0]


def test_pages_after_the_first_are_left_out() -> None:
    pages = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert served(saved(pages[0], "tif", save_all=True, append_images=pages[1:]))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_files_that_a_server_decodes_are_sent_as_they_are(kind: str) -> None:
    data = saved(gradient(), kind)
    assert accepted(data) is data
    assert accepted(data[:30]) == data[:30]


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"%PDF-1.7 ...", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture_is_for_the_server_to_refuse(data: bytes) -> None:
    assert accepted(data) == data


def test_damaged_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.bmp"
    path.write_bytes(saved(gradient(), "bmp")[:-40])
    with pytest.raises(BadImage, match=r"image '.*cut\.bmp' cannot be decoded \("):
        read_image(path)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused_as_in_training(mode: str) -> None:
    with pytest.raises(BadImage, match="has 32 bits a pixel, want 8 or 16"):
        accepted(saved(gradient("L").convert(mode), "tif"))


def test_picture_with_more_pixels_than_pillow_opens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(gradient(), "bmp")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="image has more pixels than Pillow's limit, 200"):
        accepted(data)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def test_heic_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(BadImage, match=r"image '.*a\.heic' is HEIC: .*pip install pillow-heif"):
        read_image(tmp_path / "a.heic")


def test_heic_is_read_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for it: what it opens is a picture of one colour."""

    class Opened(PIL.Image.Image):
        format = "HEIF"

        def __init__(self, file: object, name: str) -> None:
            super().__init__()
            self.im = PIL.Image.new("RGB", (4, 4), "red").im
            self._mode, self._size = "RGB", (4, 4)

    package = types.ModuleType("pillow_heif")
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    package.register_heif_opener = lambda: PIL.Image.register_open("HEIF", Opened, lambda start: b"ftypheic" in start)
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setattr(PIL.Image, "OPEN", dict(PIL.Image.OPEN))
    monkeypatch.setattr(PIL.Image, "ID", list(PIL.Image.ID))
    assert served(HEIC)[0, 0].tolist() == [255, 0, 0]


def test_picture_of_pillow_is_sent_upright(vision_target, fake_vision) -> None:
    opened = PIL.Image.open(io.BytesIO(saved(gradient(), "jpeg", exif=turned(6), quality=100, subsampling=0)))
    upright = PIL.ImageOps.exif_transpose(opened)
    with Client(vision_target) as client:
        for image in (opened, upright):
            client.classify(image)
    sent = [decode(request.images[0].encoded, "RGB", 10**6).pixels for request in fake_vision.requests]
    assert all(np.array_equal(each, np.asarray(upright)) for each in sent)
    assert sent[0].shape == (24, 16, 3)


def test_current_frame_of_a_picture_of_pillow_is_sent() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    opened = PIL.Image.open(io.BytesIO(saved(frames[0], "gif", save_all=True, append_images=frames[1:])))
    opened.seek(1)
    assert decode(as_png(opened), "RGB", 10**6).pixels[0, 0].tolist() == [0, 0, 255]


def test_other_objects_are_no_pictures(vision_target) -> None:
    with Client(vision_target) as client, pytest.raises(BadImage, match="image is a list, want a path"):
        client.classify([[1, 2]])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("a.JPG", True),
        ("a.tiff", True),
        ("a.heic", True),
        ("a.webp", True),
        ("a.pdf", False),
        ("a.txt", False),
        ("png", False),
    ],
)
def test_pictures_are_known_by_their_names(name: str, called: bool) -> None:
    assert is_called_picture(name) == called
