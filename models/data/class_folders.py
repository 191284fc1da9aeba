"""A folder with a subfolder of pictures for each class."""

from pathlib import Path

from models.data.dataset import SplitName
from models.data.listing import SPLITS, Entries, Entry, Listing, put_aside, shared
from models.data.picture import files
from models.errors import BadData


def listing(root: Path) -> Listing:
    """The pictures below the subfolders, which may lie below `train/`, `test/` and maybe `validation/`.

    Where there are no splits, or nothing to validate with, the names of classes and pictures decide. Raises BadData.
    """
    split = (root / "train").is_dir() and bool(_folders(root / "train"))
    labels, entries = _split(root) if split else _whole(root)
    if len(labels) < 2:
        raise BadData(
            f"{root} has {len(labels)} subfolders, want images/ and masks/, or a subfolder for each class; "
            "or the files of MNIST, of CIFAR-10 or of Pascal VOC"
        )
    return Listing("classification", labels, entries, [])


def _whole(root: Path) -> tuple[list[str], Entries]:
    labels = _folders(root)
    return labels, shared(_named(root, labels))


def _split(root: Path) -> tuple[list[str], Entries]:
    if not (root / "test").is_dir():
        raise BadData(f"there is no folder {root / 'test'}, want train/, test/ and maybe validation/")
    there: list[SplitName] = [split for split in SPLITS if (root / split).is_dir()]
    labels = sorted({label for split in there for label in _folders(root / split)})
    named = {split: _named(root / split, labels) for split in there}
    entries: Entries = {split: [entry for _, entry in found] for split, found in named.items()}
    if "validation" not in there:
        entries["train"], entries["validation"] = put_aside(named["train"])
    return labels, entries


def _named(root: Path, labels: list[str]) -> list[tuple[str, Entry]]:
    return [
        (f"{label}/{image.name}", Entry(image, number))
        for number, label in enumerate(labels)
        if (root / label).is_dir()
        for image in files(root / label)
    ]


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
