"""What is in a data set: classes, sizes, balance, duplicates, and files that cannot be trained with."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np

from convoy.models.data.bad_files import Fault, in_words, tell
from convoy.models.data.dataset import IGNORE, DataSet, Split, SplitName
from convoy.models.data.formats import mask_folders, voc
from convoy.models.data.formats.coding import of_source
from convoy.models.data.formats.folder import FolderSplit
from convoy.models.data.formats.listing import LABELS, SPLITS
from convoy.models.data.names import is_data
from convoy.models.data.reading import in_threads
from convoy.models.data.registry import loaded
from convoy.models.errors import BadData
from convoy.service.metadata import Task

Shape = tuple[int, ...]


class Sizes(msgspec.Struct, frozen=True):
    """Height and width of pictures, or shapes of tensors: least, median and most by their pixels, and the one that most
    have, `commonest_count`, of so many `different` ones."""

    smallest: Shape
    median: Shape
    largest: Shape
    commonest: Shape
    commonest_count: int
    different: int


class SplitSummary(msgspec.Struct, frozen=True):
    """`classes` has the pictures of each class; of masks, those that the class is in. `pixel_shares` are those of each
    class among all pixels that have one, and `ignored_share` that of the pixels that have none; None without masks."""

    count: int
    classes: list[int]
    sizes: Sizes
    pixel_shares: list[float] | None = None
    ignored_share: float | None = None


class Copies(msgspec.Struct, frozen=True):
    """Pictures with the same pixels, each as (split, name); whether they are in several splits; whether their classes,
    or masks, differ."""

    pictures: list[tuple[SplitName, str]]
    across: bool
    conflict: bool


class Unusable(msgspec.Struct, frozen=True):
    """A picture that cannot be trained with, and why."""

    file: str
    reason: str


class Summary(msgspec.Struct, frozen=True):
    """All of it. `balance` is the largest class of the training split over the smallest, by pictures or by the pixels
    of masks; None where one has nothing. `grey` counts pictures without colour; None for tensors. `read_as` is L for
    grey, RGB for colour. `unused` counts the files in a folder that are not read, by the endings of
    their names."""

    name: str
    task: Task
    labels: list[str]
    splits: dict[SplitName, SplitSummary]
    balance: float | None
    read_as: str | None
    grey: int | None
    unusable: list[Unusable]
    unused: dict[str, int]
    copies: list[Copies]

    @property
    def count(self) -> int:
        return sum(split.count for split in self.splits.values())

    @property
    def wrong(self) -> bool:
        """Whether something cannot be read, or is in several splits."""
        return bool(self.unusable) or any(copies.across for copies in self.copies)


def check(name: str) -> tuple[DataSet, Summary]:
    """The data set that `resolve` answered, and what is in it. Raises BadTraining; BadData where there is too little to
    make a data set of, after telling what cannot be read."""
    faults: list[Fault] = []
    pictures: list[int] = []

    def collect(found: Sequence[Fault], count: int) -> None:
        faults.extend(found)
        pictures.append(count)

    try:
        data = loaded(name, collect)
    except BadData:
        tell(faults, sum(pictures))
        raise
    return data, summary(data, faults)


def summary(data: DataSet, faults: Sequence[Fault]) -> Summary:
    """What is in a data set, every sample of which is looked at once, and what was left out of it."""
    seen = {split: look(data, data.split(split)) for split in SPLITS}
    splits = {split: _split(data, looks) for split, looks in seen.items()}
    return Summary(
        name=data.name,
        task=data.task,
        labels=data.labels,
        splits=splits,
        balance=_balance(splits["train"]),
        read_as=data.colour,
        grey=None if data.colour is None else sum(each.grey for looks in seen.values() for each in looks),
        unusable=[Unusable(in_words(fault.file), in_words(Path(fault.reason))) for fault in faults],
        unused=_unused(data, faults),
        copies=_copies(data, seen),
    )


def _unused(data: DataSet, faults: Sequence[Fault]) -> dict[str, int]:
    splits = [data.split(name) for name in SPLITS]
    root = Path(of_source(data.name)[0])
    if not root.is_dir() or not all(isinstance(split, FolderSplit) for split in splits):
        return {}
    entries = [entry for split in splits if isinstance(split, FolderSplit) for entry in split.entries]
    used = {path for entry in entries for path in entry if isinstance(path, Path)} | {fault.file for fault in faults}
    lists = {file for folder in (mask_folders.LISTS, voc.LISTS) for file in (root / folder).glob("*.txt")}
    used |= lists | {root / LABELS}
    # A fault names a picture, or its mask; the other one of the two is not left lying about.
    paired = {fault.file.stem for fault in faults} if data.task == "segmentation" else set()
    unused = Counter(
        path.suffix.lower() or "no ending"
        for path in root.rglob("*")
        if path not in used and path.stem not in paired and path.is_file() and is_data(path.relative_to(root))
    )
    return dict(unused.most_common())


class Look(NamedTuple):
    """One sample. The digest is of the pixels as training reads them, so that a copy in another format without loss, or
    with other words about it in its head, is found; one of the file would miss it. `counts` are the pixels of each
    class of a mask, or 1 for the class."""

    size: Shape
    digest: bytes
    target: bytes
    counts: Counter[int]
    grey: bool


def look(data: DataSet, split: Split) -> list[Look]:
    """Every sample of a split."""

    def at(index: int) -> Look:
        sample, target = split[index]
        if isinstance(target, np.ndarray):
            counts = Counter({int(name): int((target == name).sum()) for name in np.unique(target)})
        else:
            counts = Counter({target: 1})
        grey = data.colour is not None and bool((sample == sample[..., :1]).all())
        return Look(split.size(index), _digest(sample), _digest(np.asarray(target)), counts, grey)

    return list(in_threads(at, range(len(split)), "looking at pictures"))


def _digest(values: np.ndarray[Any, Any]) -> bytes:
    head = f"{values.shape} {values.dtype}".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def _split(data: DataSet, looks: list[Look]) -> SplitSummary:
    names = range(len(data.labels))
    classes = [sum(name in each.counts for each in looks) for name in names]
    sizes = _sizes([each.size for each in looks])
    if data.task != "segmentation":
        return SplitSummary(len(looks), classes, sizes)
    pixels = sum((each.counts for each in looks), Counter[int]())
    known = sum(pixels[name] for name in names)
    shares = [pixels[name] / max(1, known) for name in names]
    return SplitSummary(len(looks), classes, sizes, shares, pixels[IGNORE] / max(1, known + pixels[IGNORE]))


def _sizes(sizes: list[Shape]) -> Sizes:
    ordered = sorted(sizes, key=lambda size: (math.prod(size), size))
    (commonest, count), *_ = Counter(ordered).most_common(1)
    return Sizes(ordered[0], ordered[len(ordered) // 2], ordered[-1], commonest, count, len(set(ordered)))


def _balance(train: SplitSummary) -> float | None:
    amounts: Sequence[float] = train.classes if train.pixel_shares is None else train.pixel_shares
    return max(amounts) / min(amounts) if min(amounts) > 0 else None


def _copies(data: DataSet, seen: dict[SplitName, list[Look]]) -> list[Copies]:
    groups: dict[bytes, list[tuple[SplitName, int]]] = defaultdict(list)
    for split, looks in seen.items():
        for index, each in enumerate(looks):
            groups[each.digest].append((split, index))
    return [
        Copies(
            pictures=[(split, _name(data.split(split), index)) for split, index in places],
            across=len({split for split, _ in places}) > 1,
            conflict=len({seen[split][index].target for split, index in places}) > 1,
        )
        for places in groups.values()
        if len(places) > 1
    ]


@runtime_checkable
class _Named(Protocol):
    def name(self, index: int) -> str: ...


def _name(split: Split, index: int) -> str:
    return split.name(index) if isinstance(split, _Named) else str(index)
