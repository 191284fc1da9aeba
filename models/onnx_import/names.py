"""Prefixes for the names inside a file made elsewhere, so that they cannot clash with ours."""

import onnx
from onnx import AttributeProto, GraphProto

PREFIX = "network."  # for all names inside the file


def prefixed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which every tensor and node name starts with `PREFIX`, including those of subgraphs.

    onnx.compose.add_prefix renames a subgraph before it knows the weights outside, so the branches of an If refer to
    missing names. Renaming everything in the same way avoids this. Functions have their own scope.
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
            names[:] = [name and PREFIX + name for name in names]  # an empty name is an omitted input
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                _rename(inner)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]
