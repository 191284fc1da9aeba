"""The names inside a file made elsewhere, told apart from ours."""

import onnx
from onnx import AttributeProto, GraphProto

PREFIX = "network."  # of all names inside the file, so that none of them is one of ours


def prefixed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every tensor and node has `PREFIX` before its name, those of subgraphs too.

    onnx.compose.add_prefix renames a subgraph before it has seen the weights around it, and the branches of an If then
    ask for names that are no more. Where all names change alike, none can be lost. Functions have names of their own.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _rename(copy.graph)
    return copy


def _rename(graph: GraphProto) -> None:
    sparse = [part for tensor in graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *sparse):
        entry.name = PREFIX + entry.name
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = PREFIX + annotation.tensor_name
    for node in graph.node:
        node.name = node.name and PREFIX + node.name
        for names in (node.input, node.output):
            names[:] = [name and PREFIX + name for name in names]  # an empty one is an input that is not given
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                _rename(inner)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]
