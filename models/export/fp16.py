"""Half-precision variants of a served graph: half the weight memory, and faster on a GPU."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from convoy.models.errors import VariantRefused
from convoy.models.export.calibration import Inputs, ranges
from convoy.models.export.ends import ends

# Sums of squares overflow float16 long before their inputs do, so they stay in single precision.
SENSITIVE = ("LRN", "ReduceL2", "ReduceSumSquare", "LpNormalization", "InstanceNormalization", "LayerNormalization")
LARGEST = 65504 / 8  # limit for a tensor, with a margin for images outside of the calibration set


def halved(graph: onnx.ModelProto, batches: Iterable[Inputs]) -> onnx.ModelProto:
    """Returns the graph with float16 weights and operations between the normalisation and softmax or argmax.

    batches  inputs of the graph by name. If one of them brings a tensor close to overflow, the nodes around it stay
             float32 too. A run on the CPU would not show this, because onnxruntime computes in float32 there

    The types of inputs and outputs do not change. Raises VariantRefused.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    try:
        large = _large(graph, batches)
        half = convert_float_to_float16(
            copy,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SENSITIVE],
            node_block_list=[*ends(graph.graph).nodes, *_around(graph, large)],
        )
    except Exception as error:  # the library's exceptions for a graph it does not support
        raise VariantRefused(f"cannot be had in half precision: {type(error).__name__}: {error}") from error
    _drop_twins(half.graph)
    _join(half.graph)
    del half.graph.value_info[:]
    whole = OnnxModel(half)
    whole.prune_graph()
    whole.topological_sort()
    answer: onnx.ModelProto = whole.model
    return answer


def _large(graph: onnx.ModelProto, batches: Iterable[Inputs]) -> set[str]:
    found = ranges(graph, batches, "minmax")
    return {name for name in found if np.abs(found[name].range_value).max() > LARGEST}


def _around(graph: onnx.ModelProto, tensors: set[str]) -> list[str]:
    return [node.name for node in graph.graph.node if tensors.intersection((*node.input, *node.output))]


def _drop_twins(graph: onnx.GraphProto) -> None:
    # If two float32 nodes read one tensor, the library adds a cast for each, under the same name.
    once = {tuple(node.output): node for node in graph.node}
    del graph.node[:]
    graph.node.extend(once.values())


def _join(graph: onnx.GraphProto) -> None:
    # Between two float32 nodes, the library casts to float16 and back, which only loses precision.
    narrowed = {node.output[0]: node.input[0] for node in graph.node if _casts_to(node, TensorProto.FLOAT16)}
    widened = {node.output[0]: node.input[0] for node in graph.node if _casts_to(node, TensorProto.FLOAT)}
    direct = {name: narrowed[source] for name, source in widened.items() if source in narrowed}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = direct.get(name, name)
    # A graph output keeps its name, so its cast reads the float32 source.
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in direct and node.input[0] in narrowed:
            node.input[0] = narrowed[node.input[0]]


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and bool(helper.get_node_attr_value(node, "to") == kind)
