"""What belongs to a folder of one's own data, found by names alone: no picture is opened here."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from models.data.dataset import SplitName
from models.data.picture import files
from models.data.shares import share
from models.errors import BadData
from service.metadata import Task

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
IMAGES, MASKS, LABELS, LISTS = "images", "masks", "labels.txt", "splits"


class Entry(NamedTuple):
    """A picture and the number of its class, or the file that says the class of each pixel."""

    image: Path
    target: int | Path


class Listing(NamedTuple):
    """`labels` is None where a folder of masks does not name its classes."""

    task: Task
    labels: list[str] | None
    entries: dict[SplitName, list[Entry]]


def listing(root: Path) -> Listing:
    """The pictures of a folder, by split.

    With `images/` it is data for segmentation: `masks/NAME.png` belongs to `images/NAME.*`; the names of the classes
    may stand in `labels.txt`, one a line, and the splits in `splits/train.txt`, `validation.txt` and `test.txt`, one
    NAME a line. Without, it is data for classification: a subfolder per class, maybe below `train/`, `validation/` and
    `test/`. Where there are no splits the names of the pictures decide. Raises BadData.
    """
    if not root.is_dir():
        raise BadData(f"there is no folder {root}, want one of pictures")
    return _masked(root) if (root / IMAGES).is_dir() else _sorted(root)


def _masked(root: Path) -> Listing:
    images = _by_stem(files(root / IMAGES))
    if not images:
        raise BadData(f"{root / IMAGES} holds no picture, want some of a format that Pillow reads")
    names = _listed(root, images) if (root / LISTS).is_dir() else _shared(images)
    entries = {split: [_pair(root, images[name]) for name in names[split]] for split in SPLITS}
    if not (root / LISTS).is_dir():
        _check_masks_used(root, images)
    return Listing("segmentation", _labels(root / LABELS), _filled(root, entries))


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise BadData(f"{found[path.stem]} and {path} have the same name, want one picture for a mask")
        found[path.stem] = path
    return found


def _pair(root: Path, image: Path) -> Entry:
    mask = root / MASKS / f"{image.stem}.png"
    if not mask.is_file():
        raise BadData(f"there is no mask {mask}, want one for {image}")
    return Entry(image, mask)


def _check_masks_used(root: Path, images: dict[str, Path]) -> None:
    for mask in files(root / MASKS):
        if mask.stem not in images:
            raise BadData(f"there is no picture in {root / IMAGES} for the mask {mask}")


def _listed(root: Path, images: dict[str, Path]) -> dict[SplitName, list[str]]:
    names = {split: _lines(root / LISTS / f"{split}.txt") for split in SPLITS}
    found: dict[str, SplitName] = {}
    for split in SPLITS:
        file = root / LISTS / f"{split}.txt"
        for name in names[split]:
            if name not in images:
                raise BadData(f"{file} names {name!r}, and there is no such picture in {root / IMAGES}")
            if name in found:
                raise BadData(f"{file} names {name!r}, which is in {found[name]} already, want each picture once")
            found[name] = split
    return names


def _shared(names: Iterable[str]) -> dict[SplitName, list[str]]:
    shares: dict[SplitName, list[str]] = {split: [] for split in SPLITS}
    for name in names:
        shares[share(name)].append(name)
    return shares


def _labels(path: Path) -> list[str] | None:
    if not path.exists():
        return None
    labels = _lines(path)
    for label, count in Counter(labels).items():
        if count > 1:
            raise BadData(f"{path} names {label!r} {count} times, want each class once")
    if not 2 <= len(labels) <= 255:
        raise BadData(f"{path} names {len(labels)} classes, want 2 to 255: 255 in a mask is a pixel of no class")
    return labels


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror}), want a text file, one name a line") from None
    except UnicodeDecodeError:
        raise BadData(f"{path} is not UTF-8 text, want one name a line") from None
    if "" in lines:
        raise BadData(f"line {lines.index('') + 1} of {path} is empty, want one name a line")
    return lines


def _sorted(root: Path) -> Listing:
    if (root / "train").is_dir() and _folders(root / "train"):
        labels, entries = _sorted_by_split(root)
    else:
        labels = _folders(root)
        entries = {split: [] for split in SPLITS}
        for number, label in enumerate(labels):
            for image in files(root / label):
                entries[share(f"{label}/{image.name}")].append(Entry(image, number))
    if len(labels) < 2:
        raise BadData(
            f"{root} has {len(labels)} subfolders, want {IMAGES}/ and {MASKS}/, or a subfolder for each class"
        )
    _check_classes(root, labels, entries)
    return Listing("classification", labels, _filled(root, entries))


def _sorted_by_split(root: Path) -> tuple[list[str], dict[SplitName, list[Entry]]]:
    for split in SPLITS:
        if not (root / split).is_dir():
            raise BadData(f"there is no folder {root / split}, want {', '.join(f'{name}/' for name in SPLITS)}")
    labels = sorted({label for split in SPLITS for label in _folders(root / split)})
    return labels, {
        split: [
            Entry(image, number)
            for number, label in enumerate(labels)
            if (root / split / label).is_dir()
            for image in files(root / split / label)
        ]
        for split in SPLITS
    }


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _check_classes(root: Path, labels: list[str], entries: dict[SplitName, list[Entry]]) -> None:
    counts = {split: Counter(entry.target for entry in entries[split]) for split in SPLITS}
    for number, label in enumerate(labels):
        splits = [split for split in SPLITS if counts[split][number]]
        if not splits:
            raise BadData(f"class {label!r} of {root} has no pictures, want some of a format that Pillow reads")
        if splits == ["train"] or "train" not in splits:
            raise BadData(
                f"class {label!r} of {root} has pictures in {' and '.join(splits)} only, "
                "want some to train with and some to test with"
            )


def _filled(root: Path, entries: dict[SplitName, list[Entry]]) -> dict[SplitName, list[Entry]]:
    for split in SPLITS:
        if not entries[split]:
            total = sum(map(len, entries.values()))
            raise BadData(f"none of the {total} pictures of {root} is in its {split} split, want at least one in each")
    return entries
