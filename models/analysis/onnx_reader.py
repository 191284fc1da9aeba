"""Reads the operations of any ONNX file: its graph, with shapes inferred node by node."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, TypeProto, ValueInfoProto, numpy_helper
from onnx.defs import SchemaError
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError

from convoy.models.analysis.onnx_operators import Node, Shape, check, describe
from convoy.models.analysis.operators import FREE_SIDE, Act, Graph, Operation, by, receptive_fields
from convoy.models.analysis.reach import Reach
from convoy.models.errors import BadNetworkFile, EmptyOutput, ImpossibleLayer
from convoy.service import metadata

# Nodes whose values are weights, never sides; onnx evaluates them for few of its versions.
_OF_WEIGHTS = ("DequantizeLinear", "QuantizeLinear")
SMALL = 4096  # elements: constants up to this size may determine a shape
WEIGHTS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8)
NETWORK = "network."  # prefix of the network's weights in a file that Convoy exported
CHANNELS = (1, 3, 4)  # of images: the dimension of such a size is the channels


def read(path: Path, size: tuple[int, ...] | None = None) -> Graph:
    """Reads the graph of a file for one image of `size`, or of the file's own size.

    If the file accepts several sizes and none is given, the image's sides are FREE_SIDE. Raises BadNetworkFile for a
    file that is not a network, or not one for this size; ImpossibleLayer.
    """
    return _Reader(_load(path), path).read(size)


def field_of(model: onnx.ModelProto, output: str, size: tuple[int, ...]) -> tuple[Reach, ...] | None:
    """Returns the receptive field of an output along each axis of the image, for one image of `size`; None for an
    output that does not depend on the image. Raises as `read`."""
    inlined = onnx.inliner.inline_local_functions(model) if model.functions else model
    reader = _Reader(inlined, Path("the graph"))
    graph = reader.read(size)
    place = reader.outputs.get(output)
    return None if place is None else receptive_fields(graph)[place].fields


class _Reader:
    """Follows the nodes in order. Every value is either an operation's output, found in `outputs`, or computed from
    constants alone, found in `sources`. `values` contains the numbers of small constants."""

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self.model, self.path = model, path
        self.types: dict[str, TypeProto] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self.sizes: dict[str, int] = {}  # of the weights that no operation has used yet
        self.sources: dict[str, frozenset[str]] = {}
        self.outputs: dict[str, int] = {}
        self.operations: list[Operation] = []
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}

    def read(self, size: tuple[int, ...] | None) -> Graph:
        for tensor in self.model.graph.initializer:
            self.constant(tensor)
        image = self.image()
        axes = _axes(self.model, image)
        shape = _input_shape(image, axes, size, self.path)
        self.types[image.name] = _type(image.type.tensor_type.elem_type, shape)
        self.outputs[image.name] = 0
        self.operations.append(Operation(image.name, Act("image", shown="never"), (), shape))
        for node in self.model.graph.node:
            self.node(node)
        return Graph(axes, self.operations)

    def image(self) -> ValueInfoProto:
        inputs = [value for value in self.model.graph.input if value.name not in self.types]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs)
            raise BadNetworkFile(f"{self.path} has {len(inputs)} inputs ({names}), want one image")
        return inputs[0]

    def constant(self, tensor: TensorProto) -> None:
        count = int(np.prod(tensor.dims, dtype=np.int64))
        self.types[tensor.name] = _type(tensor.data_type, tuple(tensor.dims))
        weighs = tensor.data_type in WEIGHTS and len(tensor.dims) > 0
        self.sources[tensor.name] = frozenset({tensor.name} if weighs else ())
        if weighs:
            self.sizes[tensor.name] = count
        if count <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
            self.values[tensor.name] = numpy_helper.to_array(tensor)

    def node(self, node: NodeProto) -> None:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            self.constant(tensor)
            return
        names = [name for name in node.input if name]
        for name in names:
            if name not in self.types:
                raise BadNetworkFile(f"{self.path}: {node.op_type} reads {name!r}, which no node before it outputs")
        used = frozenset[str]().union(*(self.sources.get(name, ()) for name in names))
        inputs = [self.outputs[name] for name in names if name in self.outputs]
        if node.op_type in ("Shape", "Size") or not inputs:
            self.sources.update(dict.fromkeys(node.output, used if inputs == [] else frozenset()))
            self.evaluate(node, names)
            return
        layer = _layer(node, names, self.sources)
        inputs_of = self.described(node, layer)
        check(inputs_of)
        self.infer(node, layer)
        shape = _shape(self.types[node.output[0]])
        act = describe(Node(**{**vars(inputs_of), "new_shape": shape}))
        parameters = sum(self.sizes.pop(name, 0) for name in used)
        self.outputs.update(dict.fromkeys(node.output, len(self.operations)))
        self.operations.append(Operation(layer, act, tuple(inputs), shape, parameters))
        if 0 in shape:
            shapes = " and ".join(by(self.operations[index].shape) for index in inputs)
            raise EmptyOutput(f"{layer}: nothing is left of {shapes}")

    def described(self, node: NodeProto, layer: str) -> Node:
        return Node(
            node,
            layer,
            [_shape(self.types[name]) if name else () for name in node.input],
            [self.values.get(name) for name in node.input],
            [name in self.outputs for name in node.input],
        )

    def infer(self, node: NodeProto, layer: str) -> None:
        constants = {name: numpy_helper.from_array(self.values[name]) for name in node.input if name in self.values}
        types = {name: self.types[name] for name in node.input if name}
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain)
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, node, types, constants, opset_imports=list(self.model.opset_import)
            )
        except SchemaError:
            name = f"{node.domain}.{node.op_type}".lstrip(".")
            raise BadNetworkFile(f"{layer}: {name} is not an ONNX operation, so its shapes are unknown") from None
        except (InferenceError, RuntimeError) as error:
            shapes = " and ".join(by(_shape(kind)) for kind in types.values())
            words = " ".join(str(error).split()).removeprefix("[ShapeInferenceError] ")
            raise ImpossibleLayer(f"{layer}: {node.op_type} of {shapes}: {words}") from error
        self.types |= inferred
        if not inferred or not all(_is_known(kind) for kind in inferred.values()):
            raise BadNetworkFile(f"{layer}: the output shape of {node.op_type} depends on the image")

    def evaluate(self, node: NodeProto, names: list[str]) -> None:
        """Evaluates a node that depends on the image's shape only, not on its values."""
        if node.op_type in ("Shape", "Size"):
            shape = np.array(_shape(self.types[names[0]]), dtype=np.int64)
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            shape = shape[attributes.get("start", 0) : attributes.get("end")]
            outputs: list[Any] = [shape if node.op_type == "Shape" else shape.prod()]
        elif all(name in self.values for name in names) and node.op_type not in _OF_WEIGHTS:
            outputs = _run(node, {name: self.values[name] for name in names}, self.model)
        else:  # for weights the shape is enough
            self.infer(node, node.name or node.output[0])
            return
        for name, output in zip(node.output, outputs, strict=False):
            self.values[name] = np.asarray(output)
            self.types[name] = _type(onnx.helper.np_dtype_to_tensor_dtype(np.asarray(output).dtype), np.shape(output))


def free_negative_sides(model: onnx.ModelProto) -> None:
    """Removes sides of -1, which some exporters write for a free side: it is left without number or name."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_value < 0:
                side.ClearField("dim_value")


def _load(path: Path) -> onnx.ModelProto:
    try:
        # External weights are not needed to determine shapes.
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise BadNetworkFile(f"{path} is not an ONNX file") from None
    free_negative_sides(model)
    if not model.graph.node:
        raise BadNetworkFile(f"{path} is not an ONNX file, or contains no operations")
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _axes(model: onnx.ModelProto, image: ValueInfoProto) -> tuple[int, ...]:
    """Returns the dimensions of the input other than batch and channels."""
    document = metadata.decode({entry.key: entry.value for entry in model.metadata_props})
    dims = _dims(image)
    if document is not None:
        channels = 1 + document.takes.channel_axis
    else:
        # The second dimension, unless only the last one looks like an image's channels.
        channels = len(dims) - 1 if len(dims) > 3 and dims[-1] in CHANNELS and dims[1] not in CHANNELS else 1
    return tuple(dim for dim in range(1, len(dims)) if dim != channels)


def _input_shape(image: ValueInfoProto, axes: tuple[int, ...], size: tuple[int, ...] | None, path: Path) -> Shape:
    dims = _dims(image)
    if len(dims) < 3:
        raise BadNetworkFile(f"{path} has the input {image.name} of shape {by(dims) or 'nothing'}, want images")
    sides = size or tuple(dims[dim] or FREE_SIDE for dim in axes)
    if len(sides) != len(axes) or any(dims[dim] not in (0, side) for dim, side in zip(axes, sides, strict=True)):
        own = by([dims[dim] or "any" for dim in axes])
        raise BadNetworkFile(f"size {by(sides)}: {path} accepts an input of {own}")
    for dim, side in zip(axes, sides, strict=True):
        dims[dim] = side
    dims[0] = dims[0] or 1
    if 0 in dims:
        raise BadNetworkFile(f"{path} does not contain the number of channels that {image.name} has")
    return tuple(dims)


def _run(node: NodeProto, values: dict[str, NDArray[Any]], model: onnx.ModelProto) -> list[Any]:
    inputs = [ValueInfoProto(name=name) for name in values]
    outputs = [ValueInfoProto(name=name) for name in node.output]
    graph = onnx.helper.make_graph([node], "constant", inputs, outputs)
    single = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    results: list[Any] = ReferenceEvaluator(single).run(None, values)
    return results


def _layer(node: NodeProto, names: list[str], sources: dict[str, frozenset[str]]) -> str:
    for name in names:
        for weight in sorted(sources.get(name, ())):
            if "." in weight:
                return weight.rpartition(".")[0].removeprefix(NETWORK)
    return str(node.name or node.output[0])


def _type(kind: int, shape: Shape) -> TypeProto:
    return onnx.helper.make_tensor_type_proto(kind, shape)


def _shape(kind: TypeProto) -> Shape:
    return tuple(dim.dim_value for dim in kind.tensor_type.shape.dim)


def _is_known(kind: TypeProto) -> bool:
    return kind.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.tensor_type.shape.dim)


def _dims(value: ValueInfoProto) -> list[int]:
    """Returns the shape, with 0 for each free dimension."""
    return [dim.dim_value if dim.HasField("dim_value") else 0 for dim in value.type.tensor_type.shape.dim]
