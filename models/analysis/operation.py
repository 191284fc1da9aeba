"""What a reader makes of a network, whatever it was written in: its operations, in the order in which they run."""

from dataclasses import dataclass, field

from convoy.models.analysis import receptive_field
from convoy.models.analysis.operators import Act
from convoy.models.analysis.receptive_field import Sight

FREE_SIDE = 256  # pixels: what is looked at where a network takes any size and none is given


@dataclass(frozen=True)
class Operation:
    """One operation.

    layer       the module that it belongs to, or what a file calls it
    inputs      the indices of those operations whose answers it takes
    shape       of its answer
    parameters  how many it uses that no operation before it has used
    """

    layer: str
    act: Act
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    parameters: int = 0


@dataclass(frozen=True)
class Graph:
    """`operations[0]` is the image, of whose dimensions `axes` are its axes; `idle` counts the parameters that no
    operation uses, by the module they are in."""

    axes: tuple[int, ...]
    operations: list[Operation]
    idle: dict[str, int] = field(default_factory=dict)


def sights(graph: Graph) -> list[Sight]:
    """What each operation's answer sees of the image."""
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
