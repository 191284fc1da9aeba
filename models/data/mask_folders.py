"""A folder of `images/` and `masks/`."""

from collections.abc import Iterable
from pathlib import Path

from models.data.dataset import SplitName
from models.data.faults import Fault
from models.data.listing import LABELS, SPLITS, Entries, Entry, Listing, class_names, lines, shared
from models.data.picture import files
from models.errors import BadData

IMAGES, MASKS, LISTS = "images", "masks", "splits"


def found(root: Path) -> bool:
    """Whether a folder is of this kind."""
    return (root / IMAGES).is_dir()


def listing(root: Path) -> Listing:
    """`masks/NAME.png` belongs to `images/NAME.*`; the names of the classes may stand in `labels.txt`, one a line, and
    the splits in `splits/train.txt`, `validation.txt` and `test.txt`, one NAME a line; else the names of the pictures
    decide. Raises BadData."""
    images = _by_stem(files(root / IMAGES))
    if not images:
        raise BadData(f"{root / IMAGES} holds no picture, want some of a format that Pillow reads")
    faults: list[Fault] = []
    if (root / LISTS).is_dir():
        entries = _listed(root, images, faults)
    else:
        entries = shared((name, _pair(root, image)) for name, image in images.items())
        faults += _masks_alone(root, images)
    for split in SPLITS:
        faults += [_no_mask(entry) for entry in entries[split] if not _has_mask(entry)]
        entries[split] = [entry for entry in entries[split] if _has_mask(entry)]
    return Listing("segmentation", class_names(root / LABELS), entries, faults)


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in paths:
        if path.stem in images:
            raise BadData(f"{images[path.stem]} and {path} have the same name, want one picture for a mask")
        images[path.stem] = path
    return images


def _pair(root: Path, image: Path) -> Entry:
    return Entry(image, root / MASKS / f"{image.stem}.png")


def _has_mask(entry: Entry) -> bool:
    assert isinstance(entry.target, Path)
    return entry.target.is_file()


def _no_mask(entry: Entry) -> Fault:
    return Fault(entry.image, f"there is no mask {entry.target}, want one for {entry.image}")


def _masks_alone(root: Path, images: dict[str, Path]) -> list[Fault]:
    masks = files(root / MASKS) if (root / MASKS).is_dir() else []
    return [
        Fault(mask, f"there is no picture in {root / IMAGES} for the mask {mask}")
        for mask in masks
        if mask.stem not in images
    ]


def _listed(root: Path, images: dict[str, Path], faults: list[Fault]) -> Entries:
    entries: Entries = {split: [] for split in SPLITS}
    place: dict[str, SplitName] = {}
    for split in SPLITS:
        file = root / LISTS / f"{split}.txt"
        for name in lines(file):
            if name in place:
                raise BadData(f"{file} names {name!r}, which is in {place[name]} already, want each picture once")
            place[name] = split
            if name in images:
                entries[split].append(_pair(root, images[name]))
            else:
                image = root / IMAGES / name
                faults.append(Fault(image, f"{file} names {name!r}, and there is no such picture in {root / IMAGES}"))
    return entries
