"""Folders of `images/` and `masks/`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from convoy.models.data.dataset import SplitName
from convoy.models.data.files import Fault, nfc, subfolders
from convoy.models.data.formats.listing import (
    LABELS,
    SPLITS,
    Entry,
    Listing,
    class_names,
    lines,
    split_as_specified,
    split_by_name,
    split_paths,
)
from convoy.models.data.picture import by_stem, files
from convoy.models.errors import BadData

IMAGES, MASKS, LISTS = "images", "masks", "splits"


class Pair(NamedTuple):
    """A folder of images and the folder of their masks."""

    images: Path
    masks: Path


def detects(root: Path) -> bool:
    """Returns whether a folder has this layout."""
    return (root / IMAGES).is_dir() or any(pair.images.is_dir() for pair in _pairs(root).values())


def listing(root: Path) -> Listing:
    """Lists the images of `images/` with their masks: `masks/NAME.png` for `images/NAME.*`. `labels.txt` may contain
    the class names, one per line.

    The splits are folders, `train/images/` and `train/masks/` or `images/train/` and `masks/train/` and so on, or
    lists, `splits/train.txt` and so on, one NAME per line. With two of the three splits, `split_as_specified` derives
    the third; without any, the names of the images determine the splits. Raises BadData.
    """
    pairs = _pairs(root)
    faults: list[Fault] = []
    if pairs:
        named = {split: _named(_by_stem(pair), pair, faults) for split, pair in pairs.items()}
        _check_splits(root, named)
        entries = split_as_specified(named)
    elif (root / LISTS).is_dir():
        entries = split_as_specified(_listed(root, faults))
    else:
        pair = Pair(root / IMAGES, root / MASKS)
        entries = split_by_name(_named(_by_stem(pair), pair, faults))
    for split in SPLITS:
        faults += [_no_mask(entry) for entry in entries[split] if not _has_mask(entry)]
        entries[split] = [entry for entry in entries[split] if _has_mask(entry)]
    return Listing("segmentation", class_names(root / LABELS), entries, faults)


def _pairs(root: Path) -> dict[SplitName, Pair]:
    """Returns the folders of each split; empty if the splits are not folders."""
    inside = split_paths(subfolders(root / IMAGES)) if (root / IMAGES).is_dir() else {}
    if inside:
        return {split: Pair(folder, root / MASKS / folder.name) for split, folder in inside.items()}
    outside = split_paths(folder for folder in subfolders(root) if (folder / IMAGES).is_dir())
    return {split: Pair(folder / IMAGES, folder / MASKS) for split, folder in outside.items()}


def _by_stem(pair: Pair) -> dict[str, Path]:
    images = by_stem(files(pair.images))
    if not images:
        raise BadData(f"{pair.images} contains no picture, want some of a format that Pillow reads")
    if not pair.masks.is_dir():
        beside = [repr(f"{folder.name}/") for folder in subfolders(pair.masks.parent) if folder != pair.images]
        instead = f"; there is {', '.join(beside[:3])[:200]}" if beside else ""
        raise BadData(f"there is no folder {pair.masks}, want the mask of each picture of {pair.images} there{instead}")
    return images


def _named(images: dict[str, Path], pair: Pair, faults: list[Fault]) -> list[tuple[str, Entry]]:
    masks = files(pair.masks)
    faults += [
        Fault(mask, f"there is no picture in {pair.images} for the mask {mask}")
        for mask in masks
        if nfc(mask.stem) not in images
    ]
    if masks and all(nfc(mask.stem) not in images for mask in masks):
        raise BadData(
            f"none of the {len(masks)} masks of {pair.masks} has the name of a picture in {pair.images}: "
            f"found {masks[0].name[:100]!r}, want {next(iter(images.values())).stem[:100] + '.png'!r}"
        )
    masks_by_name = _by_name(masks)
    return [(name, _entry(image, pair, masks_by_name)) for name, image in images.items()]


def _by_name(masks: Iterable[Path]) -> dict[str, Path]:
    """Returns masks by name without the extension; if several have one name, the PNG file."""
    ordered = sorted(masks, key=lambda mask: mask.suffix.lower() == ".png")
    return {nfc(mask.stem): mask for mask in ordered}


def _entry(image: Path, pair: Pair, masks: Mapping[str, Path]) -> Entry:
    return Entry(image, masks.get(nfc(image.stem), pair.masks / f"{image.stem}.png"))


def _has_mask(entry: Entry) -> bool:
    assert isinstance(entry.target, Path)
    return entry.target.is_file()


def _no_mask(entry: Entry) -> Fault:
    return Fault(entry.image, f"there is no mask {entry.target}, want one for {entry.image}")


def _check_splits(root: Path, splits: Iterable[SplitName]) -> None:
    present = set(splits)
    if "train" not in present or len(present) < 2:
        raise BadData(f"{root} is split into {' and '.join(sorted(present))} only, want train and test or validation")


def _listed(root: Path, faults: list[Fault]) -> dict[SplitName, list[tuple[str, Entry]]]:
    pair = Pair(root / IMAGES, root / MASKS)
    images, lists = _by_stem(pair), split_paths((root / LISTS).glob("*.txt"))
    _check_splits(root / LISTS, lists)
    masks = _by_name(files(pair.masks))
    named: dict[SplitName, list[tuple[str, Entry]]] = {split: [] for split in lists}
    place: dict[str, SplitName] = {}
    for split, file in lists.items():
        for name in map(nfc, lines(file)):
            if name in place:
                raise BadData(f"{file} names {name!r}, which is in {place[name]} already, want each picture once")
            place[name] = split
            if name in images:
                named[split].append((name, _entry(images[name], pair, masks)))
            else:
                image = pair.images / name
                faults.append(Fault(image, f"{file} names {name!r}, and there is no such picture in {pair.images}"))
    return named
