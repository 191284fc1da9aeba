"""Where in a served graph the network begins and ends: what brings pixels to it, and what makes its answer plain."""

from collections.abc import Iterable
from typing import NamedTuple

import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Ends(NamedTuple):
    """Names of nodes: those of the `front` come before every layer of weights (layout, cast, normalisation), those of
    the `tail` behind every one (softmax, argmax, confidence)."""

    front: tuple[str, ...]
    tail: tuple[str, ...]

    @property
    def nodes(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys((*self.front, *self.tail)))


def ends(graph: onnx.GraphProto) -> Ends:
    """Both ends of a graph whose nodes are in topological order and have names."""
    behind = _reached(graph.node, sources="input", targets="output")
    ahead = _reached(reversed(graph.node), sources="output", targets="input")
    return Ends(
        front=tuple(node.name for node in graph.node if not _weighted(node) and behind.isdisjoint(node.input)),
        tail=tuple(node.name for node in graph.node if not _weighted(node) and ahead.isdisjoint(node.output)),
    )


def _reached(nodes: Iterable[onnx.NodeProto], sources: str, targets: str) -> set[str]:
    """The tensors that layers of weights lead to, going from a node's `sources` to its `targets`."""
    reached: set[str] = set()
    for node in nodes:
        if _weighted(node) or not reached.isdisjoint(getattr(node, sources)):
            reached.update(name for name in getattr(node, targets) if name)
    return reached


def _weighted(node: onnx.NodeProto) -> bool:
    return node.op_type in WEIGHTED
