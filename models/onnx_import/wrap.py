"""Wraps a network made elsewhere in nodes: preprocessing converts bytes to its input, post-processing converts its
output to the served form."""

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from convoy.models.onnx_import.original import Front
from convoy.models.onnx_import.output import Output
from convoy.models.onnx_import.rewrite import PREFIX, prefixed
from convoy.service import metadata

OLDEST_IR = 4  # earlier versions list weights as inputs, which callers could override


def wrapped(
    model: onnx.ModelProto,
    front: Front | None,
    output: Output,
    size: tuple[int | None, int | None],
    channels: int,
) -> onnx.ModelProto:
    """Returns the graph from `image` uint8 (N, H, W, C) to the task's served outputs."""
    inner = prefixed(model)
    graph, sides = inner.graph, ["N", size[0] or "H", size[1] or "W"]
    (input_name,) = (value.name for value in graph.input)
    opset = max(entry.version for entry in inner.opset_import if entry.domain in ("", "ai.onnx"))
    for node in graph.node:
        node.name = node.name or next(filter(None, node.output), "")  # the name in messages
    before = (
        [helper.make_node("Identity", [metadata.IMAGE], [input_name])]
        if front is None
        else front_nodes(front, input_name)
    )
    outer = helper.make_graph(
        [*before, *graph.node, *tail_nodes(PREFIX + output.name, output, opset)],
        graph.name or "adopted",
        [helper.make_tensor_value_info(metadata.IMAGE, TensorProto.UINT8, [*sides, channels])],
        served_outputs(output, sides),
        [*graph.initializer, *(() if front is None else front_constants(front))],
        sparse_initializer=graph.sparse_initializer,
    )
    outer.quantization_annotation.extend(graph.quantization_annotation)
    whole = helper.make_model(outer, opset_imports=inner.opset_import, functions=inner.functions)
    whole.ir_version, whole.producer_name = max(inner.ir_version, OLDEST_IR), inner.producer_name
    return whole


def front_nodes(front: Front, target: str) -> list[NodeProto]:
    """Returns the nodes from `image` to `target`, the network's input."""
    name, nodes = metadata.IMAGE, []
    if front.layout == "NCHW":
        # Transposing before the cast moves a quarter of the bytes.
        nodes.append(helper.make_node("Transpose", [name], ["moved"], perm=[0, 3, 1, 2]))
        name = "moved"
    if front.reverse:
        nodes.append(
            helper.make_node("Gather", [name, "turned"], ["reversed"], axis=1 if front.layout == "NCHW" else 3)
        )
        name = "reversed"
    if front.dtype == TensorProto.UINT8:
        return [*nodes, helper.make_node("Identity", [name], [target])]
    nodes += [
        helper.make_node("Cast", [name], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["normalised"]),
        helper.make_node("Cast", ["normalised"], [target], to=front.dtype),
    ]
    return nodes


def front_constants(front: Front) -> list[TensorProto]:
    """Returns the constants of those nodes."""
    mean, std = np.array(front.mean), np.array(front.std)
    order = slice(None, None, -1) if front.reverse else slice(None)
    shape = (1, -1, 1, 1) if front.layout == "NCHW" else (1, 1, 1, -1)
    constants: list[TensorProto] = []
    if front.reverse:
        constants.append(numpy_helper.from_array(np.arange(len(mean))[::-1].astype(np.int64), "turned"))
    if front.dtype != TensorProto.UINT8:
        for name, values in (("factor", front.scale / std), ("offset", -mean / std)):
            constants.append(numpy_helper.from_array(values[order].astype(np.float32).reshape(shape), name))
    return constants


def tail_nodes(source: str, output: Output, opset: int) -> list[NodeProto]:
    """Returns the nodes from the network's output `source` to the `outputs`."""
    if output.values == "indices":
        return _mask(source, output, opset)
    return _classes(source, output) if output.task == "classification" else _pixels(source, output, opset)


def served_outputs(output: Output, sides: list[str | int]) -> list[onnx.ValueInfoProto]:
    """Returns the served outputs for images of `sides`, [N, H, W]; class indices have no confidence."""
    if output.task == "classification":
        return [helper.make_tensor_value_info(metadata.PROBABILITIES, TensorProto.FLOAT, ["N", "classes"])]
    names = [metadata.MASK] if output.values == "indices" else [metadata.MASK, metadata.CONFIDENCE]
    return [helper.make_tensor_value_info(name, TensorProto.UINT8, sides) for name in names]


def _mask(source: str, output: Output, opset: int) -> list[NodeProto]:
    flat = [] if output.axis is None else _reduced("Squeeze", source, "flat", output.axis, since=13, opset=opset)
    return [*flat, helper.make_node("Cast", ["flat" if flat else source], [metadata.MASK], to=TensorProto.UINT8)]


def _classes(source: str, output: Output) -> list[NodeProto]:
    flat = [helper.make_node("Flatten", [source], ["flat"], axis=1)] if output.rank > 2 else []
    last = "flat" if flat else source
    return [*flat, *_shares(last, output, 1), helper.make_node("Identity", ["shares"], [metadata.PROBABILITIES])]


def _pixels(source: str, output: Output, opset: int) -> list[NodeProto]:
    axis, moved = output.axis, []
    assert axis is not None
    if opset < 13 and axis == 1:
        # Before opset 13, softmax covers its axis and all later ones.
        moved, source, axis = [helper.make_node("Transpose", [source], ["last"], perm=[0, 2, 3, 1])], "last", 3
    # On logits, which have the same order as probabilities but distinguish values that round to the same.
    compared = "shares" if output.single else "answer"
    return [
        *moved,
        *_shares(source, output, axis),
        helper.make_node("ArgMax", [compared], ["index"], axis=axis, keepdims=0),
        helper.make_node("Cast", ["index"], [metadata.MASK], to=TensorProto.UINT8),
        *_reduced("ReduceMax", "shares", "most", axis, since=18, opset=opset, keepdims=0),
        # A half-precision probability may exceed 1, which would wrap around in a byte.
        _constant("whole", np.float32(1)),
        helper.make_node("Sub", ["most", "whole"], ["above"]),
        helper.make_node("Relu", ["above"], ["too_much"]),
        helper.make_node("Sub", ["most", "too_much"], ["best"]),
        _constant("full", np.float32(255)),
        _constant("half", np.float32(0.5)),
        helper.make_node("Mul", ["best", "full"], ["steps"]),
        helper.make_node("Add", ["steps", "half"], ["rounded"]),  # the cast truncates
        helper.make_node("Cast", ["rounded"], [metadata.CONFIDENCE], to=TensorProto.UINT8),
    ]


def _shares(source: str, output: Output, axis: int) -> list[NodeProto]:
    """Returns nodes for the probabilities of all classes along the axis."""
    cast = helper.make_node("Cast", [source], ["answer"], to=TensorProto.FLOAT)
    if not output.single:
        last = {"logits": ("Softmax", {"axis": axis}), "probabilities": ("Identity", {})}[output.values]
        return [cast, helper.make_node(last[0], ["answer"], ["shares"], **last[1])]
    return [
        cast,
        helper.make_node("Sigmoid" if output.values == "logits" else "Identity", ["answer"], ["second"]),
        _constant("one", np.float32(1)),
        helper.make_node("Sub", ["one", "second"], ["first"]),
        helper.make_node("Concat", ["first", "second"], ["shares"], axis=axis),
    ]


def _reduced(kind: str, source: str, result: str, axis: int, since: int, opset: int, **options: Any) -> list[NodeProto]:
    """Returns a reduction over one axis, which is an attribute before the opset `since` and an input from then on."""
    if opset < since:
        return [helper.make_node(kind, [source], [result], axes=[axis], **options)]
    return [
        _constant(f"{result}.axis", np.array([axis], np.int64)),
        helper.make_node(kind, [source, f"{result}.axis"], [result], **options),
    ]


def _constant(name: str, value: np.ndarray | np.float32) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name))
