"""Summary of a data set: classes, sizes, balance, duplicates, and files that training cannot use."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np

from convoy.models.data.dataset import IGNORE, DataSet, Split, SplitName
from convoy.models.data.files import Fault, print_faults, printable
from convoy.models.data.formats import mask_folders, voc
from convoy.models.data.formats.coding import of_source
from convoy.models.data.formats.folder import FolderSplit
from convoy.models.data.formats.listing import LABELS, SPLITS
from convoy.models.data.reading import in_threads
from convoy.models.data.registry import load
from convoy.models.errors import BadData
from convoy.service.images.names import is_data
from convoy.service.metadata import Task

Shape = tuple[int, ...]


class Sizes(msgspec.Struct, frozen=True):
    """Height and width of images, or shapes of tensors: smallest, median and largest by number of pixels, the commonest
    with its count, and the number of `different` sizes."""

    smallest: Shape
    median: Shape
    largest: Shape
    commonest: Shape
    commonest_count: int
    different: int


class SplitSummary(msgspec.Struct, frozen=True):
    """`classes` contains the number of images per class; for masks, of images that contain the class. `pixel_shares`
    are the shares of the classes among all pixels that have one, `ignored_share` is the share of pixels without a
    class; both are None without masks."""

    count: int
    classes: list[int]
    sizes: Sizes
    pixel_shares: list[float] | None = None
    ignored_share: float | None = None


class Copies(msgspec.Struct, frozen=True):
    """Images with identical pixels, each as (split, name); whether they are in several splits; whether their classes or
    masks differ."""

    pictures: list[tuple[SplitName, str]]
    across: bool
    conflict: bool


class Unusable(msgspec.Struct, frozen=True):
    """An image that training cannot use, and the reason."""

    file: str
    reason: str


class Summary(msgspec.Struct, frozen=True):
    """Summary of a whole data set. `balance` is the ratio of the largest class of the training split to the smallest,
    by images or by mask pixels; None if a class is empty. `grey` counts images without colour; None for tensors.
    `read_as` is L for grey, RGB for colour. `unused` counts the files in a folder that are not read, by file
    extension."""

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
        """Whether a file cannot be read or an image is in several splits."""
        return bool(self.unusable) or any(copies.across for copies in self.copies)


def check(name: str) -> tuple[DataSet, Summary]:
    """Returns the data set that `resolve` named, and its summary. Raises BadTraining; BadData if too little is left for
    a data set, after printing what cannot be read."""
    faults: list[Fault] = []
    pictures: list[int] = []

    def collect(new: Sequence[Fault], count: int) -> None:
        faults.extend(new)
        pictures.append(count)

    try:
        data = load(name, collect)
    except BadData:
        print_faults(faults, sum(pictures), len(faults))
        raise
    return data, summary(data, faults)


def summary(data: DataSet, faults: Sequence[Fault]) -> Summary:
    """Returns the summary of a data set and of what was left out of it. Reads every sample once."""
    samples = {split: samples_of(data, data.split(split)) for split in SPLITS}
    splits = {split: _split(data, split_samples) for split, split_samples in samples.items()}
    return Summary(
        name=data.name,
        task=data.task,
        labels=data.labels,
        splits=splits,
        balance=_balance(splits["train"]),
        read_as=data.colour,
        grey=None
        if data.colour is None
        else sum(each.grey for split_samples in samples.values() for each in split_samples),
        unusable=[Unusable(printable(fault.file), printable(Path(fault.reason))) for fault in faults],
        unused=_unused(data, faults),
        copies=_copies(data, samples),
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
    # A fault names an image or its mask; the other file of the pair does not count as unused.
    paired = {fault.file.stem for fault in faults} if data.task == "segmentation" else set()
    unused = Counter(
        path.suffix.lower() or "no ending"
        for path in root.rglob("*")
        if path not in used and path.stem not in paired and path.is_file() and is_data(path.relative_to(root))
    )
    return dict(unused.most_common())


class Sample(NamedTuple):
    """One sample. The digest covers the pixels as training reads them, not the file, so that copies in another lossless
    format or with other file metadata are found. `counts` contains the pixels of each class of a mask, or 1 for the
    class."""

    size: Shape
    digest: bytes
    target: bytes
    counts: Counter[int]
    grey: bool


def samples_of(data: DataSet, split: Split) -> list[Sample]:
    """Reads every sample of a split."""

    def at(index: int) -> Sample:
        sample, target = split[index]
        if isinstance(target, np.ndarray):
            counts = Counter({int(name): int((target == name).sum()) for name in np.unique(target)})
        else:
            counts = Counter({target: 1})
        grey = data.colour is not None and bool((sample == sample[..., :1]).all())
        return Sample(split.size(index), _digest(sample), _digest(np.asarray(target)), counts, grey)

    return list(in_threads(at, range(len(split)), "looking at pictures"))


def _digest(values: np.ndarray[Any, Any]) -> bytes:
    head = f"{values.shape} {values.dtype}".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def _split(data: DataSet, samples: list[Sample]) -> SplitSummary:
    names = range(len(data.labels))
    classes = [sum(name in each.counts for each in samples) for name in names]
    sizes = _sizes([each.size for each in samples])
    if data.task != "segmentation":
        return SplitSummary(len(samples), classes, sizes)
    pixels = sum((each.counts for each in samples), Counter[int]())
    labelled = sum(pixels[name] for name in names)
    shares = [pixels[name] / max(1, labelled) for name in names]
    return SplitSummary(len(samples), classes, sizes, shares, pixels[IGNORE] / max(1, labelled + pixels[IGNORE]))


def _sizes(sizes: list[Shape]) -> Sizes:
    ordered = sorted(sizes, key=lambda size: (math.prod(size), size))
    (commonest, count), *_ = Counter(ordered).most_common(1)
    return Sizes(ordered[0], ordered[len(ordered) // 2], ordered[-1], commonest, count, len(set(ordered)))


def _balance(train: SplitSummary) -> float | None:
    amounts: Sequence[float] = train.classes if train.pixel_shares is None else train.pixel_shares
    return max(amounts) / min(amounts) if min(amounts) > 0 else None


def _copies(data: DataSet, samples: dict[SplitName, list[Sample]]) -> list[Copies]:
    groups: dict[bytes, list[tuple[SplitName, int]]] = defaultdict(list)
    for split, split_samples in samples.items():
        for index, each in enumerate(split_samples):
            groups[each.digest].append((split, index))
    return [
        Copies(
            pictures=[(split, _name(data.split(split), index)) for split, index in places],
            across=len({split for split, _ in places}) > 1,
            conflict=len({samples[split][index].target for split, index in places}) > 1,
        )
        for places in groups.values()
        if len(places) > 1
    ]


@runtime_checkable
class _Named(Protocol):
    def name(self, index: int) -> str: ...


def _name(split: Split, index: int) -> str:
    return split.name(index) if isinstance(split, _Named) else str(index)
