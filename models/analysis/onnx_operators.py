"""Describes ONNX operators as `Act` values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from convoy.models.analysis import operators
from convoy.models.analysis.operators import Act, Window
from convoy.models.analysis.reach import whole, window
from convoy.models.analysis.receptive_field import Reached, Reshaped, Step
from convoy.models.errors import ImpossibleLayer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One node and its known inputs: their shapes (empty for an omitted input), their values if they are small
    constants, and whether they are `made` of the image. `new_shape` is the shape of the output."""

    proto: onnx.NodeProto
    layer: str
    shapes: Sequence[Shape]
    values: Sequence[NDArray[Any] | None]
    from_image: Sequence[bool]
    new_shape: Shape = ()

    @property
    def shape(self) -> Shape:
        """The shape of the first input that is made of the image."""
        return self.shapes[self.from_image.index(True)]

    def get(self, name: str, default: Any = None) -> Any:
        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def constant(self, name: str, index: int) -> list[int] | None:
        """Returns numbers that are an input in newer versions of an operator and an attribute in older ones."""
        if index < len(self.values):
            value = self.values[index]
            return None if value is None else [int(number) for number in value.reshape(-1)]
        numbers = self.get(name)
        return [numbers] if isinstance(numbers, int) else numbers


def check(node: Node) -> None:
    """Raises ImpossibleLayer for incompatible sizes."""
    match node.proto.op_type:
        case "Conv":
            convolution = _conv_window(node)
            convolution.check(node.layer, "a convolution", node.shapes[0])
            expected = node.shapes[1][1] * node.get("group", 1)
            if node.shapes[0][1] != expected:
                raise ImpossibleLayer(f"{node.layer}: a convolution of {expected:,} maps gets {node.shapes[0][1]:,}")
        case "MaxPool" | "AveragePool" | "LpPool":
            word = f"{_POOLINGS[node.proto.op_type]} pooling"
            _pool_window(node).check(node.layer, word, node.shapes[0], bool(node.get("ceil_mode", 0)))
        case "Gemm" | "MatMul" if len(node.shapes[0]) > 1 and len(node.shapes[1]) > 1:
            left, right = _summed(node)
            index = 0 if node.from_image[0] else 1
            expected = node.shapes[1 - index][right if index == 0 else left]
            operators.check_dense(node.layer, node.shapes[index], expected, left if index == 0 else right)


def describe(node: Node) -> Act:
    """Describes a node with at least one input that is made of the image."""
    name = node.proto.op_type
    if name in _ACTS:
        return _ACTS[name](node)
    return Act(name.lower(), shown="mention") if name in _POINTWISE else Act(name, known=False)


def _convolution(node: Node) -> Act:
    if not node.from_image[0] or node.from_image[1]:
        return Act("Conv", known=False)
    return operators.convolution(node.shapes[0], node.new_shape, _conv_window(node), node.get("group", 1))


def _transposed_convolution(node: Node) -> Act:
    shape, kernel = node.shapes[0], node.shapes[1][2:]
    stride, dilation = _axes(node, "strides", kernel), _axes(node, "dilations", kernel)
    pads = node.get("pads", [0] * 2 * len(kernel))
    if node.get("auto_pad", "NOTSET") != "NOTSET" or node.get("output_shape"):
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        total = [
            s * (side - 1) + r - new
            for s, side, r, new in zip(stride, shape[2:], reach, node.new_shape[2:], strict=True)
        ]
        more = node.get("auto_pad", "NOTSET") != "SAME_UPPER"
        pads = [(number + more) // 2 for number in total]
    before = tuple(pads[: len(kernel)])
    windows = Window(kernel, stride, before, before, dilation)
    return operators.transposed_convolution(shape, node.new_shape, windows, node.get("group", 1))


def _pooling(node: Node) -> Act:
    return operators.pooling(_POOLINGS[node.proto.op_type], node.new_shape, _pool_window(node))


def _conv_window(node: Node) -> Window:
    return _window(node, node.shapes[1][2:])


def _pool_window(node: Node) -> Window:
    return _window(node, tuple(node.get("kernel_shape")))


def _window(node: Node, kernel: Shape) -> Window:
    stride, dilation = _axes(node, "strides", kernel), _axes(node, "dilations", kernel)
    pads = tuple(node.get("pads", [0] * 2 * len(kernel)))
    before, after = pads[: len(kernel)], pads[len(kernel) :]
    mode = node.get("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        sides = node.shapes[0][2:]
        missing = [
            max(0, (-(-side // s) - 1) * s + d * (k - 1) + 1 - side)
            for side, k, s, d in zip(sides, kernel, stride, dilation, strict=True)
        ]
        less, more = tuple(m // 2 for m in missing), tuple(m - m // 2 for m in missing)
        before, after = (less, more) if mode == "SAME_UPPER" else (more, less)
    return Window(kernel, stride, before, after, dilation)


def _axes(node: Node, name: str, kernel: Shape) -> Shape:
    return tuple(node.get(name, [1] * len(kernel)))


def _product(node: Node) -> Act:
    left, right = _summed(node)
    if node.from_image[0] and node.from_image[1]:
        return operators.product(node.new_shape, node.shapes[0][left])
    index = 0 if node.from_image[0] else 1
    shape, dim = node.shapes[index], (left, right)[index]
    if len(shape) != len(node.new_shape) or node.get("transA", 0):
        return operators.product(node.new_shape, shape[dim])
    return operators.dense(shape, node.new_shape, dim)


def _summed(node: Node) -> tuple[int, int]:
    """Returns the dimension of each operand that a product sums over."""
    if node.proto.op_type == "Gemm":
        return -2 if node.get("transA", 0) else -1, -1 if node.get("transB", 0) else -2
    return -1, -2 if len(node.shapes[1]) > 1 else -1


def _einsum(node: Node) -> Act:
    inputs = node.get("equation").replace(" ", "").partition("->")[0].split(",")
    if "." in "".join(inputs):
        return Act("einsum", known=False)
    sizes = dict(zip("".join(inputs), [size for shape in node.shapes for size in shape], strict=True))
    return Act("einsum", multiply_adds=prod(sizes.values()), known=False)


def _global(word: str) -> Callable[[Node], Act]:
    return lambda node: operators.adaptive_pooling(word, node.shape, node.new_shape)


def _reduction(word: str) -> Callable[[Node], Act]:
    def describe_reduction(node: Node) -> Act:
        dims = node.constant("axes", 1)
        if word.startswith("arg"):
            dims = [node.get("axis", 0)]
        return operators.reduction(word, node.shape, node.new_shape, dims or range(len(node.shape)))

    return describe_reduction


def _softmax(node: Node) -> Act:
    return operators.along("softmax", node.shape, [node.get("axis", -1)])


def _layer_norm(node: Node) -> Act:
    rank = len(node.shape)
    return operators.along("layer normalisation", node.shape, range(node.get("axis", -1) % rank, rank))


def _map_norm(word: str, first: int) -> Callable[[Node], Act]:
    return lambda node: operators.along(word, node.shape, range(first, len(node.shape)))


def _slice(node: Node) -> Act:
    starts = node.constant("starts", 1)
    dims = node.constant("axes", 3) or list(range(len(starts or [])))
    steps = node.constant("steps", 4) or [1] * len(dims)
    if starts is None:
        return Act("Slice", known=False)
    moves = []
    for dim, start, step in zip([dim % len(node.shape) for dim in dims], starts, steps, strict=True):
        side, size = node.shape[dim], node.new_shape[dim]
        first = min(max(start + side if start < 0 else start, 0), side)
        # A negative step reverses the order, so each position may depend on any.
        moves.append(operators.shifted(dim, first, step, size) if step > 0 else Reached(dim, whole(side), size))
    return operators.moved(*moves)


def _pad(node: Node) -> Act:
    pads, rank = node.constant("pads", 1), len(node.shape)
    dims = node.constant("axes", 3) or list(range(rank))
    if pads is None or node.get("mode", "constant") == "wrap":  # wrapped around, the ends depend on each other
        return Act("Pad", known=False)
    starts = zip([dim % rank for dim in dims], pads[: len(dims)], strict=True)
    return operators.moved(
        *(
            operators.shifted(dim, -before, 1, node.new_shape[dim])
            for dim, before in starts
            if before or node.shape[dim] != node.new_shape[dim]
        )
    )


def _transpose(node: Node) -> Act:
    return operators.permuted(node.get("perm") or range(len(node.shape))[::-1])


def _reshape(node: Node) -> Act:
    return operators.reshaped(node.new_shape)


def _gather(node: Node) -> Act:
    indices, dim = node.values[1], node.get("axis", 0) % len(node.shapes[0])
    if indices is None or not node.from_image[0]:
        return Act("gather", known=False)
    first, strides = _regular(indices)
    sizes, walk = indices.shape, indices.ndim - 1
    if strides is None:
        # Irregular indices: each position may depend on any, so none follows the image's axis.
        steps: list[Step] = [Reached(dim, whole(node.shape[dim]), 1)]
        walk = -1
    else:
        # In a table of positions, the last dimension steps over the map; the others form the window.
        around = sum((size - 1) * stride for size, stride in zip(sizes[:-1], strides[:-1], strict=True))
        stride, count = (strides[-1], sizes[-1]) if strides else (1, 1)
        steps = [Reached(dim, window(around + 1, stride, -first), count)]
    places = [size if index == walk else 1 for index, size in enumerate(sizes)]
    steps.append(Reshaped((*node.shape[:dim], *places, *node.shape[dim + 1 :])))
    steps += [Reached(dim + index, whole(1), size) for index, size in enumerate(sizes) if index != walk]
    return operators.moved(*steps)


def _regular(indices: NDArray[Any]) -> tuple[int, list[int] | None]:
    """Returns the first index and the step along each dimension; None for steps that are uneven or negative."""
    first = int(indices.reshape(-1)[0])
    steps = [int(np.take(indices, 1, dim).flat[0]) - first if size > 1 else 1 for dim, size in enumerate(indices.shape)]
    regular = first + np.tensordot(steps, np.indices(indices.shape), axes=1) if steps else np.asarray(first)
    return first, steps if first >= 0 and min(steps, default=1) > 0 and (regular == indices).all() else None


def _resize(node: Node) -> Act:
    mode = node.get("mode", "nearest")
    taps = {"nearest": 1, "linear": 2, "cubic": 4}[mode]
    corners = node.get("coordinate_transformation_mode", "") == "align_corners"
    if node.get("antialias", 0):  # its window grows with the reduction
        return Act(f"{mode} interpolation", known=False)
    return operators.upsampling(mode, node.shape, node.new_shape, taps, corners)


def _split(node: Node) -> Act:
    dim = node.get("axis", 0) % len(node.shape)
    return operators.moved(Reached(dim, whole(node.shape[dim]), node.new_shape[dim]))


def _blocks(down: bool) -> Callable[[Node], Act]:
    return lambda node: operators.blocks(node.shape, node.new_shape, node.get("blocksize"), down)


_POOLINGS = {"MaxPool": "max", "AveragePool": "mean", "LpPool": "norm"}
_ACTS: dict[str, Callable[[Node], Act]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    **dict.fromkeys(_POOLINGS, _pooling),
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("maximum"),
    "Gemm": _product,
    "MatMul": _product,
    "Einsum": _einsum,
    "ReduceMean": _reduction("mean"),
    "ReduceSum": _reduction("sum"),
    "ReduceMax": _reduction("maximum"),
    "ReduceMin": _reduction("minimum"),
    "ReduceL2": _reduction("norm"),
    "ArgMax": _reduction("argmax"),
    "BatchNormalization": lambda _: Act("batch normalisation"),
    "LRN": lambda _: Act("response normalisation"),
    "InstanceNormalization": _map_norm("instance normalisation", 2),
    "GroupNormalization": _map_norm("group normalisation", 1),
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Concat": lambda _: Act("concatenation", shown="part"),
    "Slice": _slice,
    "Pad": _pad,
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Identity", "Cast", "Dropout", "Expand"), lambda _: operators.moved()),
    "Gather": _gather,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Split": _split,
    "SpaceToDepth": _blocks(down=True),
    "DepthToSpace": _blocks(down=False),
}
_POINTWISE = frozenset(
    name
    for names in (
        "Abs Add And Ceil Celu Clip Cos DequantizeLinear Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual",
        "HardSigmoid HardSwish LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow",
        "QuantizeLinear Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tanh",
        "ThresholdedRelu Where Xor",
    )
    for name in names.split()
)
