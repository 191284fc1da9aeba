"""Masks as people paint them: other values than numbers of classes, colours, more or fewer bits."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convoy.models.data.files import raise_first
from convoy.models.data.formats import masks, sources
from convoy.models.data.formats.coding import Coding, Kind, of_source, parse, source
from convoy.models.data.registry import data_set, display_name, resolve, resolve_replacement, split_of
from convoy.models.errors import BadData, BadTraining
from convoy.service import cli
from tests.models.data.formats.test_folder import write_classes, write_masks
from tests.models.data.test_field import paint

NUMBERS = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
COLOURS = np.array([[0x000000, 0xFF0000, 0x0080FF], [0xFFFFFF, 0xFF0000, 0x000000]])


def saved(pixels: NDArray[np.generic], path: Path, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def coloured(packed: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)


def png_of_four_bits() -> bytes:
    """A grey PNG file of 1x4 pixels: 0, 1, 2 and 3 of 15."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 1, 4, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0\x01\x23")),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_grey_mask_is_its_numbers_however_many_channels_it_was_saved_with(tmp_path: Path, mode: str) -> None:
    assert (masks.read(saved(NUMBERS, tmp_path / "mask.png", mode)) == NUMBERS).all()


def test_mask_of_16_bits_is_its_numbers(tmp_path: Path) -> None:
    assert (masks.read(saved(NUMBERS.astype(np.uint16), tmp_path / "mask.png")) == NUMBERS).all()


def test_mask_of_few_bits_is_the_numbers_in_the_file(tmp_path: Path) -> None:
    four = tmp_path / "four.png"
    four.write_bytes(png_of_four_bits())
    assert np.asarray(Image.open(four)).tolist() == [[0, 17, 34, 51]]  # Pillow spreads 0..15 over 0..255
    assert masks.read(four).tolist() == [[0, 1, 2, 3]]
    one = saved(np.array([[0, 255], [255, 0]], np.uint8), tmp_path / "one.png", "1")
    assert masks.read(one).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("ending", ["tif", "bmp"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_mask_of_another_lossless_format_is_its_numbers(tmp_path: Path, ending: str, mode: str) -> None:
    image = Image.fromarray(NUMBERS)
    if mode == "P":
        image.putpalette([value // 3 for value in range(768)])
    image.save(tmp_path / f"mask.{ending}")
    assert (masks.read(tmp_path / f"mask.{ending}") == NUMBERS).all()


def test_tiff_mask_of_16_or_32_bits_is_its_numbers(tmp_path: Path) -> None:
    for dtype in (np.uint16, np.int32):
        assert (masks.read(saved(NUMBERS.astype(dtype), tmp_path / "mask.tif")) == NUMBERS).all()
    with pytest.raises(BadData, match="with pixels of kind I, want"):
        masks.read(saved(NUMBERS.astype(np.int32) - 1, tmp_path / "mask.tif"))


@pytest.mark.parametrize(("ending", "name"), [("jpg", "JPEG"), ("webp", "WEBP"), ("gif", "GIF")])
def test_mask_that_was_compressed_with_losses_is_refused_with_the_reason(
    tmp_path: Path, ending: str, name: str
) -> None:
    path = saved(NUMBERS, tmp_path / f"mask.{ending}")
    for coding in (None, parse("values", "0,1,2"), parse("colours", "000000,010101")):
        with pytest.raises(BadData, match=f"is {name}, which does not keep every value .*, want PNG, TIFF or BMP"):
            masks.read(path, coding)


def test_values_are_the_classes_that_are_said(tmp_path: Path) -> None:
    path = saved(np.array([[0, 128, 200, 255]], np.uint8), tmp_path / "mask.png")
    assert masks.read(path, parse("values", "0,128,200")).tolist() == [[0, 1, 2, 255]]
    assert masks.read(path, parse("values", "128, 0, 255, 200=255")).tolist() == [[1, 0, 255, 2]]
    deep = saved(np.array([[0, 30000]], np.uint16), tmp_path / "deep.png")
    assert masks.read(deep, parse("values", "0,30000")).tolist() == [[0, 1]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_the_classes_that_are_said(tmp_path: Path, mode: str) -> None:
    path, image = tmp_path / "mask.png", Image.fromarray(coloured(COLOURS))
    (image.quantize() if mode == "P" else image.convert(mode)).save(path)
    coding = parse("colours", "000000,#FF0000,0080ff,ffffff=255")
    assert (masks.read(path, coding) == NUMBERS).all()
    assert coding.palette() == [(0, 0, 0), (255, 0, 0), (0, 128, 255)]


@pytest.mark.parametrize(
    ("coding", "pixels", "message"),
    [
        (None, coloured(COLOURS), "has the colours #000000, #0080ff, #ff0000, #ffffff, want a PNG .* --mask-colours"),
        (None, np.array([[0, 30000]], np.uint16), "has the values 0, 30000, want the number of its class .*--mask-val"),
        (parse("values", "0,1"), NUMBERS, "has the values 2, want only those of --mask-values 0,1"),
        (parse("values", "0,1"), coloured(COLOURS), "has the colours #000000, .*--mask-colours"),
        (parse("colours", "000000,ff0000"), coloured(COLOURS), "#0080ff, #ffffff, want only those of --mask-colours 0"),
    ],
)
def test_what_stands_for_no_class_is_told(
    tmp_path: Path, coding: Coding | None, pixels: NDArray[np.generic], message: str
) -> None:
    with pytest.raises(BadData, match=message):
        masks.read(saved(pixels, tmp_path / "mask.png"), coding)


def test_mask_that_is_transparent_in_places_is_told(tmp_path: Path) -> None:
    pixels = np.dstack([coloured(COLOURS), np.array([[255, 255, 0], [255, 255, 255]], np.uint8)])
    with pytest.raises(BadData, match="is transparent in places"):
        masks.read(saved(pixels, tmp_path / "mask.png"))


def test_coding_is_read_as_it_is_written() -> None:
    for kind, text in (("values", "0,255"), ("values", "3,7=0,9=255"), ("colours", "000000,ff0000,ffffff=255")):
        coding = parse(kind, text)  # type: ignore[arg-type]
        assert str(coding) == text
        assert of_source(source(Path("/a#b/c"), coding)) == ("/a#b/c", coding)
    assert of_source("/a#b/c") == ("/a#b/c", None)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(("values", text) for text in ("", "a", "0,", "0,0", "0,-1", "65536", "0,1=256", "0=1=2", "0;1")),
        *(("colours", text) for text in ("", "red", "00000", "000000,000000", "000000,ff0000=300")),
    ],
)
def test_coding_that_is_none_is_told_with_one_that_is(kind: Kind, text: str) -> None:
    with pytest.raises(BadTraining, match=f"--mask-{kind} .*, want the {kind} of the classes in order, such as 0"):
        parse(kind, text)


def test_run_notes_how_its_masks_are_coded_and_a_moved_folder_keeps_it(tmp_path: Path) -> None:
    root = paint(tmp_path / "one", {1: 64, 2: 192})
    coding = parse("values", "0,64,192")
    noted = resolve(str(root), coding)
    assert display_name(noted) == "one"
    assert resolve(noted) == noted
    data = data_set(noted)
    assert (data.name, data.labels) == (noted, ["class 0", "class 1", "class 2"])
    root.rename(tmp_path / "two")
    there = resolve_replacement(str(tmp_path / "two"), noted)
    assert there == source(tmp_path / "two", coding)
    pictures = split_of(there, "test", "segmentation", "RGB", data.labels)
    assert {int(number) for index in range(len(pictures)) for number in np.unique(pictures[index][1])} == {0, 1, 2}
    other = parse("values", "0,1,2")
    assert of_source(resolve_replacement(resolve(str(tmp_path / "two"), other), noted))[1] == other


def test_what_was_read_one_way_is_read_again_another_way(tmp_path: Path) -> None:
    root = paint(tmp_path, {1: 64, 2: 192})
    for text, highest in (("0,64,192", 2), ("0,64,192=1", 1), ("0,64=1,192=2", 2)):
        assert len(sources.load(root, raise_first, parse("values", text)).labels) == highest + 1


def test_commands_take_values_and_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = paint(tmp_path / "values", {1: 64, 2: 192})
    assert cli.run(["data", "check", str(values), "--mask-values", "0,64,192"]) == 1  # copies
    assert "segmentation, 3 classes" in capsys.readouterr().out
    colours = write_masks(tmp_path / "colours")
    for mask in (colours / "masks").iterdir():
        colour = np.full(256, 0xE0E0C0)
        colour[:3] = 0x000000, 0xFF0000, 0x00FF00
        saved(coloured(colour[np.asarray(Image.open(mask))]), mask)
    table = tmp_path / "colours.txt"
    table.write_text("0 0 0\n255 0 0\n#00ff00\n")
    for option in ("000000,ff0000,00ff00,e0e0c0=255", f"{table},e0e0c0=255"):
        assert cli.run(["data", "check", str(colours), "--mask-colours", option]) == 1
        assert "segmentation, 3 classes" in capsys.readouterr().out
    sheet = tmp_path / "preview.png"
    told = ["--data", str(values), "--mask-values", "0,64,192", "--crop", "8", "--preview", str(sheet)]
    assert cli.run(["train", "unet", *told]) == 0
    assert sheet.is_file()


@pytest.mark.parametrize("kind", ["0 and 255", "colours with a table", "colours with an option"])
def test_a_network_trains_on_painted_masks(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    root, said = write_masks(tmp_path / "data"), []
    table = np.array([[10, 20, 30], [255, 0, 0], [0, 255, 0]], np.uint8)
    for file in (root / "masks").iterdir():
        with Image.open(file) as image:
            classes = np.asarray(image) % 3
        saved(np.minimum(classes, 1) * np.uint8(255) if kind == "0 and 255" else table[classes], file)
    if kind == "colours with a table":
        (root / "palette.txt").write_text("10 20 30\n255 0 0\n0 255 0\n")
    if kind == "colours with an option":
        said = ["--mask-colours", "0a141e,ff0000,00ff00"]
    command = ["train", "unet", "--data", str(root), "--crop", "8", "--set", "width=4", "--set", "depth=1"]
    assert cli.run([*command, "--epochs", "1", "--output", str(tmp_path / "run"), *said]) == 0
    assert cli.run(["evaluate", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "class 1" in out
    assert ("class 2" in out) == (kind != "0 and 255")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data", "check", "FOLDER", "--mask-values", "0,1", "--mask-colours", "000000"],
            "are alternatives, want one of them",
        ),
        (["data", "check", "FOLDER", "--mask-values", "0,1"], "has no masks, --mask-values describes how to read"),
        (["data", "check", "aerial", "--mask-values", "0,1"], "describes users' own masks"),
        (["train", "unet", "--mask-values", "0,1"], "require --data"),
        (["evaluate", "run.ckpt", "--mask-values", "0,1"], "require --data"),
        (["data", "check", "FOLDER", "--mask-colours", "red"], "--mask-colours 'red', want the colours"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_classes(tmp_path)
    assert cli.run([str(root) if word == "FOLDER" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
