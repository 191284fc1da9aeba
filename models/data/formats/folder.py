"""A user's own image files as a data set, from any listing."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convoy.models.data import picture
from convoy.models.data.dataset import IGNORE, DataSet, SplitName, Target
from convoy.models.data.files import Fault, Report, nfc, print_once, printable
from convoy.models.data.formats import masks
from convoy.models.data.formats.coding import Coding, source, two_value_coding
from convoy.models.data.formats.listing import SPLITS, Entries, Entry, Listing, check_complete
from convoy.models.data.reading import Facts, moments, read
from convoy.models.errors import BadData
from convoy.service.metadata import Task

Colour = Literal["RGB", "L"]
Palette = list[tuple[int, int, int]]
Readable = list[tuple[SplitName, Entry, Facts]]
MANY_MISSING = 32  # classes; a few images of a well-known data set may lack most classes, but fewer than these


def load(root: Path, listing: Listing, report: Report, coding: Coding | None = None) -> DataSet:
    """Returns the data set of a listing, named by the path and the coding of its masks. It is grey if all training
    images are.

    Reads every file once. Passes images that training cannot use to `report` and leaves them out. Raises BadData if too
    few remain.
    """
    readable, faults = _readable(root, _all(listing), coding)
    if not readable and len(faults) > 1:
        raise BadData(f"{faults[0].reason}; no other of the {len(faults)} pictures of {root} can be used")
    effective = coding
    if listing.task == "segmentation" and coding is None:
        effective = _two_value_coding(root, listing.labels, readable)
        if effective is None:
            _check_numbers(root, listing.labels, readable)
        else:
            readable = _recoded(readable, effective)
    faults = [*listing.faults, *faults]
    labels = listing.labels or _numbered((facts for split, _, facts in readable if split == "train"), effective)
    kept: dict[SplitName, list[tuple[Entry, Facts]]] = {split: [] for split in SPLITS}
    for split, entry, facts in readable:
        unknown = _unknown(entry, facts, len(labels))
        if unknown is None:
            kept[split].append((entry, facts))
        else:
            faults.append(unknown)
    report(faults, sum(map(len, listing.entries.values())) + len(listing.faults))
    entries: Entries = {split: [entry for entry, _ in kept[split]] for split in SPLITS}
    check_complete(root, labels, entries, len(faults))
    if len(labels) < 2:
        raise BadData(_one_class(root))
    train = [facts for _, facts in kept["train"]]
    colour: Colour = "L" if all(facts.grey for facts in train) else "RGB"
    splits = {split: FolderSplit(root, kept[split], colour, effective) for split in SPLITS}
    palette = _palette((entry for split in SPLITS for entry in entries[split]), len(labels), effective)
    mean, std = _measured(train, colour)
    return DataSet(source(root, coding), listing.task, colour, labels, palette, mean, std, splits.__getitem__)


def split(
    root: Path,
    listing: Listing,
    name: SplitName,
    task: Task,
    colour: Colour,
    labels: list[str],
    report: Report,
    coding: Coding | None = None,
) -> "FolderSplit":
    """Returns one split for a trained network, in its colour and with its labels. Raises BadData if the labels or the
    task differ."""
    if listing.task != task:
        raise BadData(f"{root} is data for {listing.task}, want some for {task}")
    if listing.labels is not None and [nfc(label) for label in listing.labels] != [nfc(label) for label in labels]:
        raise BadData(f"{root} has the classes {_brief(listing.labels)}, the network was trained with {_brief(labels)}")
    readable, faults = _readable(root, [(name, entry) for entry in listing.entries[name]], coding)
    if listing.task == "segmentation" and coding is None and _may_need_coding(readable, labels):
        # The meaning of the values depends on all of the data, as in training.
        whole, _ = _readable(root, _all(listing), None)
        coding = _two_value_coding(root, labels, whole)
        readable = readable if coding is None else _recoded(readable, coding)
    unknown = [_unknown(entry, facts, len(labels)) for _, entry, facts in readable]
    faults += [fault for fault in unknown if fault is not None]
    report([*listing.faults, *faults], len(listing.entries[name]) + len(listing.faults))
    kept = [(entry, facts) for (_, entry, facts), fault in zip(readable, unknown, strict=True) if fault is None]
    if not kept:
        raise BadData(f"{root} has no pictures in its {name} split ({len(faults)} were left out), want at least one")
    return FolderSplit(root, kept, colour, coding)


class FolderSplit:
    """Images with their class, or the class of each pixel, read from their files on each access."""

    def __init__(
        self, root: Path, readable: Sequence[tuple[Entry, Facts]], colour: Colour, coding: Coding | None
    ) -> None:
        self.root, self.colour, self.coding = root, colour, coding
        self.entries = [entry for entry, _ in readable]
        self.sizes = [facts.size for _, facts in readable]

    def __len__(self) -> int:
        return len(self.entries)

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Target]:
        image, target = self.entries[index]
        return picture.read(image, self.colour), target if isinstance(target, int) else masks.read(target, self.coding)

    def name(self, index: int) -> str:
        """Returns the path of an image, relative to the data set."""
        path, root = self.entries[index].image, self.root if self.root.is_dir() else self.root.parent
        return printable(path.relative_to(root) if path.is_relative_to(root) else path)


def _all(listing: Listing) -> list[tuple[SplitName, Entry]]:
    return [(split, entry) for split in SPLITS for entry in listing.entries[split]]


def _readable(root: Path, listed: list[tuple[SplitName, Entry]], coding: Coding | None) -> tuple[Readable, list[Fault]]:
    results = read(root, [entry for _, entry in listed], coding)
    readable = [
        (split, entry, facts) for (split, entry), facts in zip(listed, results, strict=True) if isinstance(facts, Facts)
    ]
    return readable, [result for result in results if isinstance(result, Fault)]


def _unknown(entry: Entry, facts: Facts, classes: int) -> Fault | None:
    if facts.highest < classes:
        return None
    return Fault(
        entry.image, f"mask {entry.target} has the class {facts.highest}, want 0 to {classes - 1}, or {IGNORE} for none"
    )


def _two_value_coding(root: Path, labels: Sequence[str] | None, readable: Readable) -> Coding | None:
    """Returns the coding of hand-painted masks of two classes: 0, and a value too large to be a class number. None for
    other masks."""
    used = sorted({number for _, _, facts in readable for number in facts.numbers})
    if len(used) != 2 or used[0] != 0 or used[1] <= MANY_MISSING or (labels is not None and len(labels) != 2):
        return None
    coding = two_value_coding(used[1])
    print_once(
        f"the masks of {root} have the values 0 and {used[1]}, read as the classes 0 and 1 (--mask-values {coding})"
    )
    return coding


def _may_need_coding(readable: Readable, labels: Sequence[str]) -> bool:
    used = {number for _, _, facts in readable for number in facts.numbers}
    return len(labels) == 2 and used - {0} != set() and min(used - {0}) > MANY_MISSING


def _recoded(readable: Readable, coding: Coding) -> Readable:
    table = dict(coding.classes)
    return [
        (split, entry, facts._replace(highest=max((table[number] for number in facts.numbers), default=0)))
        for split, entry, facts in readable
    ]


def _check_numbers(root: Path, labels: Sequence[str] | None, readable: Readable) -> None:
    """Raises BadData if the numbers in the masks cannot be class numbers but are painted grey values."""
    used = sorted({number for _, _, facts in readable for number in facts.numbers} - {IGNORE})
    if used == [0]:
        raise BadData(_one_class(root))
    listed = ", ".join(map(str, [*used[:8], *(["..."] if len(used) > 8 else [])]))
    values = ",".join(map(str, used)) if len(used) <= 8 else "0,85,170"
    numbers = "want each pixel as the number of its class: 0, 1, 2 and on"
    choice = f"{numbers}, or which values they are: --mask-values {values}"
    if labels is not None:
        beyond = [number for number in used if number >= len(labels)]
        if beyond and all(facts.highest >= len(labels) for _, _, facts in readable):
            classes = f"{len(labels)} classes have names"
            raise BadData(f"the masks of {root} have the numbers {listed}, and {classes}: {choice}")
    missing = used[-1] + 1 - len(used) if used else 0
    if labels is None and missing >= MANY_MISSING and missing > len(used):
        raise BadData(
            f"the masks of {root} have the numbers {listed}, which leaves {missing} classes without a pixel: {choice}; "
            "if there are that many classes, want their names in labels.txt"
        )


def _one_class(root: Path) -> str:
    return (
        f"the masks of {root} have no class but 0, want at least two: {IGNORE} is a pixel of no class; "
        f"where it is meant as a class: --mask-values 0,{IGNORE}"
    )


def _numbered(train: Iterable[Facts], coding: Coding | None) -> list[str]:
    highest = max((facts.highest for facts in train), default=0) if coding is None else coding.highest
    return [f"class {number}" for number in range(highest + 1)]


def _palette(entries: Iterable[Entry], classes: int, coding: Coding | None) -> Palette | None:
    if coding is not None:
        colours = coding.palette()
        return colours[:classes] if colours is not None and len(colours) >= classes else None
    for entry in entries:
        if isinstance(entry.target, Path):
            # Some programs omit the colours of classes that do not occur in the image.
            palette = picture.mask_header(entry.target).palette
            if len(palette) >= classes:
                return palette[:classes]
    return None


def _measured(train: Iterable[Facts], colour: Colour) -> tuple[list[float], list[float]]:
    channels = 3 if colour == "RGB" else 1
    counts = np.zeros((channels, 256), np.int64)
    for facts in train:
        if facts.histogram is not None:
            counts += facts.histogram  # broadcasts: a grey image counts in every channel
    return moments(counts)


def _brief(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + (f", ... ({len(labels)})" if len(labels) > 5 else "")
