"""8-bit integer variants of a served graph: static quantisation with one weight scale per output channel and one range
per activation from a calibration set."""

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

# onnxruntime has no integer kernels for these on the CPU: they would run in float, with two conversions.
FLOATS = {"ConvTranspose", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "CumSum", "TopK"}
OPERATIONS = sorted((QLinearOpsRegistry.keys() | QDQRegistry.keys()) - FLOATS)


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
    except Exception as error:  # the library's exceptions for a graph it does not support
        raise VariantRefused(f"cannot be quantised: {type(error).__name__}: {error}") from error
    quantizer.model.topological_sort()
    answer: onnx.ModelProto = quantizer.model.model
    del answer.graph.value_info[:]
    return answer


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
