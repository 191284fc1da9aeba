"""The layers of a network as a table in the terminal."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from rich.table import Table

from convoy.models.analysis.operators import by, once
from convoy.models.analysis.reach import Reach
from convoy.models.analysis.rows import Anatomy, Row

EVERYTHING = "all"
MISALIGNED = "*"


def table(whole: Anatomy) -> Table:
    """Returns one row per layer. If all axes of the image have the same value, it is shown once."""
    grid = Table(show_footer=True, box=None, pad_edge=False)
    grid.add_column("layer", "total", no_wrap=True)
    grid.add_column("kind", no_wrap=True)
    grid.add_column("output", justify="right", no_wrap=True)
    grid.add_column("parameters", f"{whole.parameters:,}", justify="right", no_wrap=True)
    grid.add_column("multiply-adds", f"{whole.multiply_adds:,}", justify="right", no_wrap=True)
    for name in ("field", "stride", "offset"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in whole.rows:
        costs = [f"{number:,}" if number else "" for number in (row.parameters, row.multiply_adds)]
        grid.add_row(row.layer, row.kind, by(row.shape), *costs, *_field(row, whole.sides))
    for module, parameters in whole.idle.items():
        grid.add_row(module, "in training only", "", f"{parameters:,}")
    return grid


def notes(whole: Anatomy) -> list[str]:
    """Returns notes on what the table omits."""
    lines = []
    if whole.mentioned:
        lines.append(f"not shown: {_counts(whole.mentioned)}")
    if whole.unknown:
        lines.append(f"not known, so taken to cost nothing and to see everything: {_counts(whole.unknown)}")
    if any(MISALIGNED in text for row in whole.rows for text in _field(row, whole.sides)):
        lines.append(f"{MISALIGNED} branches that meet here look at different centres")
    return lines


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} x{count}" for kind, count in kinds.most_common())


def _field(row: Row, sides: Sequence[int]) -> tuple[str, str, str]:
    whole = [_covers(field, side) for field, side in zip(row.fields, sides, strict=True)]
    sizes = [EVERYTHING if all_ else f"{field.size}" for field, all_ in zip(row.fields, whole, strict=True)]
    strides = ["-" if field.jump == 0 else str(field.stride) for field in row.fields]
    offsets = ["-" if all_ else _decimal(field.offset) for field, all_ in zip(row.fields, whole, strict=True)]
    mark = "" if all(field.centred for field in row.fields) else MISALIGNED
    return once(sizes) + mark, once(strides), once(offsets)


def _covers(field: Reach, side: int) -> bool:
    first, last = field.at(0)
    return field.jump == 0 and first <= 0 and last >= side - 1


def _decimal(number: Fraction) -> str:
    return f"{float(number):g}"
