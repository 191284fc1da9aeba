"""Listing of a data set of image files: entries, their assignment to splits, and checks that it is complete. No image
is opened here."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from convoy.models.data.dataset import SplitName
from convoy.models.data.files import Fault, nfc
from convoy.models.errors import BadData
from convoy.service.metadata import Task
from convoy.service.text import NoText, decoded

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
LABELS = "labels.txt"
# Usual names of splits, in lower case.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2


class Entry(NamedTuple):
    """An image and its class number, or its mask file."""

    image: Path
    target: int | Path


Entries = dict[SplitName, list[Entry]]


class Listing(NamedTuple):
    """`labels` is None if masks have no class names; `faults` are images that do not exist."""

    task: Task
    labels: list[str] | None
    entries: Entries
    faults: list[Fault]


def split_by_name(named: Iterable[tuple[str, Entry]]) -> Entries:
    """Returns entries by split, determined by their names; each class is in train and test if it has enough images."""
    listed = list(named)
    groups: dict[int, list[str]] = defaultdict(list)
    for name, entry in listed:
        groups[entry.target if isinstance(entry.target, int) else 0].append(name)
    split_of = assigned_splits(list(groups.values()))
    entries: Entries = {split: [] for split in SPLITS}
    for name, entry in listed:
        entries[split_of[name]].append(entry)
    return entries


def split_as_specified(named: Mapping[SplitName, Sequence[tuple[str, Entry]]]) -> Entries:
    """Returns entries by split as the data specifies them. The names determine any further choice.

    Without a test split, the validation split is held out. If no validation split is left, some training images are set
    aside for it.
    """
    entries: Entries = {split: [entry for _, entry in named.get(split, [])] for split in SPLITS}
    if "test" in named and "validation" in named:
        return entries
    if "test" not in named:
        entries["test"] = entries["validation"]
    entries["train"], entries["validation"] = divide_training(named["train"])
    return entries


def split_paths(paths: Iterable[Path]) -> dict[SplitName, Path]:
    """Returns the folders or lists that are named like a split. Raises BadData if two are for the same split."""
    paths_by_split: dict[SplitName, Path] = {}
    for path in sorted(paths):
        split = SPLIT_NAMES.get(path.name.removesuffix(".txt").lower())
        if split is not None and split in paths_by_split:
            raise BadData(f"{paths_by_split[split]} and {path} are both for {split}, want one of them")
        if split is not None:
            paths_by_split[split] = path
    return {split: paths_by_split[split] for split in SPLITS if split in paths_by_split}


def divide_training(named: Sequence[tuple[str, Entry]]) -> tuple[list[Entry], list[Entry]]:
    """Divides training entries, by their names, into those for training and those for validation."""
    aside = for_validation([name for name, _ in named])
    train = [entry for (_, entry), away in zip(named, aside, strict=True) if not away]
    return train, [entry for (_, entry), away in zip(named, aside, strict=True) if away]


def check_complete(root: Path, labels: list[str], entries: Entries, faults: Sequence[Fault]) -> None:
    """Raises BadData if a split has no images, or a class none in train or none in test; `faults` are the images left
    out."""
    without = f" ({len(faults)} were left out; the first: {faults[0].reason})" if faults else ""
    if all(isinstance(entry.target, int) for split in SPLITS for entry in entries[split]):
        _check_classes(root, labels, entries, without)
    for split in SPLITS:
        if not entries[split]:
            total = sum(map(len, entries.values()))
            raise BadData(
                f"none of the {total} pictures of {root} is in its {split} split{without}, want at least one in each"
            )


def class_names(path: Path) -> list[str] | None:
    """Reads the class names of masks from a text file, one per line; None if the file does not exist. Raises
    BadData."""
    if not path.exists():
        return None
    labels = [nfc(label) for label in lines(path)]
    for label, count in Counter(labels).items():
        if count > 1:
            raise BadData(f"{path} names {label!r} {count} times, want each class once")
    if not 2 <= len(labels) <= 255:
        raise BadData(f"{path} names {len(labels)} classes, want 2 to 255: 255 in a mask is a pixel of no class")
    return labels


def lines(path: Path) -> list[str]:
    """Returns the lines of a text file, all non-empty. Raises BadData."""
    stripped = [line.strip() for line in text(path).rstrip().split("\n")]
    if stripped == [""]:
        return []
    if "" in stripped:
        raise BadData(f"line {stripped.index('') + 1} of {path} is empty, want one name a line")
    return stripped


def text(path: Path) -> str:
    """Returns the content of a text file. Raises BadData."""
    try:
        return decoded(path.read_bytes())
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror}), want a text file, one name a line") from None
    except NoText as error:
        raise BadData(f"{path}: {error}") from None


def assigned_split(name: str) -> SplitName:
    """Returns the split of an image by its name: about 70 % train, 10 % validation, 20 % test.

    It depends only on the name's SHA-256: an image keeps its split when others are added or removed.
    """
    place = hashed(name)
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def assigned_splits(groups: Sequence[Sequence[str]]) -> dict[str, SplitName]:
    """Returns the split of each name: that of `share`, adjusted so that every group has at least one name in train and
    one in test, and all groups together have at least one in validation, if there are enough names.

    A group contains the names of one class, or all names if images do not have a single class. An empty split receives
    the name nearest to it, so in small groups names may change their split when others are added.
    """
    split_of = {name: assigned_split(name) for group in groups for name in group}
    for group in groups:
        ordered = sorted(group, key=hashed)
        if len(group) > 1:
            split_of[ordered[0]] = "test"  # unchanged if the group had a test name already
            if all(split_of[name] != "train" for name in group):
                split_of[ordered[-1]] = "train"
    if "validation" not in split_of.values():
        training = [[name for name in group if split_of[name] == "train"] for group in groups]
        spare = [name for names in training if len(names) > 1 for name in names]
        if spare:
            split_of[min(spare, key=hashed)] = "validation"
    return split_of


def for_validation(names: Sequence[str]) -> list[bool]:
    """Returns which training images to set aside for validation: about one in ten, and at least one.

    For data that provides test images but no validation images. It depends only on the name, as in `share`.
    """
    places = [hashed(name) for name in names]
    bound = max(VALIDATION_SHARE, min(places, default=0.0))
    return [place <= bound for place in places]


def hashed(name: str) -> float:
    """Returns a uniformly distributed number, 0..1."""
    # The bytes of the name, which may not be UTF-8; with `one`, equal on a Mac, which writes accents in another form.
    return int.from_bytes(hashlib.sha256(os.fsencode(nfc(name))).digest()[:8]) / 2**64


def _check_classes(root: Path, labels: list[str], entries: Entries, without: str) -> None:
    counts = {split: Counter(entry.target for entry in entries[split]) for split in SPLITS}
    for number, label in enumerate(labels):
        splits = [split for split in SPLITS if counts[split][number]]
        if not splits:
            raise BadData(f"class {label!r} of {root} has no pictures that can be read{without}, want some")
        if splits == ["train"] or "train" not in splits:
            raise BadData(
                f"class {label!r} of {root} has pictures in {' and '.join(splits)} only{without}, "
                "want some to train with and some to test with"
            )
