"""A mask as a palette TIFF file, written tile by tile while its rows arrive (TIFF 6.0; BigTIFF)."""

import json
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from convoy.service.rasters.raster import NO_CLASS, Classes, Raster

TILE = 512
_LEVEL = 6  # of deflate
_CLASSIC = 4_000_000_000  # bytes that a file of 32 bit offsets has room for
# TIFF 6.0 and the technical note on deflate.
_SHORT, _LONG, _RATIONAL, _DOUBLE, _ASCII, _LONG8 = 3, 4, 5, 12, 2, 16
_BYTES = {_SHORT: "H", _LONG: "I", _DOUBLE: "d", _LONG8: "Q"}
_DEFLATE, _PALETTE, _CENTIMETRE, _UNSIGNED = 8, 3, 3, 1

Field = tuple[int, int, bytes]  # kind, count, values


class TiffMask:
    """A MaskSink that keeps one row of tiles in memory. Its file has its name with `.tmp` until it is complete."""

    def __init__(self, path: Path, raster: Raster, classes: Classes, big: bool | None = None) -> None:
        self._path, self._part = path, path.with_name(f"{path.name}.tmp")
        self._height, self._width = raster.height, raster.width
        self._across, self._down = -(-self._width // TILE), -(-self._height // TILE)
        self._big = self._height * self._width > _CLASSIC if big is None else big
        self._tags = _tags(raster, classes)
        self._rows = np.zeros((TILE, self._across * TILE), np.uint8)
        self._filled = self._written = 0
        self._offsets: list[int] = []
        self._counts: list[int] = []
        self._file: BinaryIO = self._part.open("wb")
        self._file.write(bytes(16))  # the header, known at the end

    def write(self, rows: NDArray[np.uint8]) -> None:
        assert rows.shape[1] == self._width, rows.shape
        self._written += len(rows)
        assert self._written <= self._height, (self._written, self._height)
        while len(rows):
            taken = rows[: TILE - self._filled]
            self._rows[self._filled : self._filled + len(taken), : self._width] = taken
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == TILE:
                self._flush()

    def close(self) -> None:
        assert self._written == self._height, (self._written, self._height)
        if self._filled:
            self._rows[self._filled :] = 0
            self._flush()
        try:
            self._finish()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._path)
        except OSError as error:
            self.abandon()
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def abandon(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        for left in range(0, self._across * TILE, TILE):
            tile = zlib.compress(self._rows[:, left : left + TILE].tobytes(), _LEVEL)
            self._offsets.append(self._file.tell())
            self._counts.append(len(tile))
            self._file.write(tile)
        self._filled = 0

    def _finish(self) -> None:
        offset = _LONG8 if self._big else _LONG
        fields: dict[int, Field] = {
            256: _field(_LONG, self._width),
            257: _field(_LONG, self._height),
            258: _field(_SHORT, 8),
            259: _field(_SHORT, _DEFLATE),
            262: _field(_SHORT, _PALETTE),
            277: _field(_SHORT, 1),
            284: _field(_SHORT, 1),
            322: _field(_LONG, TILE),
            323: _field(_LONG, TILE),
            324: _field(offset, *self._offsets),
            325: _field(_LONG, *self._counts),
            339: _field(_SHORT, _UNSIGNED),
            **self._tags,
        }
        entry, word, inline = ("<HHQ", "<Q", 8) if self._big else ("<HHI", "<I", 4)
        entries = b""
        for tag in sorted(fields):
            kind, count, values = fields[tag]
            if len(values) > inline:
                self._file.write(bytes(self._file.tell() % 2))
                place = self._file.tell()
                self._file.write(values)
                values = struct.pack(word, place)
            entries += struct.pack(entry, tag, kind, count) + values.ljust(inline, b"\0")
        self._file.write(bytes(self._file.tell() % 2))
        directory = self._file.tell()
        counting = "<Q" if self._big else "<H"
        self._file.write(struct.pack(counting, len(fields)) + entries + bytes(inline))
        self._file.seek(0)
        big, small = struct.pack("<2sHHHQ", b"II", 43, 8, 0, directory), struct.Struct("<2sHI")
        self._file.write(big if self._big else small.pack(b"II", 42, directory))


def palette_of(classes: Classes) -> NDArray[np.uint8]:
    """The colours of all 256 values, (256, 3): of the classes, and white for the pixels without one."""
    table = np.zeros((256, 3), np.uint8)
    table[NO_CLASS] = 255
    table[: len(classes.colours)] = classes.colours
    return table


def _tags(raster: Raster, classes: Classes) -> dict[int, Field]:
    colours = palette_of(classes).T.astype(np.uint16) * 257
    tags = {
        270: _text(json.dumps({"classes": list(classes.names)})),
        305: _text("Convoy"),
        320: _field(_SHORT, *colours.ravel().tolist()),
    }
    if len(classes.names) <= NO_CLASS:
        tags[42113] = _text(str(NO_CLASS))  # GDAL_NODATA
    ground = raster.ground
    if ground is not None and ground.unit == "um":
        for tag, side in ((282, ground.width), (283, ground.height)):
            tags[tag] = (_RATIONAL, 1, struct.pack("<II", *_ratio(1e4 / side)))
        tags[296] = _field(_SHORT, _CENTIMETRE)
    for tag, value in getattr(raster, "geo_tags", ()):
        tags[tag] = _copied(value)
    return tags


def _copied(value: Any) -> Field:
    """A tag of GeoTIFF as it was: text, numbers in double precision, or keys."""
    if isinstance(value, str):
        return _text(value)
    return _field(_SHORT if all(isinstance(each, int) for each in value) else _DOUBLE, *value)


def _field(kind: int, *values: float) -> Field:
    return kind, len(values), struct.pack(f"<{len(values)}{_BYTES[kind]}", *values)


def _text(text: str) -> Field:
    data = text.encode("ascii", "backslashreplace") + b"\0"
    return _ASCII, len(data), data


def _ratio(value: float) -> tuple[int, int]:
    scale = 10 ** max(0, min(6, 8 - math.ceil(math.log10(value))))
    return min(round(value * scale), 2**32 - 1), scale
