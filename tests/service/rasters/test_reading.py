"""Windows of large pictures are the very pixels of the whole one, in every layout of a file."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convoy.service.errors import BadImage
from convoy.service.rasters import opening
from convoy.service.rasters.opening import opened
from convoy.service.rasters.pillow import PillowRaster
from convoy.service.rasters.raster import Ground, Raster
from convoy.service.rasters.samples import Stretch, eight_bits
from tests.service.rasters.files import PLACE, WINDOWS, picture, write_geo

tifffile = pytest.importorskip("tifffile", reason="needs tifffile: convoy[tiff]")


def agrees(raster: Raster, whole: NDArray[np.uint8]) -> None:
    """Every window is a slice of the whole."""
    whole = whole.reshape(*whole.shape[:2], -1)
    assert (raster.height, raster.width, raster.channels) == whole.shape
    for top, left, height, width in WINDOWS:
        window = raster.read(top, left, height, width)
        assert window.dtype == np.uint8
        np.testing.assert_array_equal(window, whole[top : top + height, left : left + width])


def of_16(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


LAYOUTS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 16},
    "deflated strips": {"rowsperstrip": 16, "compression": "zlib", "predictor": True},
    "tiles": {"tile": (32, 48)},
    "lzw tiles": {"tile": (32, 48), "compression": "lzw"},
    "zstd tiles": {"tile": (16, 16), "compression": "zstd"},
    "BigTIFF": {"tile": (32, 48), "compression": "zlib", "bigtiff": True},
    "big end first": {"tile": (32, 48), "byteorder": ">"},
    "planes of colour": {"tile": (32, 48), "planarconfig": "separate", "compression": "zlib"},
    "strips of planes": {"rowsperstrip": 16, "planarconfig": "separate", "compression": "zlib"},
    "planes as they are": {"planarconfig": "separate"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_of_a_tiff_file_are_slices_of_it(tmp_path: Path, layout: str, dtype: Any) -> None:
    options = dict(LAYOUTS[layout])
    writer = {name: options.pop(name) for name in ("bigtiff", "byteorder") if name in options}
    values = picture(3, dtype=dtype)
    stored = np.moveaxis(values, -1, 0) if "planarconfig" in options else values
    with tifffile.TiffWriter(tmp_path / "a.tif", **writer) as file:
        file.write(stored, photometric="rgb", **options)
    with opened(tmp_path / "a.tif") as raster:
        agrees(raster, values if dtype == np.uint8 else of_16(values))
        assert raster.absent(0, 0, 5, 5) is None
        assert not raster.notes


def test_a_jpeg_tiff_has_the_pixels_that_pillow_decodes(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(picture(3, 9, 12)).resize((90, 70), Image.Resampling.BICUBIC))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth, photometric="rgb", tile=(32, 48), compression="jpeg")
    with opened(path) as raster, Image.open(path) as image:
        agrees(raster, np.asarray(image.convert("RGB")))


def grey(path: Path) -> NDArray[np.uint8]:
    values = picture(1)
    tifffile.imwrite(path, values, photometric="minisblack", tile=(32, 32))
    return values


def white_is_zero(path: Path) -> NDArray[np.uint8]:
    values = picture(1)
    tifffile.imwrite(path, values, photometric="miniswhite", rowsperstrip=7)
    return 255 - values


def black_and_white(path: Path) -> NDArray[np.uint8]:
    values = picture(1) > 100
    tifffile.imwrite(path, values, photometric="minisblack")
    return values * np.uint8(255)


def palette(path: Path) -> NDArray[np.uint8]:
    values, table = picture(1), np.random.default_rng(1).integers(0, 256, (3, 256), np.uint16)
    tifffile.imwrite(path, values, photometric="palette", colormap=table * np.uint16(257), tile=(32, 32))
    return table.T[values].astype(np.uint8)


def alpha(path: Path) -> NDArray[np.uint8]:
    values = picture(4)
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32))
    image = Image.fromarray(values)
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image)
    return np.asarray(paper)


def unnamed_fourth(path: Path) -> NDArray[np.uint8]:
    values = picture(4)
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unspecified"], tile=(32, 32))
    return values[..., :3]


def bands(path: Path) -> NDArray[np.uint8]:
    values = picture(5)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", tile=(32, 32))
    return values[..., :3]


@pytest.mark.parametrize("write", [grey, white_is_zero, black_and_white, palette, alpha, unnamed_fourth, bands])
def test_each_kind_of_colour_is_what_other_pictures_become(
    tmp_path: Path, write: Callable[[Path], NDArray[np.uint8]]
) -> None:
    whole = write(tmp_path / "a.tif")
    with opened(tmp_path / "a.tif") as raster:
        agrees(raster, whole)
        assert ("the first three of 5 channels are read" in raster.notes) == (write is bands)


def test_where_alpha_is_zero_there_is_no_data(tmp_path: Path) -> None:
    values = picture(4)
    values[..., 3] = 255
    values[10:20, 30:50, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    with opened(tmp_path / "a.tif") as raster:
        gone = raster.absent(0, 0, 70, 90)
        assert gone is not None
        np.testing.assert_array_equal(gone, values[..., 3] == 0)
        assert raster.absent(40, 0, 30, 90) is None


def test_the_full_level_of_a_pyramid_is_read(tmp_path: Path) -> None:
    values = picture(3, 140, 180)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values, photometric="rgb", tile=(32, 32), subifds=1)
        file.write(values[::2, ::2], photometric="rgb", tile=(32, 32), subfiletype=1)
    with opened(tmp_path / "a.tif") as raster:
        assert (raster.height, raster.width) == (140, 180)
        np.testing.assert_array_equal(raster.read(30, 60, 80, 90), values[30:110, 60:150])


def test_a_plane_of_an_ome_tiff_is_chosen_and_its_scale_read(tmp_path: Path) -> None:
    values = np.stack([picture(1), 255 - picture(1), picture(1) // 2])
    described = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 500,
                 "PhysicalSizeYUnit": "nm"}  # fmt: skip
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, values, photometric="minisblack", tile=(32, 32), metadata=described)
    for plane in range(3):
        with opened(path, plane=plane) as raster:
            agrees(raster, values[plane])
            assert raster.ground == Ground(0.5, 0.5, "um")
            assert raster.notes == (f"plane {plane} of 0 to 2 is read",)
    with pytest.raises(BadImage, match="has 3 planes, want a plane of 0 to 2, not 3"):
        opened(path, plane=3)


def test_a_stretch_maps_its_ends_to_black_and_white(tmp_path: Path) -> None:
    values = np.linspace(-50, 350, 70 * 90, dtype=np.float32).reshape(70, 90)
    values[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    with pytest.raises(BadImage, match=r"samples of float32, want 8 or 16 bits without a sign, or --range"):
        opened(tmp_path / "a.tif")
    with opened(tmp_path / "a.tif", stretch=Stretch(0, 300)) as raster:
        pixels = raster.read(0, 0, 70, 90)[..., 0]
        assert pixels[0, 0] == 0
        expected = np.clip((np.nan_to_num(values).astype(float)) / 300 * 255, 0, 255)
        assert np.abs(pixels - expected).max() <= 0.51


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_fewer_bits_span_the_full_range(bits: int) -> None:
    values = np.array([0, 2**bits - 1], np.uint16 if bits > 8 else np.uint8)
    assert eight_bits(values, bits, None).tolist() == [0, 255]


def test_values_of_no_data_are_absent(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    values = picture(1)
    values[3:9, 60:80] = 7
    path = write_geo(tmp_path / "a.tif", values, nodata=7)
    with opened(path) as raster:
        agrees(raster, values)
        gone = raster.absent(0, 0, 70, 90)
        assert gone is not None
        np.testing.assert_array_equal(gone, values == 7)
        assert raster.absent(3, 60, 6, 20) is not None


def test_a_geotiff_keeps_its_place(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    values = picture(5, dtype=np.uint16)
    path = write_geo(tmp_path / "a.tif", values, photometric="rgb")
    with opened(path) as raster:
        agrees(raster, of_16(values[..., :3]))
        assert raster.ground == Ground(2.0, 2.0, "m")
        assert raster.georeference is not None
        assert raster.georeference.transform == PLACE
        assert rasterio.crs.CRS.from_wkt(raster.georeference.crs).to_epsg() == 32632
        assert raster.notes == ("bands 1, 2, 3 of 5 are read",)


@pytest.mark.parametrize(
    ("crs", "ground"),
    [("EPSG:32632", Ground(2, 2, "m")), ("EPSG:2263", Ground(2 * 1200 / 3937, 2 * 1200 / 3937, "m")),
     ("EPSG:4326", Ground(2, 2, "degree"))],
)  # fmt: skip
def test_the_size_of_a_pixel_is_in_metres_or_degrees(tmp_path: Path, crs: str, ground: Ground) -> None:
    pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    with opened(write_geo(tmp_path / "a.tif", picture(1), crs, (2, 0, 0, 0, -2, 0))) as raster:
        assert raster.ground is not None
        assert raster.ground.unit == ground.unit
        assert raster.ground[:2] == pytest.approx(ground[:2])


def test_without_rasterio_a_geotiff_still_says_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    values = picture(3)
    path = write_geo(tmp_path / "a.tif", values, photometric="rgb")
    monkeypatch.setattr(opening, "_has", lambda package: package == "tifffile")
    with opened(path) as raster:
        agrees(raster, values)
        assert raster.ground == Ground(2.0, 2.0, "m")
        assert raster.georeference is None


def test_a_slide_is_read_with_its_scale(tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason="needs openslide: convoy[slides]")
    from convoy.service.rasters.slides import SlideRaster

    smooth = np.asarray(Image.fromarray(picture(3, 20, 25)).resize((500, 400), Image.Resampling.BICUBIC))
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v11\n500x400 |AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(
        path, smooth, photometric="rgb", tile=(64, 64), compression="jpeg", description=text, metadata=None
    )
    with opened(path) as raster:
        assert isinstance(raster, SlideRaster)
        assert (raster.height, raster.width, raster.channels) == (400, 500, 3)
        assert raster.ground == Ground(0.499, 0.499, "um")
        whole = raster.read(0, 0, 400, 500)
        assert np.abs(whole.astype(int) - smooth).mean() < 10
        np.testing.assert_array_equal(raster.read(101, 33, 150, 200), whole[101:251, 33:233])
        assert raster.absent(0, 0, 400, 500) is None


def test_slides_are_told_apart_where_their_reader_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_has", lambda package: package == "tifffile")
    smooth = picture(3)
    tifffile.imwrite(
        tmp_path / "a.svs", smooth, photometric="rgb", tile=(32, 32), description="MPP = 0.25", metadata=None
    )
    with opened(tmp_path / "a.svs") as raster:
        agrees(raster, smooth)
        assert raster.ground == Ground(0.25, 0.25, "um")
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(BadImage, match=r"a scanned slide: to read it, pip install 'convoy\[slides\]'"):
        opened(tmp_path / "a.mrxs")


def test_other_pictures_are_what_a_server_sees(tmp_path: Path) -> None:
    values = picture(3)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values[..., 0]).save(tmp_path / "b.webp", lossless=True)
    with opened(tmp_path / "a.png") as raster:
        agrees(raster, values)
    with opened(tmp_path / "b.webp") as raster:
        agrees(raster, np.repeat(values[..., :1], 3, 2))
    with pytest.raises(BadImage, match=r"a\.png.*want at most 6299"):
        PillowRaster(tmp_path / "a.png", 6299)
    with pytest.raises(BadImage, match="is not TIFF: --plane and --range are of TIFF files"):
        opened(tmp_path / "a.png", plane=1)


def test_with_pillow_alone_a_tiff_that_fits_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_has", lambda package: False)
    values = picture(3)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression="zlib")
    with opened(tmp_path / "a.tif") as raster:
        agrees(raster, values)
    tifffile.imwrite(tmp_path / "b.tif", picture(1).astype(np.float32), photometric="minisblack")
    with pytest.raises(BadImage, match=r"to read it in windows, pip install 'convoy\[tiff\]'"):
        opened(tmp_path / "b.tif")
    with pytest.raises(BadImage, match=r"need more than Pillow: pip install 'convoy\[tiff\]'"):
        opened(tmp_path / "a.tif", plane=1)


def directory(**fields: tuple[int, int, int]) -> bytes:
    """A TIFF file of one directory, whose fields are (tag, kind, value)."""
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(fields.values()))
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)


HUGE = {
    "width": (256, 4, 4_000_000_000),
    "height": (257, 4, 4_000_000_000),
    "bits": (258, 3, 8),
    "pressed": (259, 3, 8),
    "colour": (262, 3, 1),
    "samples": (277, 3, 1),
}
HOSTILE = {
    "nothing": b"",
    "a signature": b"II*\0",
    "a directory beyond the end": b"II*\0" + struct.pack("<I", 1 << 30),
    "a directory of itself": b"II*\0" + struct.pack("<IH", 8, 65_535),
    "BigTIFF of nothing": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60),
    "a strip of petabytes": directory(**HUGE, rows=(278, 4, 4_000_000_000), at=(273, 4, 8), count=(279, 4, 50)),
    "petabytes in tiles": directory(**HUGE, w=(322, 4, 4096), h=(323, 4, 4096), at=(324, 4, 8), count=(325, 4, 50)),
    "tiles of no size": directory(**HUGE, w=(322, 4, 0), h=(323, 4, 0), at=(324, 4, 8), count=(325, 4, 50)),
    "a page of text": b"II*\0" + b"hello" * 50,
}


@pytest.mark.parametrize("content", HOSTILE)
@pytest.mark.parametrize("only", ["tifffile", "rasterio", "nothing"])
def test_a_hostile_file_is_refused_in_one_line_without_memory(
    tmp_path: Path, content: str, only: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    (tmp_path / "a.tif").write_bytes(HOSTILE[content])
    monkeypatch.setattr(opening, "_has", lambda package: package == only)
    tracemalloc.start()
    try:
        with pytest.raises(BadImage) as refused, opened(tmp_path / "a.tif") as raster:
            raster.read(0, 0, min(512, raster.height), min(512, raster.width))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in refused.value.message
    assert "a.tif" in refused.value.message


@pytest.mark.parametrize("layout", ["strips", "deflated strips", "lzw tiles", "planes as they are"])
@pytest.mark.parametrize("only", ["tifffile", "rasterio"])
def test_a_truncated_file_is_refused_and_never_read_as_black(
    tmp_path: Path, layout: str, only: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio", reason="needs rasterio: convoy[geo]")
    options = LAYOUTS[layout]
    values = picture(3)
    stored = np.moveaxis(values, -1, 0) if "planarconfig" in options else values
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **options)
    data = (tmp_path / "a.tif").read_bytes()
    monkeypatch.setattr(opening, "_has", lambda package: package == only)
    for length in range(0, len(data), max(1, len(data) // 12)):
        (tmp_path / "a.tif").write_bytes(data[:length])
        with pytest.raises(BadImage), opened(tmp_path / "a.tif") as raster:
            raster.read(0, 0, 70, 90)


def test_changed_bytes_never_end_in_a_traceback(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(3), photometric="rgb", tile=(32, 48), compression="zlib")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        for place in random.integers(0, min(len(data), 400), 2):
            changed[place] = random.integers(0, 256)
        (tmp_path / "a.tif").write_bytes(changed)
        try:
            with opened(tmp_path / "a.tif") as raster:
                raster.read(0, 0, min(raster.height, 200), min(raster.width, 200))
        except BadImage:
            refused += 1
    assert refused > 20


def test_only_the_pieces_of_a_window_are_read(tmp_path: Path) -> None:
    """A damaged tile is noticed only by a window that needs it."""
    path = tmp_path / "a.tif"
    values = picture(3)
    tifffile.imwrite(path, values, photometric="rgb", tile=(32, 48), compression="zlib")
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[-1]
    data = bytearray(path.read_bytes())
    data[place : place + 20] = zlib.compress(b"")[:2] * 10
    path.write_bytes(data)
    with opened(path) as raster:
        np.testing.assert_array_equal(raster.read(0, 0, 64, 90), values[:64])
        with pytest.raises(BadImage, match="cannot be read"):
            raster.read(60, 0, 10, 90)
