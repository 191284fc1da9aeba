"""Mask files: written in strips of any height, they are the mask, in its place, and appear only when complete."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convoy.service.errors import BadConfig
from convoy.service.rasters import masks
from convoy.service.rasters.masks import mask_file
from convoy.service.rasters.opening import opened
from convoy.service.rasters.outputs import Files, Outputs
from convoy.service.rasters.raster import Classes, Ground, MaskSink
from convoy.service.rasters.tiff_mask import TiffMask
from tests.service.rasters.files import PLACE, UTM, blank, patches, picture, place_of, write_geo

CLASSES = Classes(("ground", "house", "road", "tree"), ((0, 0, 0), (255, 0, 0), (0, 255, 0), (1, 2, 3)))


def write(sink: MaskSink, mask: Any, height: int) -> None:
    for top in range(0, len(mask), height):
        sink.write(mask[top : top + height])
    sink.close()


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 1200), width=st.integers(1, 1200), strip=st.integers(1, 700), big=st.booleans())
def test_a_mask_file_is_the_mask(
    height: int, width: int, strip: int, big: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("mask") / "mask.tif"
    mask = patches(height, width)
    write(TiffMask(path, blank(height, width), CLASSES, big=big), mask, strip)
    assert path.read_bytes()[2] == (43 if big else 42)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), mask)
        assert image.mode == "P"
        assert image.getpalette()[:12] == [0, 0, 0, 255, 0, 0, 0, 255, 0, 1, 2, 3]  # type: ignore[index]


def test_other_readers_find_the_tags(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: convoy[tiff]")
    mask = patches(600, 700)
    raster = blank(600, 700, ground=Ground(0.25, 0.5, "um"))
    write(mask_file(tmp_path / "mask.tif", raster, CLASSES), mask, 100)
    with tifffile.TiffFile(tmp_path / "mask.tif") as file:
        page = file.pages[0]
        np.testing.assert_array_equal(page.asarray(), mask)
        assert page.tilewidth == page.tilelength == 512
        assert page.compression == 8
        assert page.nodata == 255
    with opened(tmp_path / "mask.tif") as written:
        assert written.ground == raster.ground
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        data = rasterio.open(tmp_path / "mask.tif")
    with data:
        np.testing.assert_array_equal(data.read(1), mask)
        assert data.nodata == 255
        assert data.colormap(1)[1] == (255, 0, 0, 255)


@pytest.mark.parametrize("cog", [False, True])
def test_a_mask_lies_where_its_picture_lies(tmp_path: Path, cog: bool) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    mask = patches(1300, 1100)
    mask[40:90, 700:] = 255
    raster = blank(1300, 1100, ground=Ground(2, 2, "m"), georeference=place_of(UTM))
    sink = mask_file(tmp_path / "mask.tif", raster, CLASSES, cog=cog)
    write(sink, mask, 77)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]
    with rasterio.open(tmp_path / "mask.tif") as data:
        np.testing.assert_array_equal(data.read(1), mask)
        assert data.crs.to_epsg() == 32632
        assert tuple(data.transform)[:6] == PLACE
        assert data.colormap(1)[1] == (255, 0, 0, 255)
        np.testing.assert_array_equal(data.dataset_mask() == 0, mask == 255)
        assert data.tags()["CLASS_3"] == "tree"
        assert data.block_shapes == [(512, 512)]
        assert (data.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG") == cog
        assert bool(data.overviews(1)) == cog


def test_without_gdal_the_tags_of_the_place_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    tiff = pytest.importorskip("convoy.service.rasters.tiff")
    write_geo(tmp_path / "a.tif", picture(3), photometric="rgb")
    monkeypatch.setattr(masks.importlib.util, "find_spec", lambda package: None)  # type: ignore[attr-defined]
    with tiff.TiffRaster(tmp_path / "a.tif") as raster:
        write(mask_file(tmp_path / "mask.tif", raster, CLASSES), patches(70, 90), 70)
        with pytest.raises(BadConfig, match=r"--cog: .* pip install 'convoy\[geo\]'"):
            mask_file(tmp_path / "mask.tif", raster, CLASSES, cog=True)
    with rasterio.open(tmp_path / "mask.tif") as data:
        assert data.crs.to_epsg() == 32632
        assert tuple(data.transform)[:6] == PLACE


@pytest.mark.parametrize("placed", [False, True])
def test_an_abandoned_mask_leaves_no_file(tmp_path: Path, placed: bool) -> None:
    if placed:
        pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    place = place_of(UTM) if placed else None
    sink = mask_file(tmp_path / "mask.tif", blank(600, 700, georeference=place), CLASSES)
    sink.write(patches(550, 700))
    assert not (tmp_path / "mask.tif").exists()
    sink.abandon()
    assert not list(tmp_path.iterdir())


def test_an_overview_has_the_colours_and_at_most_2048_pixels_a_side(tmp_path: Path) -> None:
    mask = patches(3000, 4096, size=500)
    outputs = Outputs(
        Files(tmp_path / "m.tif", overview=tmp_path / "o.png", areas=tmp_path / "a.csv"), blank(3000, 4096), CLASSES
    )
    write(outputs, mask, 333)
    with Image.open(tmp_path / "o.png") as image:
        assert image.size == (2048, 1500)
        np.testing.assert_array_equal(np.asarray(image), mask[1::2, 1::2])
        assert image.getpalette()[3:6] == [255, 0, 0]  # type: ignore[index]
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "index,name,pixels,share,area,unit"
    assert lines[2].startswith(f"1,house,{(mask == 1).sum()},")
    assert outputs.written() == [tmp_path / "m.tif", tmp_path / "a.csv", tmp_path / "o.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"polygons": "a.shp"}, "want a name that ends in .geojson, .json or .gpkg"),
        ({"polygons": "none/a.gpkg"}, "there is no folder"),
        ({"polygons": "a.gpkg", "qupath": True}, "--qupath: QuPath reads GeoJSON"),
        ({"qupath": True}, "--qupath is about polygons, want --polygons FILE too"),
        ({"simplify": 1.0}, "--simplify is about polygons"),
        ({"polygons": "a.gpkg", "simplify": -1.0}, "--simplify -1, want 0 to 1000 pixels"),
        ({"polygons": "a.gpkg", "left_out": ("sea",)}, "--leave-out 'sea', want classes of the model: ground, house"),
        ({"areas": "a.txt"}, "want a name that ends in .csv or .json"),
        ({"overview": "a.jpg"}, "want a name that ends in .png"),
        ({"areas": "none/a.csv"}, "there is no folder"),
    ],
)
def test_what_could_not_be_written_is_refused_before_the_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    paths = {key: tmp_path / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(BadConfig) as refused:
        Outputs(Files(tmp_path / "m.tif", **paths), blank(10, 10), CLASSES)
    assert message in refused.value.message
    assert not list(tmp_path.iterdir())
