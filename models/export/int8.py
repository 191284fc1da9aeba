"""A served graph in 8-bit integers: static quantisation with a scale for each output channel of the weights, and for
each activation one range that calibration images showed."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from convoy.models.errors import VariantRefused
from convoy.models.export.calibration import Inputs, quiet, ranges
from convoy.models.export.ends import ends
from convoy.service.metadata import Calibration

# Of these onnxruntime has none in integers on the CPU: they would compute in floats, and convert twice.
FLOATS = {"ConvTranspose", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "CumSum", "TopK"}
OPERATIONS = sorted((QLinearOpsRegistry.keys() | QDQRegistry.keys()) - FLOATS)


def quantised(graph: onnx.ModelProto, batches: Iterable[Inputs], method: Calibration) -> onnx.ModelProto:
    """The same graph with QuantizeLinear and DequantizeLinear around what onnxruntime runs in integers.

    batches  what the ranges of the activations are taken from, by `method`, as `ranges` says

    Activations are unsigned, weights signed and symmetric: the pair for which processors have instructions. What brings
    the pixels to the network, and softmax or argmax behind it, stay as they are. Raises VariantRefused.
    """
    model = _widened(graph)
    kept = ends(model.graph).nodes
    try:
        with quiet():
            found = ranges(model, batches, method, OPERATIONS)
            quantizer = QDQQuantizer(
                save_and_reload_model_with_shape_infer(model),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=found,
                nodes_to_quantize=[],
                nodes_to_exclude=kept,
                op_types_to_quantize=OPERATIONS,
                extra_options={},
            )
            quantizer.quantize_model()
    except Exception as error:  # whatever the library makes of a graph that it cannot do
        raise VariantRefused(f"cannot be quantised: {type(error).__name__}: {error}") from error
    quantizer.model.topological_sort()
    answer: onnx.ModelProto = quantizer.model.model
    del answer.graph.value_info[:]
    return answer


def _widened(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the constants of the normalisation, one for each channel, are repeated along the image's width.

    onnxruntime moves the change of layout behind them, for its integer convolutions take channels last. There, they
    would be three numbers at a time, and take a quarter of MobileNet's time.
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
