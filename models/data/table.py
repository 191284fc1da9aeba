"""A CSV file of pictures with their labels or masks."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

from models.data.dataset import SplitName
from models.data.faults import Fault
from models.data.listing import LABELS, SPLIT_NAMES, SPLITS, Entries, Entry, Listing, class_names, shared, text, told
from models.errors import BadData

SUFFIX = ".csv"


class Row(NamedTuple):
    """A line of the file; `split` is None where there is no such column."""

    path: str
    target: str
    split: SplitName | None


def found(path: Path) -> bool:
    """Whether it is a CSV file."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def listing(file: Path) -> Listing:
    """The pictures of the columns `path` and `label`, or `path` and `mask`, and maybe `split`; paths are relative to
    the file's folder.

    Splits are called train, validation (or valid, val) and test. Without them the paths, as they are written, decide;
    where there are only some, as `told` says. Classes are in the order of their names, of their
    values where all are whole numbers; those of masks may be named in a `labels.txt` beside the file. Raises BadData.
    """
    task, rows = _rows(file)
    labels = class_names(file.parent / LABELS) if task == "mask" else _labels(file, rows)
    numbers = {label: number for number, label in enumerate(labels or [])}
    faults: list[Fault] = []
    named: dict[SplitName | None, list[tuple[str, Entry]]] = {split: [] for split in (*SPLITS, None)}
    for row in rows:
        target = file.parent / row.target if task == "mask" else numbers[row.target]
        entry = Entry(file.parent / row.path, target)
        missing = [path for path in entry if isinstance(path, Path) and not path.is_file()]
        if missing:
            faults.append(Fault(missing[0], f"there is no file {missing[0]}, which {file} names"))
        else:
            named[row.split].append((row.path, entry))
    return Listing("segmentation" if task == "mask" else "classification", labels, _entries(rows, named), faults)


def _entries(rows: list[Row], named: dict[SplitName | None, list[tuple[str, Entry]]]) -> Entries:
    given = {row.split for row in rows}
    if given == {None}:
        return shared(named[None])
    return told({split: named[split] for split in SPLITS if split in given or split == "train"})


def _rows(file: Path) -> tuple[str, list[Row]]:
    """What the second column is, "label" or "mask", and what the lines say."""
    reader = csv.DictReader(io.StringIO(text(file), newline=""), skipinitialspace=True)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
    reader.fieldnames = columns
    kinds = [kind for kind in ("label", "mask") if kind in columns]
    if "path" not in columns or len(kinds) != 1:
        have = ", ".join(columns) or "none"
        raise BadData(f"{file} has the columns {have}, want path and label, or path and mask, and maybe split")
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for cells in reader:
        row = _row(file, reader.line_num, kinds[0], cells)
        if row.path in lines:
            before = lines[row.path]
            raise BadData(f"line {reader.line_num} of {file} names {row.path!r}, as line {before} does, want it once")
        lines[row.path] = reader.line_num
        rows.append(row)
    return kinds[0], rows


def _row(file: Path, line: int, kind: str, cells: dict[str, str | None]) -> Row:
    values = {name: (cells.get(name) or "").strip() for name in ("path", kind, "split")}
    for name in ("path", kind):
        if not values[name]:
            raise BadData(f"line {line} of {file} has no {name}, want one")
    if "split" not in cells:
        return Row(values["path"], values[kind], None)
    if values["split"].lower() not in SPLIT_NAMES:
        raise BadData(f"line {line} of {file} has the split {values['split']!r}, want {', '.join(SPLITS)}")
    return Row(values["path"], values[kind], SPLIT_NAMES[values["split"].lower()])


def _labels(file: Path, rows: list[Row]) -> list[str]:
    labels = {row.target for row in rows}
    if len(labels) < 2:
        raise BadData(f"{file} has {len(labels)} classes, want at least two")
    return sorted(labels, key=int) if all(_whole(label) for label in labels) else sorted(labels)


def _whole(label: str) -> bool:
    return label.isascii() and label.isdigit()
