"""Table rows of a graph: layers with weights, windows or a new shape. Other operations are counted only."""

from collections import Counter
from dataclasses import dataclass, field, replace

from convoy.models.analysis.operation import Graph, Operation, sights
from convoy.models.analysis.reach import Reach


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
    for operation, sight in zip(graph.operations[1:], sights(graph)[1:], strict=True):
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
