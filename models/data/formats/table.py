"""A CSV file of images with their labels or masks."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from convoy.models.data.dataset import SplitName
from convoy.models.data.files import Fault, existing, nfc
from convoy.models.data.formats.listing import (
    LABELS,
    SPLIT_NAMES,
    SPLITS,
    Entries,
    Entry,
    Listing,
    class_names,
    split_as_specified,
    split_by_name,
    text,
)
from convoy.models.errors import BadData

SUFFIX = ".csv"


class Row(NamedTuple):
    """A line of the file; `split` is None if there is no such column."""

    path: str
    target: str
    split: SplitName | None


def detects(path: Path) -> bool:
    """Returns whether a path is a CSV file."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def listing(file: Path) -> Listing:
    """Lists the images in the columns `path` and `label`, or `path` and `mask`, with an optional `split`. Paths are
    relative to the file's folder.

    Splits are called train, validation (or valid, val) and test. Without splits, the paths as written determine them;
    if some are missing, `split_as_specified` derives them. Classes are ordered by name, or by value if all are whole
    numbers; those of masks may have names in a `labels.txt` beside the file. Raises BadData.
    """
    task, rows = _rows(file)
    labels = class_names(file.parent / LABELS) if task == "mask" else _labels(file, rows)
    numbers = {label: number for number, label in enumerate(labels or [])}
    faults: list[Fault] = []
    named: dict[SplitName | None, list[tuple[str, Entry]]] = {split: [] for split in (*SPLITS, None)}
    for row in rows:
        target = existing(file.parent / row.target) if task == "mask" else numbers[row.target]
        entry = Entry(existing(file.parent / row.path), target)
        missing = [path for path in entry if isinstance(path, Path) and not path.is_file()]
        if missing:
            faults.append(Fault(missing[0], f"there is no file {missing[0]}, which {file} names"))
        else:
            named[row.split].append((row.path, entry))
    if faults and len(faults) == len(rows):
        raise BadData(f"{faults[0].reason}; none of {len(rows)} lines has all its files")
    return Listing("segmentation" if task == "mask" else "classification", labels, _entries(rows, named), faults)


def _entries(rows: list[Row], named: dict[SplitName | None, list[tuple[str, Entry]]]) -> Entries:
    splits = {row.split for row in rows}
    if splits == {None}:
        return split_by_name(named[None])
    return split_as_specified({split: named[split] for split in SPLITS if split in splits or split == "train"})


def _rows(file: Path) -> tuple[str, list[Row]]:
    """Returns the kind of target, "label" or "mask", and the rows."""
    records = _records(file, text(file))
    _, head = next(records, (1, []))
    columns = [name.strip().lower() for name in head]
    kinds = [kind for kind in ("label", "mask") if kind in columns]
    if "path" not in columns or len(kinds) != 1:
        have = ", ".join(columns) or "none"
        raise BadData(f"{file} has the columns {have}, want path and label, or path and mask, and maybe split")
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, cells in records:
        if any(cell.strip() for cell in cells[len(columns) :]):
            want = f"want {len(columns)}: a comma within a name needs quotation marks around it"
            raise BadData(f"line {line} of {file} has {len(cells)} values, {want}")
        row = _row(file, line, kinds[0], dict(zip(columns, cells, strict=False)), "split" in columns)
        if nfc(row.path) in lines:
            before = lines[nfc(row.path)]
            raise BadData(f"line {line} of {file} names {row.path!r}, as line {before} does, want it once")
        lines[nfc(row.path)] = line
        rows.append(row)
    return kinds[0], rows


def _records(file: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the values of each record, with the line on which it begins. Skips empty lines."""
    # Strict: otherwise an unclosed quotation mark turns the rest of the file into one value.
    reader = csv.reader(io.StringIO(content, newline=""), skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadData(_broken(file, line, reader.line_num, content, error)) from None
        if cells:
            yield line, cells


def _broken(file: Path, first: int, last: int, content: str, error: csv.Error) -> str:
    if last > first or str(error).startswith("unexpected end"):
        return f"line {first} of {file} opens a quotation mark that is not closed, want it closed or removed"
    if '"' in content.split("\n")[first - 1]:
        return f"line {first} of {file} has a quotation mark within a value, want it doubled or removed"
    return f"line {first} of {file} cannot be read ({error}), want short values with commas between"


def _row(file: Path, line: int, kind: str, cells: dict[str, str], divided: bool) -> Row:
    values = {name: cells.get(name, "").strip() for name in ("path", kind, "split")}
    for name in ("path", kind):
        if not values[name]:
            raise BadData(f"line {line} of {file} has no {name}, want one")
    for name, value in values.items():
        if "\n" in value:
            want = "want it closed on its line or removed"
            raise BadData(f"line {line} of {file} opens a quotation mark in its {name}, {want}")
    target = nfc(values[kind]) if kind == "label" else values[kind]
    if not divided:
        return Row(values["path"], target, None)
    if values["split"].lower() not in SPLIT_NAMES:
        raise BadData(f"line {line} of {file} has the split {values['split']!r}, want {', '.join(SPLITS)}")
    return Row(values["path"], target, SPLIT_NAMES[values["split"].lower()])


def _labels(file: Path, rows: list[Row]) -> list[str]:
    labels = {row.target for row in rows}
    if len(labels) < 2:
        raise BadData(f"{file} has {len(labels)} classes, want at least two")
    return sorted(labels, key=int) if all(_whole(label) for label in labels) else sorted(labels)


def _whole(label: str) -> bool:
    return label.isascii() and label.isdigit()
