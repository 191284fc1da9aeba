"""A folder with one subfolder of images per class."""

from pathlib import Path

from convoy.models.data.dataset import SplitName
from convoy.models.data.files import nfc, subfolders
from convoy.models.data.formats.listing import Entries, Entry, Listing, split_as_specified, split_by_name, split_paths
from convoy.models.data.picture import files
from convoy.models.errors import BadData


def listing(root: Path) -> Listing:
    """Lists the images in the subfolders, which may be inside `train/`, `validation/` and `test/`, or two of these.

    Without split folders, the names of classes and images determine the splits; with two, `split_as_specified` derives
    the third. Raises BadData.
    """
    splits = split_paths(subfolders(root))
    # A class may also be called train.
    labels, entries = _split(splits) if "train" in splits and _labels(splits["train"]) else _whole(root)
    if len(labels) < 2:
        raise BadData(
            f"{root} has {len(labels)} subfolders, want images/ and masks/, or a subfolder for each class; "
            "or the files of MNIST, of CIFAR-10 or of Pascal VOC"
        )
    return Listing("classification", labels, entries, [])


def _whole(root: Path) -> tuple[list[str], Entries]:
    labels = _labels(root)
    return labels, split_by_name(_named(root, labels))


def _split(splits: dict[SplitName, Path]) -> tuple[list[str], Entries]:
    if len(splits) < 2:
        raise BadData(f"there is {splits['train']}, but no test/ or validation/ beside it: want one of them")
    labels = sorted({label for folder in splits.values() for label in _labels(folder)})
    return labels, split_as_specified({split: _named(folder, labels) for split, folder in splits.items()})


def _named(root: Path, labels: list[str]) -> list[tuple[str, Entry]]:
    classes = subfolders(root)
    return [
        (image.relative_to(root).as_posix(), Entry(image, number))
        for number, label in enumerate(labels)
        for folder in classes
        if nfc(folder.name) == label
        for image in files(folder, below=True)
    ]


def _labels(root: Path) -> list[str]:
    return sorted({nfc(folder.name) for folder in subfolders(root)})
