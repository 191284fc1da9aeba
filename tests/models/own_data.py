"""Small data sets of every kind, written to a folder of the test's own."""

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convoy.models.data.formats.voc import CLASSES


def write_idx(root: Path, gz: bool = False, sign: str = "-", counts: tuple[int, int] = (40, 12)) -> Path:
    """Squares of 8x8 whose grey is twenty times their class, of three."""
    root.mkdir(parents=True, exist_ok=True)
    for prefix, count in zip(("train", "t10k"), counts, strict=True):
        classes = (np.arange(count) % 3).astype(np.uint8)
        images = np.repeat(20 * classes, 64)
        for what, content, magic, sides in (
            ("images", images, 0x803, (count, 8, 8)),
            ("labels", classes, 0x801, (count,)),
        ):
            whole = struct.pack(f">{1 + len(sides)}I", magic, *sides) + content.tobytes()
            name = f"{prefix}-{what}{sign}idx{len(sides)}-ubyte"
            (root / f"{name}.gz").write_bytes(gzip.compress(whole)) if gz else (root / name).write_bytes(whole)
    return root


def cifar10_records(count: int, classes: int = 10) -> bytes:
    """Records whose red is 10, green 20 and blue 30 times the class; a pixel's place is not in them."""
    records = np.zeros((count, 1 + 3072), np.uint8)
    records[:, 0] = np.arange(count) % classes
    for channel in range(3):
        plane = records[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)]
        plane[...] = (records[:, :1] * (10, 20, 25)[channel]).astype(np.uint8)
    records[:, 1] = 7  # the red of the first pixel
    return records.tobytes()


def write_cifar10(root: Path) -> Path:
    """Two batches of twenty to train with, ten to test with."""
    root.mkdir(parents=True, exist_ok=True)
    for name, count in (("data_batch_1", 20), ("data_batch_2", 20), ("test_batch", 10)):
        (root / f"{name}.bin").write_bytes(cifar10_records(count))
    (root / "batches.meta.txt").write_text("\n".join(f"thing {number}" for number in range(10)) + "\n\n")
    return root


def mask(height: int = 12, width: int = 16) -> NDArray[np.uint8]:
    """Ground, a rectangle of class 15 (person), and a line of no class."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[3:9, 4:10] = 15
    pixels[2, 4:10] = 255
    return pixels


def write_voc(root: Path, count: int = 30, tested: bool = False) -> Path:
    """Pictures 2007_000000 and on, the last ten in val.txt."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"2007_{number:06}" for number in range(count)]
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(noise).save(root / "JPEGImages" / f"{name}.jpg")
        image = Image.fromarray(mask())
        image.putpalette([number for number in range(256) for _ in range(3)])
        image.save(root / "SegmentationClass" / f"{name}.png")
    parts = {"train": names[:-10], "val": names[-10:]}
    if tested:
        parts = {"train": names[:-10], "val": names[-10:-5], "test": names[-5:]}
    for split, part in parts.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(part) + "\n")
    assert len(CLASSES) == 21
    return root


def write_table(root: Path, rows: list[str], header: str = "path,label", name: str = "pictures.csv") -> Path:
    """A CSV file of those rows, and a picture for every path in them."""
    root.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        path = root / row.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7 + number % 2), (number % 256, 40, 200)).save(path)
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    return root / name
