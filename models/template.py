"""A template-matching network: its kernel is the template, its output is where an image matches best.

Zero-mean normalised cross-correlation (Lewis: Fast Normalized Cross-Correlation, Vision Interface 1995, equation 2):

    sum((I - mean(I)) * (T - mean(T))) / sqrt(sum((I - mean(I))^2) * sum((T - mean(T))^2))

over every window I of the image that has the size of the template T, with the means per channel. The score is invariant
to an offset per channel and a common factor, so to changes in light and exposure.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from convoy.models.data import picture
from convoy.models.errors import BadTemplate
from convoy.models.export import publish, samples
from convoy.models.export.export import OPSET
from convoy.models.export.seal import sealed
from convoy.service import metadata
from convoy.service.metadata import Document, InputSpec, Provenance

MAX_PIXELS = 1 << 22  # for a template; up to this size the sums over a window fit in 63 bits

# The numerator is a convolution with a zero-mean kernel, in float32. Subtracting the image's mean first affects only
# the rounding. The denominator is a difference of large sums, so it is computed exactly, in integers. The sums over
# windows are differences of running sums along both axes, as in Lewis. The score of a window without variance is 0.
# (Casts come before Max because onnxruntime's Max of 64-bit integers is wrong for large values.)
GRAPH = """
<ir_version: 10, opset_import: ["" : {opset}]>
matching (uint8[N, H, W, {channels}] image)
    => (float[N, rows, columns] heat_map, int64[N, 2] location, float[N] score)
{{
    bytes = Transpose <perm = [0, 3, 1, 2]> (image)
    pixels = Cast <to = 1> (bytes)
    mean = ReduceMean (pixels, sides)
    centred = Sub (pixels, mean)
    numerator = Conv (centred, kernel)

    values = Cast <to = 7> (bytes)
    squares = Mul (values, values)
    energy = ReduceSum (squares, channel)
    summed = Concat <axis = 1> (values, energy)
    down = CumSum (summed, vertical)
    above = CumSum <exclusive = 1> (summed, vertical)
    down_end = Slice (down, last_row, all, vertical_axis)
    down_start = Slice (above, zero, row_places, vertical_axis)
    strips = Sub (down_end, down_start)
    across = CumSum (strips, horizontal)
    before = CumSum <exclusive = 1> (strips, horizontal)
    across_end = Slice (across, last_column, all, horizontal_axis)
    across_start = Slice (before, zero, column_places, horizontal_axis)
    windows = Sub (across_end, across_start)

    sums = Slice (windows, zero, channels, channel)
    energies = Slice (windows, channels, all, channel)
    scaled_energies = Mul (energies, count)
    squared_sums = Mul (sums, sums)
    squared_means = ReduceSum (squared_sums, channel)
    variance = Sub (scaled_energies, squared_means)
    spread = Cast <to = 1> (variance)
    has_spread = Greater (spread, nothing)
    divisible = Max (spread, something)
    deviation = Sqrt (divisible)
    quotient = Div (numerator, deviation)
    defined = Where (has_spread, quotient, nothing)
    bounded = Clip (defined, lowest, highest)
    heat_map = Squeeze (bounded, channel)

    places = Flatten <axis = 1> (heat_map)
    best = ArgMax <axis = 1> (places)
    score = ReduceMax <keepdims = 0> (places, channel)
    width = Shape <start = 2> (heat_map)
    row = Div (best, width)
    skipped = Mul (row, width)
    column = Sub (best, skipped)
    location = Concat <axis = 1> (row, column)
}}
"""


def publish_template(path: Path, repository: Path, name: str) -> tuple[Path, tuple[int, int]]:
    """Writes the network that finds the picture in the file `path` as the next version of the model `name`.

    The picture itself is copied beside it, as its sample. Returns the model file, and the template's height and width.
    A grey picture makes a network for grey images. Raises BadModelName, BadData for a file that is not a picture, and
    BadTemplate; then nothing is written.
    """
    publish.check_name(name)
    template = picture.read(path, "L" if picture.header(path).grey else "RGB")
    graph = network(template, name, path.name)
    return publish.publish(sealed(graph), repository, name, samples.named([template])), template.shape[:2]


def network(template: NDArray[np.uint8], label: str, source: str) -> onnx.ModelProto:
    """Returns the graph, with its metadata, from `image` uint8 (N, H, W, C) to

    heat_map  float32 (N, H - h + 1, W - w + 1), -1..1: the score of the window whose upper left corner is there
    location  int64 (N, 2), row and column of the best window; the first in row-major order if there are several
    score     float32 (N), the score of that window

    template  (h, w, C), 1 grey or 3 RGB channels
    source    the template's origin, for the metadata

    Raises BadTemplate if all pixels are equal, which matches nothing, or if there are too many.
    """
    height, width, channels = template.shape
    if height * width > MAX_PIXELS:
        raise BadTemplate(f"template is {width}x{height} pixels, want at most {MAX_PIXELS} in all")
    model: onnx.ModelProto = parser.parse_model(GRAPH.format(opset=OPSET, channels=channels))
    constants = {"kernel": _kernel(template), **_constants(height, width, channels)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    document = Document(
        task="matching",
        labels=[label],
        input=InputSpec(colour="L" if channels == 1 else "RGB", fit="pad", min_height=height, min_width=width),
        provenance=Provenance(architecture="template", data=source),
    )
    helper.set_model_props(model, {metadata.KEY: metadata.encode(document)})
    onnx.checker.check_model(model, full_check=True)
    return model


def _kernel(template: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the kernel (1, C, h, w): zero mean in each channel, and scaled so that the graph only divides by the root
    of n times the window's sum of squares."""
    values = template.astype(np.float64)
    values -= values.mean(axis=(0, 1))
    norm = np.sqrt((values**2).sum())
    if not template.size or not np.ptp(template, axis=(0, 1)).any():
        height, width = template.shape[:2]
        raise BadTemplate(f"template is {width}x{height} pixels of one colour: want something that can be recognised")
    scaled = values * np.sqrt(template.shape[0] * template.shape[1]) / norm
    kernel: NDArray[np.float32] = scaled.transpose(2, 0, 1)[None].astype(np.float32)
    return kernel


def _constants(height: int, width: int, channels: int) -> dict[str, NDArray[np.generic]]:
    everything = np.iinfo(np.int64).max
    whole = {
        "sides": [2, 3],
        "channel": [1],
        "vertical_axis": [2],
        "horizontal_axis": [3],
        "last_row": [height - 1],
        "last_column": [width - 1],
        # For a window of one pixel, every position is a start.
        "row_places": [1 - height or everything],
        "column_places": [1 - width or everything],
        "channels": [channels],
        "count": [height * width],
        "zero": [0],
        "all": [everything],
    }
    constants: dict[str, NDArray[np.generic]] = {name: np.array(value, np.int64) for name, value in whole.items()}
    for name, axis in (("vertical", 2), ("horizontal", 3)):
        constants[name] = np.array(axis, np.int64)
    for name, number in (("nothing", 0), ("something", 1), ("lowest", -1), ("highest", 1)):
        constants[name] = np.array(number, np.float32)
    return constants
