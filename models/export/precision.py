"""Variants of a served graph in lower precision: half precision, with half the weight memory and faster on a GPU; and
8-bit integers, by static quantisation with one weight scale per output channel and one range per activation from a
calibration set."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from convoy.models.errors import VariantRefused
from convoy.service.metadata import Calibration

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

CALIBRATION_METHODS: dict[Calibration, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# With onnxruntime's 128 bins for 128 quantised ones, the entropy search has one candidate only, the maximum.
ENTROPY_OPTIONS = {"num_bins": 512, "num_quantized_bins": 256}

Inputs = dict[str, NDArray[np.generic]]

# Sums of squares overflow float16 long before their inputs do, so they stay in single precision.
FLOAT32_ONLY = ("LRN", "ReduceL2", "ReduceSumSquare", "LpNormalization", "InstanceNormalization", "LayerNormalization")
MAX_VALUE = 65504 / 8  # limit for a tensor, with a margin for images outside of the calibration set

# onnxruntime has no integer kernels for these on the CPU: they would run in float, with two conversions.
NOT_QUANTISED = {"ConvTranspose", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "CumSum", "TopK"}
OPERATIONS = sorted((QLinearOpsRegistry.keys() | QDQRegistry.keys()) - NOT_QUANTISED)


class Ends(NamedTuple):
    """Node names: the `front` precedes every layer with weights (layout, cast, normalisation), the `tail` follows every
    such layer (softmax, argmax, confidence)."""

    front: tuple[str, ...]
    tail: tuple[str, ...]

    @property
    def nodes(self) -> list[str]:
        """All node names, without duplicates."""
        return list(dict.fromkeys((*self.front, *self.tail)))


def ends(graph: onnx.GraphProto) -> Ends:
    """Returns both ends of a graph whose nodes are named and in topological order."""
    behind = _reached(graph.node, sources="input", targets="output")
    ahead = _reached(reversed(graph.node), sources="output", targets="input")
    return Ends(
        front=tuple(node.name for node in graph.node if not _weighted(node) and behind.isdisjoint(node.input)),
        tail=tuple(node.name for node in graph.node if not _weighted(node) and ahead.isdisjoint(node.output)),
    )


def ranges(
    model: onnx.ModelProto, batches: Iterable[Inputs], method: Calibration, operations: Sequence[str] | None = None
) -> TensorsData:
    """Returns the range of every float tensor that nodes of these `operations` (all by default) read or write, by name.

    batches  inputs of the graph by name, one batch at a time; a range covers all of them: every value (minmax), all but
             one in 100,000 (percentile), or the part that keeps the most information (entropy; Migacz: 8-bit Inference
             with TensorRT, GTC 2017)

    Raises the exceptions of onnxruntime.
    """
    with quiet(), tempfile.TemporaryDirectory() as name:
        file, augmented = Path(name) / "model.onnx", Path(name) / "augmented.onnx"
        onnx.save(model, file)
        options = ENTROPY_OPTIONS if method == "entropy" else {}
        calibrator = quantization.create_calibrator(
            file, operations, str(augmented), CALIBRATION_METHODS[method], extra_options=options
        )
        for batch in batches:
            # One at a time: the calibrator keeps all activations of its input in memory.
            calibrator.collect_data(_SingleBatch(batch))
        return calibrator.compute_data()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences onnxruntime's tools, which print each step to stdout, where results go, and warn about intended use."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # from numpy, for tensors with an empty range
            yield
    finally:
        logging.disable(logging.NOTSET)


def half_precision(graph: onnx.ModelProto, batches: Iterable[Inputs]) -> onnx.ModelProto:
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
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FLOAT32_ONLY],
            node_block_list=[*ends(graph.graph).nodes, *_around(graph, large)],
        )
    except Exception as error:  # the library's exceptions for a graph it does not support
        raise VariantRefused(f"cannot be converted to half precision: {type(error).__name__}: {error}") from error
    _drop_duplicates(half.graph)
    _drop_round_trips(half.graph)
    del half.graph.value_info[:]
    whole = OnnxModel(half)
    whole.prune_graph()
    whole.topological_sort()
    pruned: onnx.ModelProto = whole.model
    return pruned


def quantised(graph: onnx.ModelProto, batches: Iterable[Inputs], method: Calibration) -> onnx.ModelProto:
    """Returns the graph with QuantizeLinear and DequantizeLinear around the operators that onnxruntime runs in
    integers.

    batches  the calibration set, from which `ranges` derives the activations' ranges by `method`

    Activations are unsigned, weights signed and symmetric: the combination that processors have instructions for. Pre-
    and post-processing are not quantised. Raises VariantRefused.
    """
    model = _widened(graph)
    kept = ends(model.graph).nodes
    try:
        with quiet():
            tensor_ranges = ranges(model, batches, method, OPERATIONS)
            quantizer = QDQQuantizer(
                save_and_reload_model_with_shape_infer(model),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=tensor_ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=kept,
                op_types_to_quantize=OPERATIONS,
                extra_options={},
            )
            quantizer.quantize_model()
    except Exception as error:  # the library's exceptions for a graph it does not support
        raise VariantRefused(f"cannot be quantised: {type(error).__name__}: {error}") from error
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    del result.graph.value_info[:]
    return result


def _reached(nodes: Iterable[onnx.NodeProto], sources: str, targets: str) -> set[str]:
    """Returns the tensors reachable from layers with weights, from a node's `sources` to its `targets`."""
    reached: set[str] = set()
    for node in nodes:
        if _weighted(node) or not reached.isdisjoint(getattr(node, sources)):
            reached.update(name for name in getattr(node, targets) if name)
    return reached


def _weighted(node: onnx.NodeProto) -> bool:
    return node.op_type in WEIGHTED


class _SingleBatch(quantization.CalibrationDataReader):  # type: ignore[misc]
    """A reader of a single batch."""

    def __init__(self, batch: Inputs) -> None:
        self.batches = iter([batch])

    def get_next(self) -> Inputs | None:
        return next(self.batches, None)


def _large(graph: onnx.ModelProto, batches: Iterable[Inputs]) -> set[str]:
    values = ranges(graph, batches, "minmax")
    return {name for name in values if np.abs(values[name].range_value).max() > MAX_VALUE}


def _around(graph: onnx.ModelProto, tensors: set[str]) -> list[str]:
    return [node.name for node in graph.graph.node if tensors.intersection((*node.input, *node.output))]


def _drop_duplicates(graph: onnx.GraphProto) -> None:
    # If two float32 nodes read one tensor, the library adds a cast for each, under the same name.
    once = {tuple(node.output): node for node in graph.node}
    del graph.node[:]
    graph.node.extend(once.values())


def _drop_round_trips(graph: onnx.GraphProto) -> None:
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


def _widened(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which the normalisation's constants, one per channel, are repeated along the image's width.

    onnxruntime moves the layout change after them, because its integer convolutions are channels-last. There, the
    constants would broadcast three numbers at a time and take a quarter of MobileNet's time.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    sides = copy.graph.input[0].type.tensor_type.shape.dim
    width = sides[2].dim_value if len(sides) == 4 else 0
    front = set(ends(copy.graph).front)
    read = {name for node in copy.graph.node if node.name in front for name in node.input}
    for tensor in copy.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if width and tensor.name in read and values.dtype == np.float32 and values.shape[-2:] == (1, 1):
            wide = np.repeat(values, width, axis=-1)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    return copy
