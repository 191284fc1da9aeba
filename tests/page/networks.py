"""A network for the page alone: where a picture is brightest, as template matching answers it."""

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from convoy.service import metadata
from convoy.service.metadata import Document, InputSpec

HEIGHT, WIDTH = 6, 10  # of the window
_GRAPH = f"""
<ir_version: 10, opset_import: ["" : 18]>
window (uint8[N, H, W, 3] image) => (float[N, rows, columns] heat_map, int64[N, 2] location, float[N] score)
{{
    values = Cast <to = 1> (image)
    grey = ReduceMean <keepdims = 0> (values, last)
    planes = Unsqueeze (grey, channel)
    means = AveragePool <kernel_shape = [{HEIGHT}, {WIDTH}]> (planes)
    scaled = Div (means, most)
    heat_map = Squeeze (scaled, channel)
    places = Flatten <axis = 1> (heat_map)
    best = ArgMax <axis = 1> (places)
    score = ReduceMax <keepdims = 0> (places, channel)
    width = Shape <start = 2> (heat_map)
    row = Div (best, width)
    column = Mod (best, width)
    location = Concat <axis = 1> (row, column)
}}
"""


def brightest_window() -> onnx.ModelProto:
    """RGB pictures of any size to the mean brightness of each window of HEIGHT x WIDTH, 0..1, and its maximum."""
    model: onnx.ModelProto = parser.parse_model(_GRAPH)
    constants = {
        "last": np.array([3], np.int64),
        "channel": np.array([1], np.int64),
        "most": np.array(255, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    document = Document(
        task="matching",
        labels=["window"],
        input=InputSpec(colour="RGB", fit="pad", min_height=HEIGHT, min_width=WIDTH),
    )
    helper.set_model_props(model, {metadata.KEY: metadata.encode(document)})
    onnx.checker.check_model(model, full_check=True)
    return model
