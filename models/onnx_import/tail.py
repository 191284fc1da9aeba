"""Post-processing nodes for a network made elsewhere: they convert its output to the served form."""

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from convoy.models.onnx_import.answer import Answer
from convoy.service import metadata


def nodes(source: str, answer: Answer, opset: int) -> list[NodeProto]:
    """Returns the nodes from the network's output `source` to the `outputs`."""
    if answer.values == "indices":
        return _mask(source, answer, opset)
    return _classes(source, answer) if answer.task == "classification" else _pixels(source, answer, opset)


def outputs(answer: Answer, sides: list[str | int]) -> list[onnx.ValueInfoProto]:
    """Returns the served outputs for images of `sides`, [N, H, W]; class indices have no confidence."""
    if answer.task == "classification":
        return [helper.make_tensor_value_info(metadata.PROBABILITIES, TensorProto.FLOAT, ["N", "classes"])]
    names = [metadata.MASK] if answer.values == "indices" else [metadata.MASK, metadata.CONFIDENCE]
    return [helper.make_tensor_value_info(name, TensorProto.UINT8, sides) for name in names]


def _mask(source: str, answer: Answer, opset: int) -> list[NodeProto]:
    flat = [] if answer.axis is None else _reduced("Squeeze", source, "flat", answer.axis, since=13, opset=opset)
    return [*flat, helper.make_node("Cast", ["flat" if flat else source], [metadata.MASK], to=TensorProto.UINT8)]


def _classes(source: str, answer: Answer) -> list[NodeProto]:
    flat = [helper.make_node("Flatten", [source], ["flat"], axis=1)] if answer.rank > 2 else []
    last = "flat" if flat else source
    return [*flat, *_shares(last, answer, 1), helper.make_node("Identity", ["shares"], [metadata.PROBABILITIES])]


def _pixels(source: str, answer: Answer, opset: int) -> list[NodeProto]:
    axis, moved = answer.axis, []
    assert axis is not None
    if opset < 13 and axis == 1:
        # Before opset 13, softmax covers its axis and all later ones.
        moved, source, axis = [helper.make_node("Transpose", [source], ["last"], perm=[0, 2, 3, 1])], "last", 3
    # On logits, which have the same order as probabilities but distinguish values that round to the same.
    compared = "shares" if answer.single else "answer"
    return [
        *moved,
        *_shares(source, answer, axis),
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


def _shares(source: str, answer: Answer, axis: int) -> list[NodeProto]:
    """Returns nodes for the probabilities of all classes along the axis."""
    cast = helper.make_node("Cast", [source], ["answer"], to=TensorProto.FLOAT)
    if not answer.single:
        last = {"logits": ("Softmax", {"axis": axis}), "probabilities": ("Identity", {})}[answer.values]
        return [cast, helper.make_node(last[0], ["answer"], ["shares"], **last[1])]
    return [
        cast,
        helper.make_node("Sigmoid" if answer.values == "logits" else "Identity", ["answer"], ["second"]),
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
