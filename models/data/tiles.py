"""Cuts a large raster and its mask into the pictures of a data set, whose held-out parts lie apart.

Neighbouring tiles look alike. So whole blocks of tiles are held out, and no tile for training overlaps one of them.
"""

import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from convoy.models.data.dataset import IGNORE, SplitName
from convoy.models.data.formats import masks
from convoy.models.data.formats.coding import Coding
from convoy.models.data.formats.listing import LABELS, SPLITS, TEST_SHARE, VALIDATION_SHARE, hashed, lines
from convoy.models.data.formats.mask_folders import IMAGES, LISTS, MASKS
from convoy.models.data.picture import mask_header
from convoy.models.errors import BadData
from convoy.service.rasters.opening import opened
from convoy.service.rasters.raster import Raster
from convoy.service.rasters.samples import Stretch

# The maximum side of a block, in tiles, and the minimum number of blocks of a raster: small rasters get smaller blocks.
BLOCK_TILES, BLOCKS = 4, 40
_ANY = Stretch(0, 1)  # numbers of classes may be of any type


class Tiling(NamedTuple):
    """How to cut.

    size       the side of a tile, in pixels
    stride     from the start of one tile to that of the next
    min_share  of the pixels of a tile, those with data and a class; a tile with fewer is left out
    """

    size: int
    stride: int
    min_share: float


class Tile(NamedTuple):
    """The first row and column of a tile."""

    top: int
    left: int


class Cut(NamedTuple):
    """What was written: `splits` has the number of tiles, empty without a mask. `empty` tiles have too few pixels with
    data, `across` tiles overlap both training and held-out parts; both are left out."""

    tiles: int
    splits: dict[SplitName, int]
    empty: int
    across: int


def cut(
    raster: Path,
    mask: Path | None,
    folder: Path,
    tiling: Tiling,
    *,
    labels: Path | None = None,
    coding: Coding | None = None,
    plane: int = 0,
    stretch: Stretch | None = None,
) -> Cut:
    """Writes the tiles of a raster to a new folder: `images/`, and with a mask `masks/` and `splits/`, which `--data`
    accepts. The folder exists only when it is complete. Raises BadData, BadImage, OSError."""
    if folder.exists():
        raise BadData(f"there is {folder} already, want a new folder for the tiles")
    names = None if labels is None else lines(labels)
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    with opened(raster, plane=plane, stretch=stretch) as picture:
        source = None if mask is None else _Mask(mask, coding, picture, raster)
        if min(picture.height, picture.width) < tiling.size:
            raise BadData(
                f"{raster} is {picture.height}x{picture.width} (height x width), want at least --size {tiling.size}"
            )
        try:
            (part / IMAGES).mkdir(parents=True)
            if source is not None:
                (part / MASKS).mkdir()
            written = _cut(picture, source, part, raster.stem, tiling)
            if names is not None:
                (part / LABELS).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            if source is not None:
                source.close()
    return written


def starts(side: int, size: int, stride: int) -> list[int]:
    """Where tiles begin along one axis; the last one ends with the raster."""
    found = list(range(0, side - size + 1, stride))
    return found if found[-1] == side - size else [*found, side - size]


def block_side(height: int, width: int, tiling: Tiling) -> int:
    """The side of the blocks that are held out as one, in pixels: a multiple of the stride, of at least one tile."""
    least = math.ceil(tiling.size / tiling.stride)
    count = BLOCK_TILES
    while (
        count > 1
        and math.ceil(height / (count * least * tiling.stride)) * math.ceil(width / (count * least * tiling.stride))
        < BLOCKS
    ):
        count -= 1
    return count * least * tiling.stride


def split_tiles(tiles: Sequence[Tile], size: int, side: int) -> dict[Tile, SplitName | None]:
    """The split of each tile, by the block in which it lies; None for tiles that lie in blocks of different splits.

    No two tiles of different splits have a pixel in common.
    """
    touched = {tile: list(_blocks(tile, size, side)) for tile in tiles}
    split_of = _split_blocks(Counter(blocks[0] for blocks in touched.values()), touched.values())
    return {
        tile: split_of[blocks[0]] if len({split_of[block] for block in blocks}) == 1 else None
        for tile, blocks in touched.items()
    }


def _split_blocks(tiles_in: Counter[str], touched: Iterable[list[str]]) -> dict[str, SplitName]:
    """Assigns blocks in the order of their hashes until the test split, then validation, has its share of the tiles:
    blocks are too few for the share of hashes itself."""
    blocks = sorted({block for each in touched for block in each}, key=hashed)
    split_of: dict[str, SplitName] = {}
    total, reached = sum(tiles_in.values()), 0
    for block in blocks:
        share = reached / total
        if share < TEST_SHARE:
            split_of[block] = "test"
        elif share < TEST_SHARE + VALIDATION_SHARE or "validation" not in split_of.values():
            split_of[block] = "validation"
        else:
            split_of[block] = "train"
        reached += tiles_in[block]
    return split_of


def _blocks(tile: Tile, size: int, side: int) -> Iterator[str]:
    for row in range(tile.top // side, (tile.top + size - 1) // side + 1):
        for column in range(tile.left // side, (tile.left + size - 1) // side + 1):
            yield f"block {row} {column}"


def _cut(picture: Raster, source: "_Mask | None", part: Path, stem: str, tiling: Tiling) -> Cut:
    size = tiling.size
    places = [
        Tile(top, left)
        for top in starts(picture.height, size, tiling.stride)
        for left in starts(picture.width, size, tiling.stride)
    ]
    console = Console(stderr=True)
    shown = track(places, "cutting tiles", console=console, transient=True, disable=not sys.stderr.isatty())
    kept = [tile for tile in shown if _write(picture, source, part, _name(stem, tile, picture), tile, tiling)]
    if source is not None:
        source.check_painted()
    empty = len(places) - len(kept)
    if not kept:
        raise BadData(f"none of the {empty} tiles has data in {tiling.min_share:.0%} of its pixels (--min-share)")
    if source is None:
        return Cut(len(kept), {}, empty, 0)
    split_of = split_tiles(kept, size, block_side(picture.height, picture.width, tiling))
    counts = Counter(split for split in split_of.values() if split is not None)
    if any(not counts[split] for split in SPLITS):
        has = ", ".join(f"{counts[split]} for {split}" for split in SPLITS)
        raise BadData(f"{len(kept)} tiles are too few to hold some out: {has}; want a smaller --size")
    (part / LISTS).mkdir()
    for split in SPLITS:
        listed = [_name(stem, tile, picture) for tile in kept if split_of[tile] == split]
        (part / LISTS / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
    across = [tile for tile in kept if split_of[tile] is None]
    for tile in across:
        for kind in (IMAGES, MASKS):
            (part / kind / f"{_name(stem, tile, picture)}.png").unlink()
    return Cut(len(kept) - len(across), {split: counts[split] for split in SPLITS}, empty, len(across))


def _name(stem: str, tile: Tile, picture: Raster) -> str:
    digits = len(str(max(picture.height, picture.width)))
    return f"{stem}-{tile.top:0{digits}}-{tile.left:0{digits}}"


def _write(picture: Raster, source: "_Mask | None", part: Path, name: str, tile: Tile, tiling: Tiling) -> bool:
    """Returns whether the tile has enough pixels with data and a class; otherwise writes nothing."""
    window = (*tile, tiling.size, tiling.size)
    gone = picture.absent(*window)
    wanted = tiling.min_share * tiling.size**2
    if gone is not None and (~gone).sum() < max(1.0, wanted):
        return False
    classes = None if source is None else source.read(*window)
    if classes is not None:
        if gone is not None:
            classes[gone] = IGNORE
        if (classes != IGNORE).sum() < max(1.0, wanted):
            return False
    pixels = picture.read(*window)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(part / IMAGES / f"{name}.png")
    if source is not None and classes is not None:
        image = Image.fromarray(classes)
        if source.palette is not None:
            image.putpalette(source.palette.tobytes())
        image.save(part / MASKS / f"{name}.png")
    return True


class _Mask:
    """The classes of a mask of any size, in windows. Raises BadData where it does not fit its picture."""

    def __init__(self, path: Path, coding: Coding | None, picture: Raster, raster: Path) -> None:
        self._path, self._coding = path, coding
        self._seen: set[int] = set()
        self._whole: NDArray[np.uint8] | None = None
        self._raster: Any = opened(path, stretch=_ANY) if _is_tiff(path) else None
        if self._raster is not None and not hasattr(self._raster, "stored"):  # Pillow alone is installed
            self._raster = None
        try:
            if self._raster is None:
                self._whole = masks.read(path, coding)
            self.palette = self._colours()
            self._check(picture, raster)
        except BaseException:
            self.close()
            raise

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Returns class numbers, (height, width), IGNORE for none."""
        if self._whole is not None:
            classes = self._whole[top : top + height, left : left + width].copy()
            self._seen |= set(np.unique(classes).tolist())
            return classes
        stored = self._raster.stored(top, left, height, width)
        values = stored[..., :3] if stored.shape[2] >= 3 else stored[..., 0]
        gone = self._raster.absent(top, left, height, width)
        if gone is not None:  # there is no number to be a class
            values = np.where(gone[..., None] if values.ndim == 3 else gone, self._filler(values), values)
        if values.dtype.kind == "f" or values.dtype.itemsize > 2 or values.dtype.kind == "i":
            values = self._whole_numbers(values)
        classes = masks.classes_of(self._path, values, self._coding)
        self._seen |= set(np.unique(classes if gone is None else classes[~gone]).tolist())
        if gone is not None:
            classes[gone] = IGNORE
        return classes

    def check_painted(self) -> None:
        """Raises BadData if it seems to be painted in 0 and 255, where 255 would mean no class."""
        if self._coding is None and self.palette is None and self._seen == {0, IGNORE}:
            raise BadData(
                f"mask {self._path} has the values 0 and 255 alone, want --mask-values 0,255 if 255 is a class, and "
                "0,255=255 if it is none"
            )

    def close(self) -> None:
        if self._raster is not None:
            self._raster.close()

    def _filler(self, values: NDArray[Any]) -> Any:
        """A value of the coding, in whose place stands IGNORE afterwards."""
        if self._coding is None:
            return np.zeros(3 if values.ndim == 3 else 1, values.dtype)
        first = self._coding.classes[0][0]
        colour = [first >> 16, first >> 8 & 255, first & 255] if self._coding.kind == "colours" else [first]
        return np.array(colour, values.dtype)

    def _whole_numbers(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        wrong = ~((values >= 0) & (values <= 65_535) & (values == np.floor(values)))
        if wrong.any():
            raise BadData(f"mask {self._path} has the value {values[wrong].flat[0]:g}, want whole numbers, 0 to 65535")
        return values.astype(np.uint16)

    def _colours(self) -> NDArray[np.uint8] | None:
        if self._coding is not None:
            chosen = self._coding.palette()
            return None if chosen is None else np.array(chosen, np.uint8)
        if self._raster is not None:
            return None if self._raster.palette is None else np.asarray(self._raster.palette)
        stored = mask_header(self._path).palette
        return np.array(stored, np.uint8) if stored else None

    def _check(self, picture: Raster, raster: Path) -> None:
        high, wide = (self._raster.height, self._raster.width) if self._whole is None else self._whole.shape
        if (high, wide) != (picture.height, picture.width):
            size = f"{picture.height}x{picture.width}"
            raise BadData(f"mask {self._path} is {high}x{wide} (height x width), want {size} as {raster}")
        mine = None if self._raster is None else self._raster.georeference
        if mine is not None and picture.georeference is not None:
            apart = np.abs(np.subtract(mine.transform, picture.georeference.transform))
            pixel = max(map(abs, picture.georeference.transform[:2]))
            if apart.max() > pixel / 2:
                raise BadData(f"mask {self._path} lies elsewhere than {raster}: they differ by {apart.max():g}")


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] in (b"II", b"MM") or path.suffix.lower() in (".jp2", ".img")
