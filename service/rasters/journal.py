"""Rows of a mask that survive a killed process: a folder with a file for each strip, and what they are rows of."""

import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadConfig
from convoy.service.rasters.raster import MaskSink

_ABOUT = "about.json"
_LEVEL = 1  # of deflate: masks are mostly of one class, and shrink fast


class Journal:
    """A MaskSink whose rows stay in a folder until they are poured into the file that is wanted. One process at a time.

    `rows` are there already. The folder is made with its first strip.
    """

    def __init__(self, folder: Path, about: Mapping[str, object], width: int, *, resume: bool) -> None:
        """`about` names all that the rows depend on. Raises BadConfig for rows of something else, and for rows at all
        unless `resume`."""
        self._folder, self._about, self._width = folder, dict(about), width
        self.rows = 0
        self._strips: list[Path] = []
        if folder.exists():
            self._read(resume)

    def _read(self, resume: bool) -> None:
        name = repr(str(self._folder))
        if not resume:
            raise BadConfig(f"{name} has part of a mask: want --resume to go on, or remove it")
        try:
            before = msgspec.json.decode((self._folder / _ABOUT).read_bytes(), type=dict[str, object])
        except (OSError, msgspec.MsgspecError):
            raise BadConfig(f"{name} is no part of a mask: want another -o, or remove it") from None
        now = msgspec.json.decode(msgspec.json.encode(self._about), type=dict[str, object])
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                was = f"{key} {before.get(key)}, now it is {now.get(key)}"
                raise BadConfig(f"--resume: {name} was begun with {was}: want the same, or remove it")
        for path in sorted(self._folder.glob("rows-*.z")):
            first, last = (int(number) for number in path.stem.split("-")[1:])
            if first != self.rows:
                break  # left by something else
            self.rows = last
            self._strips.append(path)

    def write(self, rows: NDArray[np.uint8]) -> None:
        assert rows.shape[1] == self._width, rows.shape
        if not self._strips:
            self._folder.mkdir(exist_ok=True)
            _put(self._folder / _ABOUT, msgspec.json.encode(self._about))
        last = self.rows + len(rows)
        path = self._folder / f"rows-{self.rows:010d}-{last:010d}.z"
        _put(path, zlib.compress(rows.tobytes(), _LEVEL))
        self._strips.append(path)
        self.rows = last

    def pour(self, sink: MaskSink) -> None:
        """Writes all rows into another sink. Raises BadConfig for a strip that is damaged, OSError."""
        for path in self._strips:
            try:
                data = zlib.decompress(path.read_bytes())
                rows = np.frombuffer(data, np.uint8).reshape(-1, self._width)
            except (zlib.error, ValueError):
                raise BadConfig(f"{str(path)!r} is damaged: remove {str(self._folder)!r} and begin again") from None
            sink.write(rows)

    def close(self) -> None:
        """Removes the folder: its rows are in the file now."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def abandon(self) -> None:
        """Leaves the rows for a run that goes on."""


def _put(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.tmp")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
