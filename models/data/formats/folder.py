"""A user's own image files as a data set, from any listing."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convoy.models.data import picture
from convoy.models.data.dataset import IGNORE, DataSet, SplitName, Target
from convoy.models.data.files import Fault, Report, nfc, print_once, printable
from convoy.models.data.formats import masks
from convoy.models.data.formats.coding import Coding, parse, read_colours, source
from convoy.models.data.formats.listing import LABELS, SPLITS, Entries, Entry, Listing, check_complete
from convoy.models.data.reading import Facts, in_threads, moments, read
from convoy.models.errors import BadData
from convoy.service.metadata import Task

Colour = Literal["RGB", "L"]
Palette = list[tuple[int, int, int]]
Readable = list[tuple[SplitName, Entry, Facts]]
PALETTE = "palette.txt"
MOST_COLOURS = 64  # of painted masks; smoothed edges have hundreds
MOST_VALUES = 32  # likewise
LEAST_GAP = 8  # between painted values; of 0, 1 and 254, the last could be no class
MANY_MISSING = 32  # classes; a few images of a well-known data set may lack most classes, but fewer than these


def load(root: Path, listing: Listing, report: Report, coding: Coding | None = None) -> DataSet:
    """Returns the data set of a listing. It is grey if all training images are. Its name contains the path and the
    coding of its masks, also one that was found here, so that every later command reads them alike.

    Reads every file once. Passes images that training cannot use to `report` and leaves them out. Raises BadData if too
    few remain.
    """
    masked = listing.task == "segmentation"
    effective = _colour_coding(root, listing) if masked and coding is None else coding
    readable, faults = _readable(root, _all(listing), effective)
    if not readable and len(faults) > 1:
        raise BadData(f"{faults[0].reason}; no other of the {len(faults)} pictures of {root} can be used")
    if masked and effective is None:
        effective = _value_coding(root, listing.labels, readable)
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
    check_complete(root, labels, entries, faults)
    if len(labels) < 2:
        raise BadData(_one_class(root))
    train = [facts for _, facts in kept["train"]]
    colour: Colour = "L" if all(facts.grey for facts in train) else "RGB"
    splits = {split: FolderSplit(root, kept[split], colour, effective) for split in SPLITS}
    palette = _palette((entry for split in SPLITS for entry in entries[split]), len(labels), effective)
    mean, std = _measured(train, colour)
    left_out = [printable(Path(fault.reason)) for fault in faults]
    name, split_of = source(root, effective), splits.__getitem__
    return DataSet(name, listing.task, colour, labels, palette, mean, std, split_of, left_out=left_out)


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
        coding = _value_coding(root, labels, whole)
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


def _colour_coding(root: Path, listing: Listing) -> Coding | None:
    """Returns the coding of masks that are all painted in a few colours; None for others.

    The folder's file `palette.txt` determines the order of the classes, otherwise the colours do: black first.
    """
    paths = [entry.target for _, entry in _all(listing) if isinstance(entry.target, Path)]
    if not paths or masks.colours(paths[0]) is None:
        return None
    found = list(in_threads(masks.colours, paths, "reading colours"))
    used = sorted(set().union(*(colours for colours in found if colours is not None)))
    grey = all(colour % 0x10101 == 0 for colour in used)
    if any(colours is None for colours in found) or grey or len(used) > MOST_COLOURS:
        return None
    written = root / PALETTE
    if written.is_file():
        coding = parse("colours", ",".join(bytes(colour).hex() for colour in read_colours(written)))
        print_once(f"the masks of {root} are read by the colours in {written.name} (--mask-colours {coding})")
        return coding
    if listing.labels is not None:
        raise BadData(
            f"the masks of {root} have {len(used)} colours and its {LABELS} has {len(listing.labels)} names: want the "
            f"colour of each, in that order, one per line in {written}, or --mask-colours; the colours are "
            + ",".join(f"{colour:06x}" for colour in used)
        )
    coding = Coding("colours", tuple((colour, number) for number, colour in enumerate(used)))
    print_once(
        f"the masks of {root} have {len(used)} colours, read as the {_classes(len(used))} (--mask-colours {coding})"
    )
    return coding


def _value_coding(root: Path, labels: Sequence[str] | None, readable: Readable) -> Coding | None:
    """Returns the coding of masks that are painted in a few grey values, too far apart to be class numbers. None for
    other masks, and where 255 could be a class or none."""
    used = sorted({number for _, _, facts in readable for number in facts.numbers})
    apart = all(after - before >= LEAST_GAP for before, after in pairwise(used))
    sparse = 1 < len(used) <= MOST_VALUES and used[0] == 0 and _missing(used) >= MANY_MISSING
    if (
        not (sparse and apart)
        or (labels is not None and len(labels) != len(used))
        or (len(used) > 2 and IGNORE in used)
    ):
        return None
    coding = Coding("values", tuple((value, number) for number, value in enumerate(used)))
    values = " and ".join([", ".join(map(str, used[:-1])), str(used[-1])])
    print_once(
        f"the masks of {root} have the values {values}, read as the {_classes(len(used))} (--mask-values {coding})"
    )
    return coding


def _classes(count: int) -> str:
    return "classes 0 and 1" if count == 2 else f"classes 0 to {count - 1}"


def _missing(used: Sequence[int]) -> int:
    """Returns how many numbers up to the highest are not used."""
    return used[-1] + 1 - len(used) if used else 0


def _may_need_coding(readable: Readable, labels: Sequence[str]) -> bool:
    used = {number for _, _, facts in readable for number in facts.numbers}
    # Of two classes, 255 may be the second.
    return max(used if len(labels) == 2 else used - {IGNORE}, default=0) >= len(labels)


def _recoded(readable: Readable, coding: Coding) -> Readable:
    table = dict(coding.classes)
    return [
        (split, entry, facts._replace(highest=max((table[number] for number in facts.numbers), default=0)))
        for split, entry, facts in readable
    ]


def _check_numbers(root: Path, labels: Sequence[str] | None, readable: Readable) -> None:
    """Raises BadData if the numbers in the masks cannot be class numbers but are painted grey values."""
    every = {number for _, _, facts in readable for number in facts.numbers}
    used = sorted(every - {IGNORE})
    if used == [0]:
        raise BadData(_one_class(root))
    listed = ", ".join(map(str, [*used[:8], *(["..."] if len(used) > 8 else [])]))
    values = ",".join(map(str, used)) if len(used) <= 8 else "0,85,170"
    numbers = "want each pixel as the number of its class: 0, 1, 2 and on"
    ignored = f" ({IGNORE} is no class; if it is one: {values},{IGNORE})" if IGNORE in every else ""
    choice = f"{numbers}, or which values they are: --mask-values {values}{ignored}"
    if labels is not None:
        beyond = [number for number in used if number >= len(labels)]
        if beyond and all(facts.highest >= len(labels) for _, _, facts in readable):
            classes = f"{len(labels)} classes have names"
            raise BadData(f"the masks of {root} have the numbers {listed}, and {classes}: {choice}")
    missing = _missing(used)
    if labels is None and missing > len(used):
        few = f"the masks of {root} have the numbers {listed}, which leaves {missing} classes without a pixel"
        if missing < MANY_MISSING:
            print_once(f"{few}; if these are values painted for the classes: --mask-values {values}")
            return
        raise BadData(f"{few}: {choice}; if there are that many classes, want their names in labels.txt")


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
