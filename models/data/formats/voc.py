"""Images and masks in the layout of Pascal VOC (Everingham et al. 2010, IJCV 88)."""

import re
from pathlib import Path

from convoy.models.data.dataset import SplitName
from convoy.models.data.files import Fault, existing, nfc
from convoy.models.data.formats.listing import (
    LABELS,
    SPLITS,
    Entries,
    Entry,
    Listing,
    class_names,
    lines,
    split_as_specified,
)
from convoy.models.data.picture import by_stem, files
from convoy.models.errors import BadData

IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", Path("ImageSets") / "Segmentation"
CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
]


def detects(root: Path) -> bool:
    """Returns whether a folder has this layout."""
    return (root / IMAGES).is_dir()


def listing(root: Path) -> Listing:
    """Lists the images in `train.txt` and `val.txt`. The masks of the challenge's test images are not published, so
    `val.txt` is held out, and part of `train.txt`, chosen by name, is set aside for validation. If there are masks for
    `test.txt`, it is held out and `val.txt` is for validation.

    The classes are those of `labels.txt`, if it exists, or the challenge's own if the folder is called VOC and a year,
    as in its archives. Raises BadData.
    """
    if not (root / MASKS).is_dir():
        raise BadData(f"there is no folder {root / MASKS}, want the masks of {root / IMAGES} there")
    faults: list[Fault] = []
    images = by_stem(files(root / IMAGES))
    train, val = (_entries(root, images, name, faults) for name in ("train", "val"))
    test = _entries(root, images, "test", []) if (root / LISTS / "test.txt").is_file() else []
    named: dict[SplitName, list[tuple[str, Entry]]] = {"train": train, "validation": val}
    entries = split_as_specified({**named, "test": test} if test else named)
    _check_once(root, entries)
    own = CLASSES if re.fullmatch(r"VOC\d{4}", root.name) else None
    return Listing("segmentation", class_names(root / LABELS) or own, entries, faults)


def _entries(root: Path, images: dict[str, Path], part: str, faults: list[Fault]) -> list[tuple[str, Entry]]:
    file, entries = root / LISTS / f"{part}.txt", []
    for name in lines(file):
        mask = existing(root / MASKS / f"{name}.png")
        if nfc(name) not in images:
            reason = f"{file} names {name!r}, and there is no such picture in {root / IMAGES}"
            faults.append(Fault(root / IMAGES / name, reason))
        elif not mask.is_file():
            faults.append(Fault(mask, f"there is no mask {mask}, want one for {name!r} of {file}"))
        else:
            entries.append((name, Entry(images[nfc(name)], mask)))
    return entries


def _check_once(root: Path, entries: Entries) -> None:
    place: dict[Path, str] = {}
    for split in SPLITS:
        for entry in entries[split]:
            if entry.image in place:
                raise BadData(f"{root / LISTS} names {entry.image.stem!r} twice, want each picture once")
            place[entry.image] = split
