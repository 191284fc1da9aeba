"""Checks of an adopted network: whether it supports batching, and parity with the original file."""

import re
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from convoy.models.data.batches import loader
from convoy.models.data.builtin.generated import generated
from convoy.models.errors import BadNetworkFile, ParityRefused
from convoy.models.onnx_import.original import Original, error_message, noise, session
from convoy.models.onnx_import.output import Output
from convoy.models.onnx_import.rewrite import PREFIX
from convoy.models.runtime import Session
from convoy.models.settings import Size
from convoy.service import metadata
from convoy.service.metadata import InputSpec, Parity

BATCHES = (1, 3)  # batch sizes tested

IMAGES = 24
TOGETHER = 3  # batch size of the adopted network
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2  # of probabilities, in float32 and in half precision
MIN_SAME = 0.9999  # share of equal classes, of images or pixels, not counting ties up to rounding


def check_batching(graph: onnx.ModelProto, size: Size, channels: int, batch: int | str) -> None:
    """Runs it on images of that size. Raises BadNetworkFile, naming the node; `batch` is the file's batch size."""
    trouble = (
        f"batch size {batch} cannot be made dynamic" if isinstance(batch, int) else "it does not accept several images"
    )
    running = session(graph, optimised=False)  # not optimised, so that its nodes keep the names in the file
    for count in BATCHES:
        try:
            (first, *_) = running.run(None, {metadata.IMAGE: noise(size, channels, count)})
        except Exception as error:  # onnxruntime's exceptions for an invalid graph
            raise BadNetworkFile(f"{trouble}: {_node_in(error)} prevents it: {error_message(error)}") from None
        if len(first) != count:
            raise BadNetworkFile(
                f"{trouble}: {_blocking_node(graph, size, channels)} outputs {len(first)} for {count} images"
            )


def check_parity(original: Original, running: Session, output: Output, spec: InputSpec) -> Parity:
    """Compares both on random images: the file in its own batch size, the result in batches. Raises ParityRefused."""
    largest, same, predictions, images = 0.0, 0, 0, 0
    tolerance = HALF_TOLERANCE if original.file.input.dtype == "float16" else TOLERANCE
    for batch in _images(spec):
        expected = original.outputs(batch)
        outputs = running.run(None, {metadata.IMAGE: batch})
        difference, right = (
            _indices(expected, outputs)
            if output.values == "indices"
            else _scores(output, output.shares(expected), outputs, tolerance)
        )
        same += int(right.sum())
        largest, predictions, images = (
            float(np.max([largest, difference])),
            predictions + right.size,
            images + len(batch),
        )
    if not largest <= tolerance or same / predictions < MIN_SAME:
        raise ParityRefused(
            f"the result differs from the file on {images} images: probabilities differ by up to {largest:.3g}, "
            f"want at most {tolerance:g}; {same / predictions:.3%} of classes are equal, want {MIN_SAME:.2%}"
        )
    share, classification = same / predictions, output.task == "classification"
    return Parity(
        images=images,
        max_abs_difference=largest,
        top1_agreement=share if classification else None,
        mask_agreement=None if classification else share,
    )


def _node_in(error: Exception) -> str:
    kind, name = re.search(r"running (\w+) node", str(error)), re.search(r"Name:'(.*?)'", str(error))
    if name is None:
        return "a node"
    return f"node {name[1].removeprefix(PREFIX)!r}" + (f" ({kind[1]})" if kind else "")


def _blocking_node(graph: onnx.ModelProto, size: Size, channels: int) -> str:
    """Returns the first node whose output does not grow with the batch."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    names = [name for node in copy.graph.node for name in node.output[:1] if name]
    existing = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in existing)
    running = session(copy)
    one, several = (
        dict(zip(names, running.run(names, {metadata.IMAGE: noise(size, channels, count)}), strict=True))
        for count in BATCHES
    )
    grown = {name for name in names if several[name].size == BATCHES[-1] * one[name].size}
    grown.add(metadata.IMAGE)
    for node in copy.graph.node:
        if grown.intersection(node.input) and node.output[0] not in grown and several[node.output[0]].dtype.kind == "f":
            return f"node {node.name.removeprefix(PREFIX)!r} ({node.op_type})"
    return "a node"


def _indices(expected: NDArray[np.int64], outputs: list[NDArray[np.uint8]]) -> tuple[float, NDArray[np.bool_]]:
    return 0.0, expected.reshape(outputs[0].shape) == outputs[0]


def _scores(
    output: Output, shares: NDArray[np.float64], outputs: list[NDArray[np.float32]], tolerance: float
) -> tuple[float, NDArray[np.bool_]]:
    """Returns the largest difference of a probability, and whether each class is correct."""
    if output.task == "classification":
        difference = np.abs(outputs[0] - shares).max()
        classes = outputs[0].argmax(axis=1)
    else:
        # A confidence is rounded to one of 255 steps; a sum slightly above 1 counts as 1.
        best = np.minimum(shares.max(axis=1), 1)
        difference = max(0.0, np.abs(outputs[1].reshape(-1) / 255 - best).max() - 0.5 / 255)
        classes = outputs[0].reshape(-1).astype(int)
    # If two probabilities are equal up to rounding, either class may win.
    chosen = np.take_along_axis(shares, classes[:, None], axis=1)[:, 0]
    return float(difference), shares.max(axis=1) - chosen <= tolerance


def _images(spec: InputSpec) -> Iterator[NDArray[np.uint8]]:
    """Yields random textures, preprocessed as in serving, and noise."""
    count = 0
    for images, _ in loader(generated(spec), spec, batch_size=TOGETHER):
        yield images.numpy()
        count += len(images)
        if count >= IMAGES:
            return
