"""A network as a list of operations in execution order, independent of its source format."""

from dataclasses import dataclass, field

from convoy.models.analysis import receptive_field
from convoy.models.analysis.operators import Act
from convoy.models.analysis.receptive_field import Sight

FREE_SIDE = 256  # pixels: the side used for a network of any size if none is given


@dataclass(frozen=True)
class Operation:
    """One operation.

    layer       the module it belongs to, or its name in the file
    inputs      indices of the operations whose outputs it uses
    shape       of its output
    parameters  number of parameters it uses that no earlier operation uses
    """

    layer: str
    act: Act
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    parameters: int = 0


@dataclass(frozen=True)
class Graph:
    """`operations[0]` is the image; `axes` are the dimensions that are its spatial axes. `idle` counts the parameters
    that no operation uses, by their module."""

    axes: tuple[int, ...]
    operations: list[Operation]
    idle: dict[str, int] = field(default_factory=dict)


def sights(graph: Graph) -> list[Sight]:
    """Returns the receptive field of each operation's output."""
    seen = [receptive_field.of_image(graph.operations[0].shape, graph.axes)]
    for operation in graph.operations[1:]:
        seen.append(_sight(operation, [seen[index] for index in operation.inputs]))
    return seen


def _sight(operation: Operation, inputs: list[Sight]) -> Sight:
    act = operation.act
    if not act.known:
        return receptive_field.everything(inputs, operation.shape)
    if not act.steps:
        return receptive_field.together(inputs, operation.shape)
    assert len(inputs) == 1
    (seen,) = inputs
    for step in act.steps:
        seen = receptive_field.after(seen, step)
    return seen
