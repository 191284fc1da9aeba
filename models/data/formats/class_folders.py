"""A folder with one subfolder of images per class."""

from collections.abc import Iterable
from pathlib import Path

from convoy.models.data.dataset import SplitName
from convoy.models.data.files import Fault, nfc, print_once, subfolders
from convoy.models.data.formats.listing import Entries, Entry, Listing, split_as_specified, split_by_name, split_paths
from convoy.models.data.picture import files
from convoy.models.errors import BadData

Classes = dict[str, list[Path]]  # the images of each class, by name


def listing(root: Path) -> Listing:
    """Lists the images in the subfolders, which may be inside `train/`, `validation/` and `test/`, or two of these.

    Without split folders, the names of classes and images determine the splits; with two, `split_as_specified` derives
    the third. A subfolder without pictures is no class, but a fault. Raises BadData.
    """
    faults: list[Fault] = []
    splits = split_paths(subfolders(root))
    # A class may also be called train.
    labels, entries = (
        _split(splits, faults) if "train" in splits and subfolders(splits["train"]) else _whole(root, faults)
    )
    if len(labels) < 2:
        raise BadData(
            f"{root} has {len(labels)} subfolders with pictures, want images/ and masks/, or a subfolder for each "
            "class; or the files of MNIST, of CIFAR-10 or of Pascal VOC"
        )
    return Listing("classification", labels, entries, faults)


def _whole(root: Path, faults: list[Fault]) -> tuple[list[str], Entries]:
    classes = _classes(root)
    labels = _labels([classes])
    faults += [_empty(folder) for folder in subfolders(root) if nfc(folder.name) not in labels]
    return labels, split_by_name(_named(root, classes, labels))


def _split(splits: dict[SplitName, Path], faults: list[Fault]) -> tuple[list[str], Entries]:
    if len(splits) < 2:
        raise BadData(f"there is {splits['train']}, but no test/ or validation/ beside it: want one of them")
    classes = {split: _classes(folder) for split, folder in splits.items()}
    labels = _labels(classes.values())
    faults += [
        _empty(folder) for parent in splits.values() for folder in subfolders(parent) if nfc(folder.name) not in labels
    ]
    return labels, split_as_specified({split: _named(splits[split], classes[split], labels) for split in splits})


def _classes(root: Path) -> Classes:
    """Returns the images of each subfolder. Prints that other images in the folder are not used."""
    stray = files(root)
    if stray:
        number = "1 picture" if len(stray) == 1 else f"{len(stray)} pictures"
        print_once(f"not used: {number} in {root}, outside the folders of the classes: {stray[0].name[:100]}")
    classes: Classes = {}
    for folder in subfolders(root):
        classes.setdefault(nfc(folder.name), []).extend(files(folder, below=True))
    return classes


def _labels(parts: Iterable[Classes]) -> list[str]:
    return sorted({label for classes in parts for label, images in classes.items() if images})


def _named(root: Path, classes: Classes, labels: list[str]) -> list[tuple[str, Entry]]:
    return [
        (image.relative_to(root).as_posix(), Entry(image, number))
        for number, label in enumerate(labels)
        for image in classes.get(label, [])
    ]


def _empty(folder: Path) -> Fault:
    return Fault(folder, f"{folder} contains no picture, so it is not a class")
