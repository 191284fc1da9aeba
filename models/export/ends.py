"""The pre- and post-processing nodes of a served graph, around the network."""

from collections.abc import Iterable
from typing import NamedTuple

import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Ends(NamedTuple):
    """Node names: the `front` precedes every layer with weights (layout, cast, normalisation), the `tail` follows every
    such layer (softmax, argmax, confidence)."""

    front: tuple[str, ...]
    tail: tuple[str, ...]

    @property
    def nodes(self) -> list[str]:
        """All node names, without duplicates."""
        return list(dict.fromkeys((*self.front, *self.tail)))


def ends(graph: onnx.GraphProto) -> Ends:
    """Returns both ends of a graph whose nodes are named and in topological order."""
    behind = _reached(graph.node, sources="input", targets="output")
    ahead = _reached(reversed(graph.node), sources="output", targets="input")
    return Ends(
        front=tuple(node.name for node in graph.node if not _weighted(node) and behind.isdisjoint(node.input)),
        tail=tuple(node.name for node in graph.node if not _weighted(node) and ahead.isdisjoint(node.output)),
    )


def _reached(nodes: Iterable[onnx.NodeProto], sources: str, targets: str) -> set[str]:
    """Returns the tensors reachable from layers with weights, from a node's `sources` to its `targets`."""
    reached: set[str] = set()
    for node in nodes:
        if _weighted(node) or not reached.isdisjoint(getattr(node, sources)):
            reached.update(name for name in getattr(node, targets) if name)
    return reached


def _weighted(node: onnx.NodeProto) -> bool:
    return node.op_type in WEIGHTED
