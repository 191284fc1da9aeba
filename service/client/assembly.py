"""The mask of a large picture, put together from those of its tiles."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from convoy.service.client.tiling import Plan, Tile
from convoy.service.rasters.raster import NO_CLASS


class Assembly:
    """The mask of a picture: takes the masks of tiles in any order, writes rows from top to bottom.

    At most as many rows wait as the tiles on their way span. One caller at a time.
    """

    def __init__(self, plan: Plan, width: int, write: Callable[[NDArray[np.uint8]], None], first_row: int = 0) -> None:
        self._plan, self._width, self._write = plan, width, write
        self.row = first_row  # all before it is written
        self._strips: dict[int, _Strip] = {}
        self._next = next((row for row, span in enumerate(plan.rows) if span.high > first_row), len(plan.rows))

    def place(
        self,
        tile: Tile,
        mask: NDArray[np.uint8],
        confidence: NDArray[np.uint8] | None,
        absent: NDArray[np.bool_] | None,
    ) -> None:
        """mask, confidence, absent  of the tile's window; there is no class where the picture is absent"""
        rows, columns = tile.rows, tile.columns
        used = (
            slice(rows.low - rows.start, rows.high - rows.start),
            slice(columns.low - columns.start, columns.high - columns.start),
        )
        strip = self._strip(tile.row)
        part = np.where(absent[used], np.uint8(NO_CLASS), mask[used]) if absent is not None else mask[used]
        strip.put(rows.low, columns.low, part, self._keys(tile, None if confidence is None else confidence[used]))
        strip.missing -= 1
        self._flush()

    def _strip(self, row: int) -> "_Strip":
        if row not in self._strips:
            span, across = self._plan.rows[row], len(self._plan.columns)
            self._strips[row] = _Strip(span.low, span.high, self._width, across, self._plan.joined)
        return self._strips[row]

    def _keys(self, tile: Tile, confidence: NDArray[np.uint8] | None) -> NDArray[np.uint16] | None:
        """By confidence, then the tile in whose middle the pixel lies, then its place among the four that overlap: the
        result does not depend on the order of arrival."""
        if not self._plan.joined:
            return None
        rows, columns = tile.rows, tile.columns
        shape = (rows.high - rows.low, columns.high - columns.low)
        keys = np.full(shape, tile.row % 2 * 2 + tile.column % 2, np.uint16)
        if confidence is not None:
            keys += confidence.astype(np.uint16) << 3
        keys[
            rows.first - rows.low : rows.last - rows.low, columns.first - columns.low : columns.last - columns.low
        ] += 4
        return keys

    def _flush(self) -> None:
        while self._next in self._strips and not self._strips[self._next].missing:
            strip = self._strips.pop(self._next)
            self._next += 1
            end = self._plan.rows[self._next].low if self._next < len(self._plan.rows) else strip.high
            if end < strip.high:
                assert strip.keys is not None
                self._strip(self._next).put(end, 0, strip.mask[end - strip.low :], strip.keys[end - strip.low :])
            if end > self.row:
                self._write(strip.mask[max(strip.low, self.row) - strip.low : end - strip.low])
                self.row = end


class _Strip:
    """The part of the mask that a row of tiles is used for. `keys` rank the tile of each pixel's class."""

    def __init__(self, low: int, high: int, width: int, missing: int, joined: bool) -> None:
        self.low, self.high, self.missing = low, high, missing
        self.mask = np.zeros((high - low, width), np.uint8)
        self.keys = np.zeros((high - low, width), np.uint16) if joined else None

    def put(self, top: int, left: int, mask: NDArray[np.uint8], keys: NDArray[np.uint16] | None) -> None:
        """Puts part of a mask at a place of the picture where nothing of a higher key is."""
        area = slice(top - self.low, top - self.low + mask.shape[0]), slice(left, left + mask.shape[1])
        if keys is None or self.keys is None:
            self.mask[area] = mask
            return
        better = keys > self.keys[area]
        self.mask[area][better] = mask[better]
        self.keys[area][better] = keys[better]
