"""`convoy segment` of rasters and slides: the mask lies in its place, and polygons and areas belong to it."""

import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convoy.service.client.client import Client
from convoy.service.rasters.opening import opened
from tests.service import networks
from tests.service.rasters.files import PLACE, write_geo
from tests.service.running import Server

Convoy = Callable[..., subprocess.CompletedProcess[str]]
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def land(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("land")
    networks.save(networks.surroundings(), repository, "land")
    with Server(repository, ["server.lame_duck_seconds=0"]) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(height: int, width: int) -> Pixels:
    pixels = np.random.default_rng(5).integers(1, 256, (height // 20, width // 20, 3), np.uint8)
    return pixels.repeat(20, axis=0).repeat(20, axis=1)


def whole(server: Server, pixels: Pixels) -> Pixels:
    with Client(server.grpc) as client:
        return client.segment(pixels, "land").mask.copy()


def test_a_raster_becomes_a_cog_with_polygons_and_areas_in_its_place(
    convoy: Convoy, land: Server, folder: Path
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    shapely = pytest.importorskip("shapely", reason="needs shapely: convoy[geo]")
    pixels = blocks(300, 400)
    pixels[:80, 200:] = 0
    write_geo(folder / "land.tif", pixels, photometric="rgb", nodata=0)
    expected = whole(land, pixels)
    expected[:80, 200:] = 255
    options = ["--tile", "128", "--cog", "--polygons", "p.gpkg", "--areas", "a.json", "--simplify", "1"]
    done = convoy("segment", "land.tif", "-o", "mask.tif", "--server", land.grpc, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "m²" in done.stdout
    with rasterio.open(folder / "mask.tif") as mask:
        assert mask.crs.to_epsg() == 32632
        assert tuple(mask.transform)[:6] == PLACE
        assert mask.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_array_equal(mask.read(1), expected)
    areas = json.loads((folder / "a.json").read_text())
    for area in areas:
        assert area["pixels"] == (expected == area["index"]).sum()
        assert area["area"] == 4 * area["pixels"]
        assert area["unit"] == "m2"
    base = sqlite3.connect(folder / "p.gpkg")
    pixels_of = dict(base.execute("SELECT class, SUM(pixels) FROM classes GROUP BY class"))
    assert pixels_of == {area["index"]: area["pixels"] for area in areas if area["pixels"]}
    shapes = [shapely.from_wkb(blob[40:]) for (blob,) in base.execute("SELECT geom FROM classes")]
    assert shapely.coverage_is_valid(np.array(shapes))


def test_a_slide_becomes_annotations_of_qupath(convoy: Convoy, land: Server, folder: Path) -> None:
    pytest.importorskip("openslide", reason="needs openslide: convoy[slides]")
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: convoy[tiff]")
    pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    text = "Aperio Image Library v11\n400x300 |MPP = 0.5"
    how = {"photometric": "rgb", "tile": (64, 64), "compression": "jpeg", "metadata": None}
    tifffile.imwrite(folder / "a.svs", blocks(300, 400), description=text, **how)
    options = ["--tile", "128", "--polygons", "p.geojson", "--qupath"]
    done = convoy("segment", "a.svs", "-o", "mask.tif", "--server", land.grpc, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "µm²" in done.stdout
    with opened(folder / "a.svs") as slide:
        expected = whole(land, slide.read(0, 0, 300, 400))
    counted = dict.fromkeys(np.unique(expected).tolist(), 0)
    with Client(land.grpc) as client:
        names = list(client.models()[0].labels)
    for feature in json.loads((folder / "p.geojson").read_text())["features"]:
        measured = feature["properties"]["measurements"]
        counted[names.index(feature["properties"]["classification"]["name"])] += measured["pixels"]
        assert measured["area um2"] == measured["pixels"] / 4
    assert counted == {number: int((expected == number).sum()) for number in counted}
