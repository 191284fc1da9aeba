"""What stands around a network that was made elsewhere: pixels brought to it, and its answer made what is served."""

from typing import Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.foreign.look import Layout, Task
from service import metadata

Tail = Literal["softmax", "argmax", "none"]
PREFIX = "network."  # of all names inside the file, so that none of them is one of ours


class Front(NamedTuple):
    """How bytes become what the network takes: (pixel * scale - mean) / std by channel of the image as it is sent, red
    first, then the channels turned round where `reverse` says so, in `layout`, as `dtype` of the network's input."""

    layout: Layout
    dtype: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    reverse: bool

    def applied(self, images: NDArray[np.uint8]) -> NDArray[np.generic]:
        """(N, H, W, C) as the network takes them: the same in numpy, to check the nodes by."""
        values = (images * np.float64(self.scale) - np.array(self.mean)) / np.array(self.std)
        values = values[..., ::-1] if self.reverse else values
        values = values.transpose(0, 3, 1, 2) if self.layout == "NCHW" else values
        return np.ascontiguousarray(values, helper.tensor_dtype_to_np_dtype(self.dtype))


class Answer(NamedTuple):
    """What the network answers. `axis` is that of the classes, `rank` how many axes there are in all."""

    name: str
    task: Task
    axis: int
    rank: int
    classes: int
    probabilities: bool


def wrapped(
    model: onnx.ModelProto,
    front: Front | None,
    answer: Answer,
    tail: Tail,
    size: tuple[int | None, int | None],
    channels: int,
) -> onnx.ModelProto:
    """The network between nodes of ours: `image` uint8 (N, H, W, C) in, what its task is served with out."""
    inner: onnx.ModelProto = onnx.compose.add_prefix(model, PREFIX)
    graph, sides = inner.graph, ["N", size[0] or "H", size[1] or "W"]
    weights = {tensor.name for tensor in graph.initializer}
    (given,) = (value.name for value in graph.input if value.name not in weights)
    opset = max(entry.version for entry in inner.opset_import if entry.domain in ("", "ai.onnx"))
    before = [helper.make_node("Identity", [metadata.IMAGE], [given])] if front is None else _front(front, given)
    source = PREFIX + answer.name
    behind = _classes(source, answer, tail) if answer.task == "classification" else _pixels(source, answer, opset)
    nodes = [*before, *graph.node, *behind]
    for number, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{number}"  # what tools and messages name it by
    outer = helper.make_graph(
        nodes,
        graph.name or "adopted",
        [helper.make_tensor_value_info(metadata.IMAGE, TensorProto.UINT8, [*sides, channels])],
        _outputs(answer.task, sides),
        [*graph.initializer, *(() if front is None else _front_constants(front))],
        sparse_initializer=graph.sparse_initializer,
    )
    whole = helper.make_model(outer, opset_imports=inner.opset_import, functions=inner.functions)
    whole.ir_version, whole.producer_name = inner.ir_version, inner.producer_name
    return whole


def _front(front: Front, given: str) -> list[NodeProto]:
    name, nodes = metadata.IMAGE, []
    if front.layout == "NCHW":
        # The bytes are moved before they are cast: a quarter of the traffic.
        nodes.append(helper.make_node("Transpose", [name], ["moved"], perm=[0, 3, 1, 2]))
        name = "moved"
    if front.reverse:
        nodes.append(
            helper.make_node("Gather", [name, "turned"], ["reversed"], axis=1 if front.layout == "NCHW" else 3)
        )
        name = "reversed"
    if front.dtype == TensorProto.UINT8:
        return [*nodes, helper.make_node("Identity", [name], [given])]
    nodes += [
        helper.make_node("Cast", [name], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["normalised"]),
        helper.make_node("Cast", ["normalised"], [given], to=front.dtype),
    ]
    return nodes


def _front_constants(front: Front) -> list[TensorProto]:
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


def _classes(source: str, answer: Answer, tail: Tail) -> list[NodeProto]:
    nodes = []
    if answer.rank > 2:
        nodes.append(helper.make_node("Flatten", [source], ["flat"], axis=1))
        source = "flat"
    nodes.append(helper.make_node("Cast", [source], ["answer"], to=TensorProto.FLOAT))
    last = ("Softmax", {"axis": 1}) if tail == "softmax" else ("Identity", {})
    return [*nodes, helper.make_node(last[0], ["answer"], [metadata.PROBABILITIES], **last[1])]


def _pixels(source: str, answer: Answer, opset: int) -> list[NodeProto]:
    axis, shares = answer.axis, "answer" if answer.probabilities else "shares"
    moved = []
    if opset < 13 and axis == 1:
        # There, softmax goes over its axis and all behind it.
        moved, source, axis = [helper.make_node("Transpose", [source], ["last"], perm=[0, 2, 3, 1])], "last", 3
    if opset < 18:
        best = helper.make_node("ReduceMax", [shares], ["best"], axes=[axis], keepdims=0)
        constants = []
    else:
        constants = [helper.make_node("Constant", [], ["class_axis"], value_ints=[axis])]
        best = helper.make_node("ReduceMax", [shares, "class_axis"], ["best"], keepdims=0)
    softmax = [] if answer.probabilities else [helper.make_node("Softmax", ["answer"], [shares], axis=axis)]
    return [
        *moved,
        helper.make_node("Cast", [source], ["answer"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["answer"], ["index"], axis=axis, keepdims=0),
        helper.make_node("Cast", ["index"], [metadata.MASK], to=TensorProto.UINT8),
        *softmax,
        *constants,
        best,
        helper.make_node("Constant", [], ["full"], value=helper.make_tensor("full", TensorProto.FLOAT, [], [255.0])),
        helper.make_node("Mul", ["best", "full"], ["steps"]),
        helper.make_node("Round", ["steps"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], [metadata.CONFIDENCE], to=TensorProto.UINT8),
    ]


def _outputs(task: Task, sides: list[str | int]) -> list[onnx.ValueInfoProto]:
    if task == "classification":
        return [helper.make_tensor_value_info(metadata.PROBABILITIES, TensorProto.FLOAT, ["N", "classes"])]
    names = (metadata.MASK, metadata.CONFIDENCE)
    return [helper.make_tensor_value_info(name, TensorProto.UINT8, sides) for name in names]
