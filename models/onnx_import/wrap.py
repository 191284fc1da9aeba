"""Wraps a network made elsewhere in nodes for pre- and post-processing."""

import onnx
from onnx import TensorProto, helper

from convoy.models.onnx_import import front as front_nodes
from convoy.models.onnx_import import tail
from convoy.models.onnx_import.answer import Answer
from convoy.models.onnx_import.front import Front
from convoy.models.onnx_import.names import PREFIX, prefixed
from convoy.service import metadata

OLDEST_IR = 4  # earlier versions list weights as inputs, which callers could override


def wrapped(
    model: onnx.ModelProto,
    front: Front | None,
    answer: Answer,
    size: tuple[int | None, int | None],
    channels: int,
) -> onnx.ModelProto:
    """Returns the graph from `image` uint8 (N, H, W, C) to the task's served outputs."""
    inner = prefixed(model)
    graph, sides = inner.graph, ["N", size[0] or "H", size[1] or "W"]
    (given,) = (value.name for value in graph.input)
    opset = max(entry.version for entry in inner.opset_import if entry.domain in ("", "ai.onnx"))
    for node in graph.node:
        node.name = node.name or next(filter(None, node.output), "")  # the name in messages
    before = (
        [helper.make_node("Identity", [metadata.IMAGE], [given])] if front is None else front_nodes.nodes(front, given)
    )
    outer = helper.make_graph(
        [*before, *graph.node, *tail.nodes(PREFIX + answer.name, answer, opset)],
        graph.name or "adopted",
        [helper.make_tensor_value_info(metadata.IMAGE, TensorProto.UINT8, [*sides, channels])],
        tail.outputs(answer, sides),
        [*graph.initializer, *(() if front is None else front_nodes.constants(front))],
        sparse_initializer=graph.sparse_initializer,
    )
    outer.quantization_annotation.extend(graph.quantization_annotation)
    whole = helper.make_model(outer, opset_imports=inner.opset_import, functions=inner.functions)
    whole.ir_version, whole.producer_name = max(inner.ir_version, OLDEST_IR), inner.producer_name
    return whole
