"""A user's own data at a path, in any of the supported layouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from convoy.models.data.dataset import DataSet, Split, SplitName
from convoy.models.data.files import Report
from convoy.models.data.formats import arrays, cifar10, class_folders, folder, idx, mask_folders, table, voc
from convoy.models.data.formats.coding import Coding
from convoy.models.data.formats.listing import Listing
from convoy.models.errors import BadData
from convoy.service.metadata import Task

# Detector and reader of each layout.
BINARY: dict[Callable[[Path], bool], Callable[[Path], arrays.Arrays]] = {
    idx.detects: idx.read,
    cifar10.detects: cifar10.read,
}
LISTED: dict[Callable[[Path], bool], Callable[[Path], Listing]] = {
    table.detects: table.listing,
    voc.detects: voc.listing,
    mask_folders.detects: mask_folders.listing,
}


def load(path: Path, report: Report, coding: Coding | None = None) -> DataSet:
    """Returns the data set at a path, named by the path and the coding of its masks. Images that training cannot use
    are passed to `report`, which may raise. Raises BadData."""
    for detects, read in BINARY.items():
        if detects(path):
            return arrays.load(path, read(path))
    return folder.load(path, _with_masks(listing(path), path, coding), report, coding)


def split(
    path: Path,
    name: SplitName,
    task: Task,
    colour: Literal["RGB", "L"],
    labels: list[str],
    report: Report,
    coding: Coding | None = None,
) -> Split:
    """Returns one split of the data at a path, for a network trained in that colour with those labels. Raises
    BadData."""
    for detects, read in BINARY.items():
        if detects(path):
            return arrays.split(path, read(path), name, task, colour, labels)
    return folder.split(path, listing(path), name, task, colour, labels, report, coding)


def listing(path: Path) -> Listing:
    """Lists the images of a folder or of a CSV file. Raises BadData."""
    if not path.is_dir() and not table.detects(path):
        raise BadData(f"there is no folder or CSV file {path}, want one of pictures")
    for detects, listed in LISTED.items():
        if detects(path):
            return listed(path)
    return class_folders.listing(path)


def _with_masks(listed: Listing, path: Path, coding: Coding | None) -> Listing:
    if coding is not None and listed.task != "segmentation":
        raise BadData(f"{path} has no masks, --mask-{coding.kind} describes how to read masks")
    return listed
