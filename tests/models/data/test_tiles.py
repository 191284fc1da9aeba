"""Tiles of large rasters: a data set whose held-out tiles share no pixel with those for training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from convoy.models.data import tiles
from convoy.models.data.registry import data_set, resolve
from convoy.models.data.tiles import Tile, Tiling, block_side, split_tiles, starts
from convoy.service import cli
from tests.service.rasters.files import PLACE, patches, picture, write_geo

tifffile = pytest.importorskip("tifffile", reason="needs tifffile: convoy[tiff]")

SIDE = 400


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write(folder: Path, mask: NDArray[Any] | None = None, **options: Any) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A raster and a mask of SIDE, tiled."""
    pixels, mask = picture(3, SIDE, SIDE), patches(SIDE, SIDE, size=25) if mask is None else mask
    tifffile.imwrite(folder / "land.tif", pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    options = {"photometric": "minisblack", "tile": (64, 64), "compression": "zlib", **options}
    tifffile.imwrite(folder / "mask.tif", mask, **options)
    return pixels, mask


def tile(*words: str) -> int:
    return cli.run(["data", "tile", "land.tif", "mask.tif", "-o", "tiles", "--size", "32", *words])


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def listed(folder: Path) -> dict[str, list[str]]:
    return {file.stem: file.read_text().split() for file in (folder / "tiles" / "splits").iterdir()}


def place(name: str) -> tuple[slice, slice]:
    top, left = map(int, name.split("-")[1:])
    return slice(top, top + 32), slice(left, left + 32)


def test_tiles_are_windows_of_raster_and_mask(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels, mask = write(folder)
    (folder / "names.txt").write_text("field\nroad\nhouse\ntree\n")
    assert tile("--labels", "names.txt") == 0
    splits = listed(folder)
    names = [name for split in splits.values() for name in split]
    said = capsys.readouterr().out
    assert f"tiles     {len(names)} of 32x32: {len(splits['train'])} train, {len(splits['validation'])}" in said
    assert {path.stem for path in (folder / "tiles" / "images").iterdir()} == set(names)
    assert {path.stem for path in (folder / "tiles" / "masks").iterdir()} == set(names)
    for name in names:
        np.testing.assert_array_equal(read(folder / "tiles" / "images" / f"{name}.png"), pixels[place(name)])
        np.testing.assert_array_equal(read(folder / "tiles" / "masks" / f"{name}.png"), mask[place(name)])
    covered = np.zeros((SIDE, SIDE), np.int64)
    for name in names:
        covered[place(name)] += 1
    # 400 is no multiple of 32: the last row and column overlap the ones before.
    assert (covered[:384, :384] > 0).mean() > 0.95


def test_held_out_tiles_share_no_pixel_with_training(folder: Path) -> None:
    write(folder)
    assert tile("--stride", "20") == 0
    seen = {}
    for split, names in listed(folder).items():
        seen[split] = np.zeros((SIDE, SIDE), np.bool_)
        for name in names:
            seen[split][place(name)] = True
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not (seen[one] & seen[other]).any()
    assert all(each.any() for each in seen.values())


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(8, 400),
    width=st.integers(8, 400),
    size=st.integers(16, 120),
    share=st.floats(0.1, 1),
)
def test_splits_never_overlap_whatever_the_sizes(height: int, width: int, size: int, share: float) -> None:
    size = min(size, height, width)
    stride = max(4, int(size * share))
    rows, columns = starts(height, size, stride), starts(width, size, stride)
    assert rows[-1] + size == height
    assert rows == sorted(set(rows))
    places = [Tile(top, left) for top in rows for left in columns]
    of = split_tiles(places, size, block_side(height, width, Tiling(size, stride, 0.5)))
    assert split_tiles(places, size, block_side(height, width, Tiling(size, stride, 0.5))) == of
    owner = np.full((height, width), -1)
    numbers = {"train": 0, "validation": 1, "test": 2}
    for tile, split in of.items():
        if split is not None:
            window = owner[tile.top : tile.top + size, tile.left : tile.left + size]
            assert set(np.unique(window).tolist()) <= {-1, numbers[split]}
            window[...] = numbers[split]


@pytest.mark.parametrize(("side", "tolerance"), [(4096, 0.03), (1600, 0.06), (320, 0.15)])
def test_most_tiles_are_for_training_and_blocks_stay_together(side: int, tolerance: float) -> None:
    places = [Tile(top, left) for top in range(0, side, 64) for left in range(0, side, 64)]
    block = block_side(side, side, Tiling(64, 64, 0.5))
    assert block == {4096: 256, 1600: 256, 320: 64}[side]
    of = split_tiles(places, 64, block)
    shares = {split: sum(each == split for each in of.values()) / len(places) for split in ("train", "validation")}
    assert shares["train"] == pytest.approx(0.7, abs=tolerance)
    assert shares["validation"] == pytest.approx(0.1, abs=tolerance)
    blocks: dict[tuple[int, int], set[str | None]] = {}
    for tile, split in of.items():
        blocks.setdefault((tile.top // block, tile.left // block), set()).add(split)
    assert all(len(splits) == 1 for splits in blocks.values())


def test_the_same_raster_gives_the_same_bytes(folder: Path) -> None:
    write(folder)
    assert tile() == 0
    first = {path.relative_to(folder / "tiles"): path.read_bytes() for path in (folder / "tiles").rglob("*.*")}
    (folder / "tiles").rename(folder / "before")
    assert tile() == 0
    assert {path.relative_to(folder / "tiles"): path.read_bytes() for path in (folder / "tiles").rglob("*.*")} == first


def test_a_network_trains_on_tiles(folder: Path) -> None:
    write(folder)
    assert tile() == 0
    assert cli.run(["data", "check", "tiles"]) == 0
    train = ["train", "unet", "--data", "tiles", "--set", "width=4", "--set", "depth=1", "--epochs", "1"]
    assert cli.run([*train, "--output", "run"]) == 0
    assert data_set(resolve("tiles")).labels == ["class 0", "class 1", "class 2", "class 3"]


def test_absent_areas_are_left_out_and_have_no_class(folder: Path) -> None:
    pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    pixels, mask = picture(1, SIDE, SIDE), patches(SIDE, SIDE, size=25)
    pixels[pixels == 0] = 1
    pixels[:, :200] = 0
    write_geo(folder / "land.tif", pixels, nodata=0)
    write_geo(folder / "mask.tif", mask)
    assert tile("--min-share", "0.25") == 0
    names = [name for split in listed(folder).values() for name in split]
    assert all(place(name)[1].stop > 200 for name in names)
    edge = [name for name in names if place(name)[1].start < 200]
    assert edge
    for name in edge:
        shown = read(folder / "tiles" / "masks" / f"{name}.png")
        np.testing.assert_array_equal(shown, np.where(pixels[place(name)] == 0, 255, mask[place(name)]))


def test_tiles_without_enough_classes_are_left_out(folder: Path) -> None:
    mask = patches(SIDE, SIDE, size=25)
    mask[:150] = 255
    write(folder, mask)
    assert tile("--min-share", "1") == 0
    assert min(place(name)[0].start for split in listed(folder).values() for name in split) >= 150


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_masks_of_any_number_type_are_their_numbers(folder: Path, dtype: Any) -> None:
    _, mask = write(folder, patches(SIDE, SIDE, size=25).astype(dtype))
    assert tile() == 0
    name = listed(folder)["train"][0]
    np.testing.assert_array_equal(read(folder / "tiles" / "masks" / f"{name}.png"), mask[place(name)])


def test_painted_masks_are_converted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = patches(SIDE, SIDE, 2, size=25)
    write(folder, classes * np.uint8(255))
    assert tile() == 2
    assert "has the values 0 and 255 alone, want --mask-values 0,255 if 255 is a class" in capsys.readouterr().err
    assert not (folder / "tiles").exists()
    assert tile("--mask-values", "0,255") == 0
    name = listed(folder)["train"][0]
    np.testing.assert_array_equal(read(folder / "tiles" / "masks" / f"{name}.png"), classes[place(name)])


def test_coloured_masks_are_converted_by_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes, table = patches(SIDE, SIDE, 3, size=25), np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], np.uint8)
    write(folder, table[classes], photometric="rgb")
    assert tile() == 2
    assert "or --mask-colours with the colours of the classes" in capsys.readouterr().err
    (folder / "colours.txt").write_text("0 0 0\n255 0 0\n#0080ff\n")
    assert tile("--mask-colours", "colours.txt") == 0
    name = listed(folder)["train"][0]
    path = folder / "tiles" / "masks" / f"{name}.png"
    np.testing.assert_array_equal(read(path), classes[place(name)])
    with Image.open(path) as image:
        assert image.getpalette()[:9] == table.ravel().tolist()  # type: ignore[index]


def test_a_palette_mask_keeps_its_numbers_and_colours(folder: Path) -> None:
    classes, table = patches(SIDE, SIDE, 4, size=25), np.random.default_rng(0).integers(0, 256, (3, 256), np.uint16)
    write(folder, classes, photometric="palette", colormap=table * np.uint16(257))
    assert tile() == 0
    name = listed(folder)["train"][0]
    with Image.open(folder / "tiles" / "masks" / f"{name}.png") as image:
        np.testing.assert_array_equal(np.asarray(image), classes[place(name)])
        assert image.getpalette()[:12] == table.T[:4].ravel().tolist()  # type: ignore[index]


def test_small_files_of_pillow_are_cut_too(folder: Path) -> None:
    pixels, mask = picture(3, SIDE, SIDE), patches(SIDE, SIDE, size=25)
    Image.fromarray(pixels).save("land.png")
    Image.fromarray(mask).save("mask.png")
    assert cli.run(["data", "tile", "land.png", "mask.png", "-o", "tiles", "--size", "32"]) == 0
    name = listed(folder)["train"][0]
    np.testing.assert_array_equal(read(folder / "tiles" / "masks" / f"{name}.png"), mask[place(name)])


def test_without_a_mask_there_are_pictures_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder)
    assert cli.run(["data", "tile", "land.tif", "-o", "tiles", "--size", "100"]) == 0
    assert len(list((folder / "tiles" / "images").iterdir())) == 16
    assert [path.name for path in (folder / "tiles").iterdir()] == ["images"]
    assert "tiles     16 of 100x100\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "512"], "land.tif is 400x400 (height x width), want at least --size 512"),
        (["--size", "300"], "are too few to hold some out"),
        (["--mask-values", "0,1"], "want only those of --mask-values 0,1"),
        (["--mask-values", "0,1", "--mask-colours", "000000"], "are alternatives"),
        (["--range", "5:2"], "want LOW:HIGH"),
        (["--plane", "3"], "has 1 planes, want a plane of 0 to 0, not 3"),
        (["-o", "none/tiles"], "there is no folder 'none'"),
        (["-o", "land.tif"], "there is land.tif already, want a new folder"),
    ],
)
def test_what_cannot_be_cut_is_one_line_and_leaves_no_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    write(folder)
    assert tile(*words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert {path.name for path in folder.iterdir()} <= {"land.tif", "mask.tif", "cache"}


def test_a_mask_of_another_size_or_place_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder)
    tifffile.imwrite(folder / "mask.tif", patches(SIDE, SIDE - 1), photometric="minisblack")
    assert tile() == 2
    assert "mask mask.tif is 400x399 (height x width), want 400x400 as land.tif" in capsys.readouterr().err
    pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    write_geo(folder / "land.tif", picture(3, SIDE, SIDE), photometric="rgb")
    write_geo(folder / "mask.tif", patches(SIDE, SIDE), place=(*PLACE[:2], PLACE[2] + 10, *PLACE[3:]))
    assert tile() == 2
    assert "mask mask.tif lies elsewhere than land.tif: they differ by 10" in capsys.readouterr().err


def test_a_large_raster_is_cut_in_bounded_memory(folder: Path) -> None:
    import tracemalloc

    side = 6000
    pixels = np.broadcast_to((np.arange(side) % 251).astype(np.uint8)[:, None, None], (side, side, 3))
    tifffile.imwrite(folder / "land.tif", pixels, photometric="rgb", tile=(512, 512), compression="zlib")
    tracemalloc.start()
    try:
        cut = tiles.cut(folder / "land.tif", None, folder / "tiles", Tiling(512, 2048, 0.5))
        assert cut.tiles == 16
        assert tracemalloc.get_traced_memory()[1] < 40 << 20  # the whole has 108 MB
    finally:
        tracemalloc.stop()
