"""The binary files of CIFAR-10 (Krizhevsky 2009; https://www.cs.toronto.edu/~kriz/cifar.html, binary version)."""

import re
from pathlib import Path

import numpy as np

from convoy.models.data.formats.arrays import Arrays, Records
from convoy.models.data.formats.listing import lines
from convoy.models.errors import BadData

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # bytes: the class, then the red, green and blue planes
TEST, NAMES = "test_batch.bin", "batches.meta.txt"


def detects(root: Path) -> bool:
    """Returns whether a folder contains these files, or those of the Python version, which are pickles."""
    return any(root.glob("data_batch_*")) or (root / TEST).is_file()


def read(root: Path) -> Arrays:
    """Reads `data_batch_1.bin` and so on for training, `test_batch.bin` as held out, and the class names of
    `batches.meta.txt`.

    Raises BadData if a file is missing or does not consist of whole records of known classes.
    """
    batches = _batches(root)
    labels = lines(root / NAMES)
    parts = [_records(file, len(labels)) for file in batches]
    train = Records(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.classes for part in parts]),
        [name for part in parts for name in part.names],
    )
    return Arrays(labels, train, _records(root / TEST, len(labels)))


def _batches(root: Path) -> list[Path]:
    numbers = sorted(
        int(match[1]) for file in root.iterdir() if (match := re.fullmatch(r"data_batch_(\d+)\.bin", file.name))
    )
    if not numbers and any(root.glob("data_batch_*")):
        raise BadData(f"{root} contains pickles, which can run code when loaded, want CIFAR-10's binary version")
    if numbers != list(range(1, len(numbers) + 1)) or not numbers:
        present = ", ".join(map(str, numbers)) or "none"
        raise BadData(f"{root / 'data_batch_N.bin'} has the numbers {present}, want 1, 2 and so on without a gap")
    return [root / f"data_batch_{number}.bin" for number in numbers]


def _records(file: Path, classes: int) -> Records:
    try:
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise BadData(f"{file} cannot be read ({error.strerror}), want a batch of CIFAR-10") from None
    if not len(content) or len(content) % RECORD:
        raise BadData(f"{file} has {len(content)} bytes, want {RECORD} for each picture")
    records = content.reshape(-1, RECORD)
    unknown = np.flatnonzero(records[:, 0] >= classes)
    if len(unknown):
        place = int(unknown[0])
        raise BadData(f"picture {place} of {file} has the class {records[place, 0]}, want 0 to {classes - 1}")
    images = records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Records(np.ascontiguousarray(images), records[:, 0], [f"{file.stem} {i}" for i in range(len(records))])
