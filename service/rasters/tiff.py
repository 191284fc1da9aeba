"""TIFF, BigTIFF, OME-TIFF and pyramids in windows, by tifffile: only the strips and tiles that a window touches."""

import contextlib
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadImage
from convoy.service.rasters.raster import Ground
from convoy.service.rasters.samples import Closing, Stretch, check_kind, check_window, eight_bits, on_white

MAX_SEGMENT_BYTES = 256 << 20  # of one strip or tile, decoded
KEPT_BYTES = 128 << 20  # decoded strips and tiles: a row of tiles of a 40,000 pixel wide picture

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # TIFF 6.0, PhotometricInterpretation
_SAMPLES = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, YCBCR: 3}
_JPEG = (6, 7, 34892, 33003, 33005)  # compressions after which YCbCr is RGB
_UPRIGHT = 1
_PREMULTIPLIED, _ALPHA = 1, 2  # ExtraSamples
_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)  # pixel scale, tie points, transformation, keys of GeoTIFF
_CENTIMETRE = 3  # ResolutionUnit
# GeoTIFF 1.1: GTModelTypeGeoKey with its values, and the linear units by code, in metres.
_MODEL, _PROJECTED, _GEOGRAPHIC, _LINEAR_UNIT, _CRS = 1024, 1, 2, 3076, 3072
_METRES = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}
_METRIC = (range(32601, 32661), range(32701, 32761), range(25828, 25839))  # EPSG codes of UTM zones
_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "&#181;m": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


class TiffRaster(Closing):
    """One picture of a TIFF file: the full level of a pyramid. Raises BadImage."""

    georeference = None  # as WKT it needs PROJ, which rasterio brings; `geo_tags` keeps it for a mask

    def __init__(self, path: Path, plane: int = 0, stretch: Stretch | None = None) -> None:
        self._name, self._stretch = repr(str(path)), stretch
        import tifffile  # noqa: PLC0415  of an extra

        # It also logs what it tolerates, which is of no use to a person.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        with self._reporting():
            self._file = tifffile.TiffFile(path)
        try:
            with self._reporting():
                self._page, planes = self._chosen(plane)
                self._check()
                self._map = self._mapped(path)
                self.ground = self._ground()
        except BaseException:
            self._file.close()
            raise
        self.notes = tuple(self._remarks(planes, plane))
        self._kept: OrderedDict[int, NDArray[Any] | None] = OrderedDict()
        self._kept_bytes = 0

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self, top, left, height, width)
        samples = self.stored(top, left, height, width)
        wanted = samples[..., : 3 if self._colours >= 3 else 1]
        if self._photometric == PALETTE:
            colours: NDArray[np.uint8] = self._palette[np.minimum(samples[..., 0], len(self._palette) - 1)]
            return colours
        pixels = eight_bits(wanted, self._bits, self._stretch)
        if self._photometric == WHITE_IS_ZERO:
            pixels = 255 - pixels
        alpha = self._alpha()
        if alpha is not None:
            cover = eight_bits(samples[..., alpha[0]], self._bits, None)
            pixels = on_white(pixels, cover, premultiplied=alpha[1] == _PREMULTIPLIED)
        return np.ascontiguousarray(pixels)

    def absent(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """Returns where alpha is 0 or all samples have GDAL's value for no data."""
        check_window(self, top, left, height, width)
        alpha, empty = self._alpha(), self._empty
        if alpha is None and empty is None:
            return None
        samples = self.stored(top, left, height, width)
        gone = samples[..., alpha[0]] == 0 if alpha is not None else np.zeros((height, width), np.bool_)
        if empty is not None:
            colours = samples[..., : self._colours]
            gone |= (np.isnan(colours) if math.isnan(empty) else colours == empty).all(axis=2)
        return gone if gone.any() else None

    def stored(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Returns a window as it is stored, (height, width, samples): indices of a palette, any kind of number."""
        if self._map is not None:
            window = self._map[:, 0, top : top + height, left : left + width]
            return np.concatenate(list(np.asarray(window)), axis=-1)
        separate, _, _, _, contiguous = self._page.shaped
        samples = np.empty((height, width, separate * contiguous), self._page.dtype)
        (high, wide), (rows, columns) = self._piece, self._grid
        for plane in range(separate):
            part = samples[..., plane * contiguous : (plane + 1) * contiguous]
            for row in range(top // high, (top + height - 1) // high + 1):
                for column in range(left // wide, (left + width - 1) // wide + 1):
                    above, before = max(top, row * high), max(left, column * wide)
                    below, after = min(top + height, (row + 1) * high), min(left + width, (column + 1) * wide)
                    place = part[above - top : below - top, before - left : after - left]
                    piece = self._segment((plane * rows + row) * columns + column)
                    if piece is None:  # it is not in the file: empty, by GDAL's rule
                        place[...] = self._empty or 0
                        continue
                    inside = piece[above - row * high :, before - column * wide :][: below - above, : after - before]
                    if inside.shape != place.shape:
                        raise BadImage(f"{self._name} is damaged: strip or tile {row}, {column} is too small")
                    place[...] = inside
        return samples

    def close(self) -> None:
        self._map = None
        self._kept.clear()
        self._file.close()

    @property
    def palette(self) -> NDArray[np.uint8] | None:
        """The colours of a palette, (n, 3)."""
        return self._palette if self._photometric == PALETTE else None

    @property
    def geo_tags(self) -> list[tuple[int, tuple[Any, ...] | str]]:
        """The tags that place it on the earth, as they are in the file."""
        tags = ((code, self._page.tags.get(code)) for code in _GEO_TAGS)
        return [(code, tag.value) for code, tag in tags if tag is not None]

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (BadImage, KeyboardInterrupt):
            raise
        except FileNotFoundError:
            raise
        except Exception as error:  # tifffile and its codecs raise exceptions of any class
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BadImage(f"{self._name} cannot be read: {reason}") from None

    def _chosen(self, plane: int) -> tuple[Any, int]:
        if not self._file.series:
            raise BadImage(f"{self._name} has no picture")
        pages = self._file.series[0].levels[0].pages
        if plane >= len(pages):
            raise BadImage(f"{self._name} has {len(pages)} planes, want a plane of 0 to {len(pages) - 1}, not {plane}")
        page = pages[plane]
        if page is None:
            raise BadImage(f"{self._name} lacks its plane {plane}: it is in another file")
        return page.aspage(), len(pages)

    def _check(self) -> None:
        page, name = self._page, self._name
        separate, depth, self.height, self.width, contiguous = page.shaped
        count = separate * contiguous
        self._photometric = int(page.photometric)
        if self._photometric not in _SAMPLES:
            raise BadImage(f"{name} has colours of the kind {page.photometric!s}, want grey, RGB, YCbCr or a palette")
        if self._photometric == YCBCR and page.compression not in _JPEG:
            raise BadImage(f"{name} has YCbCr colours without JPEG compression, want RGB")
        if depth != 1 or not (self.height and self.width):
            raise BadImage(f"{name} is {depth} planes of {self.width}x{self.height} pixels, want one that is not empty")
        orientation = page.tags.valueof(274, default=_UPRIGHT)
        if orientation != _UPRIGHT:
            raise BadImage(f"{name} is stored turned (orientation {orientation}), want 1: save it upright")
        check_kind(name, page.dtype, self._stretch)
        self._bits = page.bitspersample if page.dtype.kind in "bu" else 8 * page.dtype.itemsize
        self._extra = tuple(int(kind) for kind in page.extrasamples)
        self._colours = min(count, _SAMPLES[self._photometric])
        if self._photometric == BLACK_IS_ZERO:  # several bands are grey and further ones, often of no kind
            self._colours = count - sum(kind in (_PREMULTIPLIED, _ALPHA) for kind in self._extra)
        self._count = count
        self.channels = 3 if self._colours >= 3 or self._photometric == PALETTE else 1
        if self._photometric == PALETTE:
            table = np.asarray(page.colormap)
            scale = 257 if table.max(initial=0) > 255 else 1  # 8 bits, where a writer was wrong
            self._palette = ((table.T.astype(np.uint32) + scale // 2) // scale).astype(np.uint8)
        empty = page.tags.valueof(42113)
        self._empty = float(str(empty).strip().rstrip("\0")) if empty is not None else None
        self._check_segments(separate, contiguous)

    def _check_segments(self, separate: int, contiguous: int) -> None:
        page = self._page
        high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, self.width)
        high = high if page.is_tiled else min(high, self.height)
        if not (high > 0 and wide > 0):
            raise BadImage(f"{self._name} is stored in pieces of {wide}x{high} pixels")
        self._piece = (high, wide)
        self._grid = (-(-self.height // high), -(-self.width // wide))
        expected = self._grid[0] * self._grid[1] * separate
        if len(page.dataoffsets) != expected or len(page.databytecounts) != expected:
            raise BadImage(f"{self._name} is damaged: it has {len(page.dataoffsets)} strips or tiles, want {expected}")
        size = high * wide * contiguous * page.dtype.itemsize
        if size > MAX_SEGMENT_BYTES and not page.is_memmappable:
            raise BadImage(
                f"{self._name} is stored in pieces of {size >> 20} MB, want at most {MAX_SEGMENT_BYTES >> 20} MB: "
                "save it in tiles"
            )

    def _mapped(self, path: Path) -> NDArray[Any] | None:
        page = self._page
        if not page.is_memmappable:
            return None
        dtype = np.dtype(page.parent.byteorder + page._dtype.char)
        start, size = page.dataoffsets[0], math.prod(page.shaped) * dtype.itemsize
        if start + size > path.stat().st_size:
            raise BadImage(f"{self._name} is truncated: {path.stat().st_size} bytes, want {start + size}")
        return np.memmap(path, dtype, "r", start, page.shaped)

    def _segment(self, index: int) -> NDArray[Any] | None:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        page = self._page
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        with self._reporting():
            data = None
            if offset and count:
                if offset + count > self._file.filehandle.size:
                    raise BadImage(f"{self._name} is truncated: it ends before its strip or tile {index}")
                self._file.filehandle.seek(offset)
                data = self._file.filehandle.read(count)
            decoded = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
        piece = None if decoded is None else decoded[0]
        self._kept[index] = piece
        self._kept_bytes += 0 if piece is None else piece.nbytes
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= 0 if gone is None else gone.nbytes
        return piece

    def _alpha(self) -> tuple[int, int] | None:
        """The place and the kind of the alpha channel."""
        for number, kind in enumerate(self._extra):
            if kind in (_PREMULTIPLIED, _ALPHA):
                return self._count - len(self._extra) + number, kind
        return None

    def _remarks(self, planes: int, plane: int) -> Iterator[str]:
        if planes > 1:
            yield f"plane {plane} of 0 to {planes - 1} is read"
        if self._colours > _SAMPLES[self._photometric]:
            what = "first three" if self._colours >= 3 else "first"
            yield f"the {what} of {self._colours} channels are read"

    def _ground(self) -> Ground | None:
        tags = self._page.tags
        text = self._file.ome_metadata if self._file.is_ome else None
        if text:
            return _ome(text)
        described = re.search(r"\bMPP\s*=\s*([\d.]+)", str(tags.valueof(270, default=""))[:65_536])
        if described:  # Aperio
            return _sized(float(described[1]), float(described[1]), "um")
        scale = tags.valueof(33550)
        if scale is not None:
            unit = _unit(tags.valueof(34735, default=()))
            return None if unit is None else _sized(scale[0] * unit[0], scale[1] * unit[0], unit[1])
        if tags.valueof(296) == _CENTIMETRE and 282 in tags and 283 in tags:
            (across, by), (down, of) = tags[282].value, tags[283].value
            return _sized(1e4 * by / across, 1e4 * of / down, "um") if across and down else None
        return None


def _ome(text: str) -> Ground | None:
    """The size of a pixel of the first image in the XML of OME-TIFF."""
    sides = []
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}="([\d.eE+-]+)"', text)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', text)
        factor = _UM.get(unit[1]) if unit else 1.0
        if size is None or factor is None:
            return None
        sides.append(float(size[1]) * factor)
    return _sized(sides[0], sides[1], "um")


def _unit(keys: tuple[int, ...]) -> tuple[float, str] | None:
    """The unit of the coordinates by the keys of GeoTIFF, where they say it without a register of EPSG codes."""
    directory = {keys[at]: keys[at + 3] for at in range(4, len(keys) - 3, 4) if keys[at + 1] == 0}
    if directory.get(_MODEL) == _GEOGRAPHIC:
        return 1.0, "degree"
    metres = _METRES.get(directory.get(_LINEAR_UNIT, 0))
    if metres is None and any(directory.get(_CRS, 0) in codes for codes in _METRIC):
        metres = 1.0
    return None if metres is None or directory.get(_MODEL) != _PROJECTED else (metres, "m")


def _sized(width: float, height: float, unit: str) -> Ground | None:
    good = math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0
    return Ground(width, height, unit) if good else None
