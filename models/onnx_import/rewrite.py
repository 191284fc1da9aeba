"""Rewrites the graph of a file made elsewhere: a dynamic batch size, also in shapes that repeat the fixed one, and
names that cannot clash with Convoy's."""

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper

BATCH = "N"

PREFIX = "network."  # for all names inside the file


def with_dynamic_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy with a dynamic batch axis. The fixed batch size is removed from the target shapes of Reshape and
    Resize, and constants that Concat joins to each image are expanded. Only a run shows whether this suffices."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants, sides = _constants(graph), _sides(model)
    weights = {tensor.name for tensor in graph.initializer}
    (image,) = (value for value in graph.input if value.name not in weights)
    size = image.type.tensor_type.shape.dim[0].dim_value
    for value in (image, *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    # Shapes inferred for one batch size would contradict the others.
    del graph.value_info[:]
    reached, nodes = {image.name}, []
    for node in graph.node:
        if reached.intersection(node.input):
            nodes.extend(_reshaped(node, constants, size, graph))
            nodes.extend(_joined(node, reached, sides, size, graph))
            reached.update(node.output)
        nodes.append(node)
    nodes = [_copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def prefixed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which every tensor and node name starts with `PREFIX`, including those of subgraphs.

    onnx.compose.add_prefix renames a subgraph before it knows the weights outside, so the branches of an If refer to
    missing names. Renaming everything in the same way avoids this. Functions have their own scope.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _rename(copy.graph)
    return copy


def _reshaped(node: NodeProto, constants: dict[str, np.ndarray], size: int, graph: GraphProto) -> list[NodeProto]:
    """Changes a node's target shape if it starts with the batch size. Returns the nodes that must precede it."""
    place = {"Reshape": 1, "Resize": 3}.get(node.op_type)
    if not size or place is None or len(node.input) <= place or node.input[place] not in constants:
        return []
    shape = constants[node.input[place]]
    if shape.size < 2 or shape[0] != size or _has_axes(node):
        return []
    name = f"{node.output[0]}.shape"
    if node.op_type == "Reshape":
        # 0 copies the input's side, the batch; it is used if -1 infers another side.
        first = 0 if -1 in shape else -1
        graph.initializer.append(numpy_helper.from_array(np.array([first, *shape[1:]], np.int64), name))
        node.input[place] = name
        return []
    source, node.input[place] = node.input[0], name
    return _shape(source, shape[1:].tolist(), name, graph)


def _joined(
    node: NodeProto, reached: set[str], sides: dict[str, tuple[int, ...]], size: int, graph: GraphProto
) -> list[NodeProto]:
    """Expands constants that a Concat joins to its images, such as a class token. Returns the preceding nodes."""
    if node.op_type != "Concat" or node.attribute[0].i == 0:
        return []
    nodes = []
    source = next(name for name in node.input if name in reached)
    for place, name in enumerate(node.input):
        if name not in reached and size and sides.get(name, ())[:1] == (size,):
            repeated = f"{node.output[0]}.{place}"
            nodes += _shape(source, [1] * (len(sides[name]) - 1), f"{repeated}.shape", graph)
            nodes.append(helper.make_node("Expand", [name, f"{repeated}.shape"], [repeated]))
            node.input[place] = repeated
    return nodes


def _shape(source: str, rest: list[int], name: str, graph: GraphProto) -> list[NodeProto]:
    """Returns nodes that compute the shape `name`: the batch size of `source`, then the sides `rest`."""
    parts = {"zero": [0], "one": [1], "sides": rest}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(values, np.int64), f"{name}.{part}") for part, values in parts.items()
    )
    return [
        helper.make_node("Shape", [source], [f"{name}.whole"]),
        helper.make_node("Slice", [f"{name}.whole", f"{name}.zero", f"{name}.one"], [f"{name}.batch"]),
        helper.make_node("Concat", [f"{name}.batch", f"{name}.sides"], [name], axis=0),
    ]


def _has_axes(node: NodeProto) -> bool:
    return any(attribute.name == "axes" for attribute in node.attribute)


def _constants(graph: GraphProto) -> dict[str, np.ndarray]:
    """Returns small constants that may define shapes, by name."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) == 1}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value" and len(attribute.t.dims) == 1:
                constants[node.output[0]] = numpy_helper.to_array(attribute.t)
            elif node.op_type == "Constant" and attribute.name == "value_ints":
                constants[node.output[0]] = np.array(attribute.ints, np.int64)
    return constants


def _sides(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Returns the known shapes of tensors that do not depend on the image, by name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in graph.value_info:
        shapes[value.name] = tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
    return shapes


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
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
