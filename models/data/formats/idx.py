"""The idx files of MNIST and of data sets in the same format (http://yann.lecun.com/exdb/mnist, file format)."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convoy.models.data.formats.arrays import Arrays, Records
from convoy.models.data.formats.listing import LABELS, class_names
from convoy.models.errors import BadData

PARTS = {"train": "train", "test": "t10k"}
# Magic number: two zero bytes, 8 for unsigned bytes, the number of axes.
IMAGES, CLASSES = ("images", 3, 0x00000803), ("labels", 1, 0x00000801)

MAX_EXPANSION = 1032  # maximum expansion of gzip, in bytes per byte


def detects(root: Path) -> bool:
    """Returns whether a folder contains any of the four files."""
    return any(_file(root, prefix, *kind[:2]) is not None for prefix in PARTS.values() for kind in (IMAGES, CLASSES))


def read(root: Path) -> Arrays:
    """Reads the four files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and their `t10k` counterparts, each
    optionally with `.gz`, or with a dot in place of the second hyphen. Class names are in `labels.txt`, one per line;
    without it, they are the numbers. Raises BadData if a file is missing, damaged or of another size than its header
    states."""
    records = {part: _records(root, part) for part in PARTS}
    count = int(records["train"].classes.max()) + 1
    labels = class_names(root / LABELS) or [str(number) for number in range(count)]
    for part, part_records in records.items():
        highest = int(part_records.classes.max())
        if highest >= len(labels):
            raise BadData(f"the {part} labels of {root} have the class {highest}, want 0 to {len(labels) - 1}")
    if records["train"].images.shape[1:] != records["test"].images.shape[1:]:
        raise BadData(f"the images to train and to test with of {root} differ in size, want one size")
    return Arrays(labels, records["train"], records["test"])


def _records(root: Path, part: str) -> Records:
    images, classes = (_array(root, PARTS[part], *kind) for kind in (IMAGES, CLASSES))
    if len(images) != len(classes) or not len(images):
        raise BadData(f"{root} has {len(images)} {part} images and {len(classes)} labels, want as many of both")
    return Records(images[..., None], classes, [f"{part} {place}" for place in range(len(images))])


def _file(root: Path, prefix: str, what: str, axes: int) -> Path | None:
    names = [f"{prefix}-{what}{sign}idx{axes}-ubyte{end}" for sign in "-." for end in ("", ".gz")]
    return next((root / name for name in names if (root / name).is_file()), None)


def _array(root: Path, prefix: str, what: str, axes: int, magic: int) -> NDArray[np.uint8]:
    file = _file(root, prefix, what, axes)
    if file is None:
        raise BadData(f"there is no file {root / prefix}-{what}-idx{axes}-ubyte, maybe with .gz, want all four")
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            head = stream.read(4 * (1 + axes))
            if len(head) < 4 * (1 + axes) or int.from_bytes(head[:4]) != magic:
                raise BadData(f"{file} begins with {head[:4].hex()}, want {magic:08x} and {axes} sizes: an idx file")
            sides = struct.unpack(f">{axes}I", head[4:])
            expected = int(np.prod(sides, dtype=object))
            if expected > MAX_EXPANSION * file.stat().st_size:
                raise BadData(f"{file} has {file.stat().st_size} bytes, want more: {' x '.join(map(str, sides))}")
            content = stream.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{file} cannot be read ({error}), want an idx file") from None
    if len(content) != expected:
        size = "more" if len(content) > expected else str(len(content))
        raise BadData(f"{file} contains {size} bytes after its header, want {expected}: {' x '.join(map(str, sides))}")
    return np.frombuffer(content, np.uint8).reshape(sides)
