"""Table rows of a graph: layers with weights, windows or a new shape. Other operations are counted only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from rich.table import Table

from convoy.models.analysis.operators import Graph, Operation, by, once, receptive_fields
from convoy.models.analysis.reach import Reach

ALL = "all"
MISALIGNED = "*"


@dataclass(frozen=True)
class Row:
    """One layer: its output shape without the batch, and the receptive field along each axis of the image."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    fields: tuple[Reach, ...]


@dataclass(frozen=True)
class Anatomy:
    """The analysis of a network.

    image       shape of the image, (1, channels, *sides) or as in the file
    sides       sizes of the image's axes
    mentioned   counts of the operations without a row
    unknown     counts of the operations of which only the shape is known
    idle        parameters that do not affect the output (auxiliary heads), by their module
    """

    image: tuple[int, ...]
    sides: tuple[int, ...]
    rows: list[Row]
    mentioned: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    idle: dict[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows) + sum(self.idle.values())

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self.rows)


def anatomy(graph: Graph) -> Anatomy:
    """Returns the analysis of a graph."""
    rows: list[Row] = []
    mentioned: Counter[str] = Counter()
    mergeable = False
    for operation, sight in zip(graph.operations[1:], receptive_fields(graph)[1:], strict=True):
        row = _row(operation, sight.fields)
        same = bool(rows) and rows[-1].layer == row.layer
        shown = operation.act.shown
        if not row.parameters and shown == "mention":
            if same:
                rows[-1] = replace(rows[-1], shape=row.shape, fields=row.fields)
            mentioned[row.kind] += 1
        elif not row.parameters and shown == "never":
            continue
        elif same and ((shown == "part" and mergeable) or (shown == "mention" and rows[-1].parameters)):
            rows[-1] = _merged(rows[-1], row)
        else:
            rows.append(row)
            mergeable = shown == "part"
    image = graph.operations[0].shape
    acts = [operation.act for operation in graph.operations]
    unknown = Counter(act.kind for act in acts if not act.known and not act.multiply_adds)
    return Anatomy(image, tuple(image[dim] for dim in graph.axes), rows, mentioned, unknown, graph.idle)


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
        lines.append(f"unknown, so counted without cost and with the whole image as field: {_counts(whole.unknown)}")
    if any(MISALIGNED in text for row in whole.rows for text in _field(row, whole.sides)):
        lines.append(f"{MISALIGNED} branches that merge here have different centres")
    return lines


def _row(operation: Operation, fields: tuple[Reach, ...]) -> Row:
    shape = operation.shape[1:] if operation.shape[:1] == (1,) else operation.shape
    act = operation.act
    kind = "elementwise" if act.shown == "mention" and operation.parameters else act.kind
    return Row(operation.layer, kind, shape, operation.parameters, act.multiply_adds, fields)


def _merged(row: Row, more: Row) -> Row:
    kinds = row.kind.split(", ")
    return replace(
        row,
        kind=row.kind if more.parameters or more.kind in kinds else f"{row.kind}, {more.kind}",
        shape=more.shape,
        parameters=row.parameters + more.parameters,
        fields=more.fields,
    )


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} x{count}" for kind, count in kinds.most_common())


def _field(row: Row, sides: Sequence[int]) -> tuple[str, str, str]:
    whole = [_covers(field, side) for field, side in zip(row.fields, sides, strict=True)]
    sizes = [ALL if all_ else f"{field.size}" for field, all_ in zip(row.fields, whole, strict=True)]
    strides = ["-" if field.jump == 0 else str(field.stride) for field in row.fields]
    offsets = ["-" if all_ else _decimal(field.offset) for field, all_ in zip(row.fields, whole, strict=True)]
    mark = "" if all(field.centred for field in row.fields) else MISALIGNED
    return once(sizes) + mark, once(strides), once(offsets)


def _covers(field: Reach, side: int) -> bool:
    first, last = field.at(0)
    return field.jump == 0 and first <= 0 and last >= side - 1


def _decimal(number: Fraction) -> str:
    return f"{float(number):g}"
