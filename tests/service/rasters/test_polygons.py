"""Polygons of masks: every pixel once, with holes; simplified, neighbours still share their borders."""

import itertools
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from convoy.service.rasters import vectors
from convoy.service.rasters.areas import Areas, row_areas
from convoy.service.rasters.masks import mask_file
from convoy.service.rasters.polygons import Polygons, _noded, traced
from convoy.service.rasters.raster import Classes, Georeference, Ground, Raster
from tests.service.rasters.files import PLACE, UTM, blank, patches, place_of

rasterio = pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
shapely = pytest.importorskip("shapely", reason="needs shapely: convoy[geo]")

CLASSES = Classes(("ground", "house", "road", "tree"), ((0, 0, 0), (255, 0, 0), (0, 255, 0), (1, 2, 3)))


def traced_mask(mask: NDArray[np.uint8], folder: Path, raster: Raster | None = None, **options: Any) -> Polygons:
    raster = raster or blank(*mask.shape)
    sink = mask_file(folder / "mask.tif", raster, CLASSES)
    sink.write(mask)
    sink.close()
    return traced(folder / "mask.tif", raster, CLASSES, **options)


def drawn(polygons: Polygons, height: int, width: int) -> NDArray[np.uint8]:
    """A mask of the polygons."""
    import rasterio.features

    pairs = zip(polygons.shapes, polygons.classes.tolist(), strict=True)
    return np.asarray(rasterio.features.rasterize(pairs, (height, width), fill=99, dtype="uint8"))


masks = st.builds(
    patches, st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(0, 10_000), st.integers(1, 9)
)


@settings(max_examples=25, deadline=None)
@given(mask=masks)
def test_polygons_cover_every_pixel_once(mask: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> None:
    polygons = traced_mask(mask, tmp_path_factory.mktemp("mask"))
    assert shapely.is_valid(polygons.shapes).all()
    np.testing.assert_array_equal(drawn(polygons, *mask.shape), mask)
    for number in range(4):
        mine = polygons.classes == number
        assert polygons.pixels[mine].sum() == (mask == number).sum()
        assert shapely.area(polygons.shapes[mine]).sum() == (mask == number).sum()


@settings(max_examples=25, deadline=None)
@given(mask=masks)
def test_simplified_neighbours_share_their_borders(
    mask: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> None:
    exact = traced_mask(mask, tmp_path_factory.mktemp("mask"))
    noded = _noded(exact.shapes)
    assert shapely.equals(noded, exact.shapes).all()
    assert shapely.coverage_is_valid(noded)
    simple = traced_mask(mask, tmp_path_factory.mktemp("mask"), simplify=1.5)
    assert shapely.coverage_is_valid(simple.shapes)
    # No gap and no overlap: the areas add up to that of the union.
    assert shapely.area(simple.shapes).sum() == pytest.approx(shapely.union_all(simple.shapes).area)
    assert shapely.get_num_coordinates(simple.shapes).sum() <= shapely.get_num_coordinates(noded).sum()
    assert simple.pixels.tolist() == exact.pixels.tolist()


def test_polygons_as_gdal_leaves_them_are_no_coverage(tmp_path: Path) -> None:
    """Without the vertices of neighbours, simplification would tear borders apart."""
    assert not shapely.coverage_is_valid(traced_mask(patches(40, 40), tmp_path).shapes)


def test_a_house_in_a_field_leaves_a_hole(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 6:16] = 1
    mask[7, 8] = 2
    polygons = traced_mask(mask, tmp_path)
    holes = dict(zip(polygons.classes.tolist(), shapely.get_num_interior_rings(polygons.shapes).tolist(), strict=True))
    assert holes == {0: 1, 1: 1, 2: 0}
    without = traced_mask(mask, tmp_path, left_out=frozenset({0}))
    assert sorted(without.classes.tolist()) == [1, 2]


def test_pixels_without_a_class_have_no_polygon(tmp_path: Path) -> None:
    mask = np.full((10, 10), 255, np.uint8)
    assert not len(traced_mask(mask, tmp_path).shapes)
    mask[2:4, 2:4] = 3
    assert traced_mask(mask, tmp_path).pixels.tolist() == [4]
    assert traced_mask(mask, tmp_path, simplify=2.0).classes.tolist() == [3]


def test_areas_of_polygons_add_up_to_those_of_the_classes(tmp_path: Path) -> None:
    place = place_of("EPSG:4326", (0.01, 0, 8.0, 0, -0.01, 60.0))
    for ground, georeference in (
        (Ground(0.25, 0.5, "um"), None),
        (Ground(2, 2, "m"), place_of(UTM)),
        (Ground(0.01, 0.01, "degree"), place),
    ):
        raster = blank(70, 90, ground=ground, georeference=georeference)
        mask = patches(70, 90)
        polygons = traced_mask(mask, tmp_path, raster)
        counted = Areas(raster, CLASSES)
        counted.write(mask[:33])
        counted.write(mask[33:])
        assert polygons.areas is not None
        for each in counted.results():
            assert each.pixels == (mask == each.index).sum()
            assert each.area == pytest.approx(polygons.areas[polygons.classes == each.index].sum())
            assert each.unit == ("um2" if ground.unit == "um" else "m2")


def test_degrees_are_measured_on_the_ellipsoid() -> None:
    raster = blank(
        180, 360, ground=Ground(1, 1, "degree"), georeference=Georeference("EPSG:4326", (1, 0, -180, 0, -1, 90))
    )
    rows = row_areas(raster)
    assert rows is not None
    assert rows.sum() * 360 == pytest.approx(510_065_621_724_089, rel=1e-9)  # the surface of WGS 84 in m2
    assert rows[89] == pytest.approx(110_574 * 111_320, rel=1e-3)  # by the lengths of a degree at the equator
    assert rows[0] < rows[30] < rows[89]
    turned = blank(9, 9, ground=Ground(1, 1, "degree"), georeference=Georeference("EPSG:4326", (1, 1, 0, 1, -1, 0)))
    assert row_areas(turned) is None


def signed(ring: list[list[float]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring)) / 2


def test_geojson_is_in_longitudes_and_latitudes_with_outlines_counterclockwise(tmp_path: Path) -> None:
    raster = blank(70, 90, ground=Ground(2, 2, "m"), georeference=place_of(UTM))
    mask = patches(70, 90)
    polygons = traced_mask(mask, tmp_path, raster)
    vectors.write(tmp_path / "a.geojson", polygons, raster, CLASSES)
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert "crs" not in content
    assert len(content["features"]) == len(polygons.shapes)
    for feature in content["features"]:
        outline, *holes = feature["geometry"]["coordinates"]
        assert feature["geometry"]["type"] == "Polygon"
        assert outline[0] == outline[-1]
        assert signed(outline) > 0
        assert all(signed(hole) < 0 for hole in holes)
    first = content["features"][0]["properties"]
    assert set(first) == {"class", "name", "colour", "pixels", "area_m2"}
    assert first["area_m2"] == 4 * first["pixels"]
    # The corner of the picture lies at 500 km east, 5,400 km north: on the meridian of zone 32.
    points = [tuple(p) for f in content["features"] for p in f["geometry"]["coordinates"][0]]
    corner = max(points, key=lambda p: p[1] - p[0])
    assert corner == pytest.approx((9.0, 48.7532), abs=1e-3)


def test_qupath_reads_pixels_of_the_full_picture(tmp_path: Path) -> None:
    raster = blank(70, 90, ground=Ground(0.5, 0.5, "um"))
    mask = np.zeros((70, 90), np.uint8)
    mask[10:20, 30:50] = 1
    polygons = traced_mask(mask, tmp_path, raster, left_out=frozenset({0}))
    vectors.write(tmp_path / "a.geojson", polygons, raster, CLASSES, qupath=True)
    (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert feature["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "house", "color": [255, 0, 0]},
        "measurements": {"pixels": 200, "area um2": 50.0},
    }
    assert sorted(map(tuple, feature["geometry"]["coordinates"][0][:-1])) == [(30, 10), (30, 20), (50, 10), (50, 20)]


@pytest.mark.parametrize("crs", [None, UTM, "EPSG:4326", "+proj=laea +lat_0=10 +lon_0=7 +datum=WGS84"])
def test_a_geopackage_has_its_tables_and_geometries(tmp_path: Path, crs: str | None) -> None:
    place = None
    if crs is not None:
        transform = PLACE if crs != "EPSG:4326" else (1e-4, 0.0, 7.0, 0.0, -1e-4, 50.0)
        place = Georeference(rasterio.crs.CRS.from_user_input(crs).to_wkt(), transform)
    raster = blank(70, 90, ground=Ground(2, 2, "m") if place else None, georeference=place)
    polygons = traced_mask(patches(70, 90), tmp_path, raster)
    vectors.write(tmp_path / "a.gpkg", polygons, raster, CLASSES)
    base = sqlite3.connect(tmp_path / "a.gpkg")
    assert base.execute("PRAGMA application_id").fetchone()[0] == int.from_bytes(b"GPKG")
    assert base.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert not base.execute("PRAGMA foreign_key_check").fetchall()
    numbers = {row[0] for row in base.execute("SELECT srs_id FROM gpkg_spatial_ref_sys")}
    own = {None: -1, UTM: 32632, "EPSG:4326": 4326}.get(crs, 100_000)
    assert numbers == {4326, -1, 0, own}
    table, west, south, east, north, srs = base.execute(
        "SELECT table_name, min_x, min_y, max_x, max_y, srs_id FROM gpkg_contents"
    ).fetchone()
    assert (table, srs) == ("classes", own)
    if place is not None:
        a, _, c, _, e, f = place.transform
        assert (west, south, east, north) == pytest.approx((c, f + 70 * e, c + 90 * a, f))
        definition = base.execute("SELECT definition FROM gpkg_spatial_ref_sys WHERE srs_id = ?", (own,)).fetchone()[0]
        assert rasterio.crs.CRS.from_wkt(definition) == rasterio.crs.CRS.from_user_input(crs)
    else:
        assert (west, south, east, north) == (0, -70, 90, 0)
    rows = base.execute("SELECT geom, class, name, colour, pixels, area FROM classes").fetchall()
    assert len(rows) == len(polygons.shapes)
    for blob, number, name, colour, pixels, area in rows:
        assert blob[:3] == b"GP\0"
        shape = shapely.from_wkb(blob[8 + 32 :])
        assert shape.geom_type == "Polygon"
        assert name == CLASSES.names[number]
        assert colour == "#{:02x}{:02x}{:02x}".format(*CLASSES.colours[number])
        assert area is None if place is None else area == 4 * pixels
    if crs == UTM:
        assert math.isclose(sum(shapely.from_wkb(row[0][40:]).area for row in rows), 70 * 90 * 4)
