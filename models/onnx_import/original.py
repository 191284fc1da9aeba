"""Runs the original file, with preprocessing in numpy, as the reference for the adopted one."""

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from convoy.models import runtime
from convoy.models.errors import BadNetworkFile
from convoy.models.onnx_import.onnx_file import OnnxFile, Tensor
from convoy.models.onnx_import.rewrite import PREFIX
from convoy.models.runtime import Session
from convoy.models.settings import Layout, Size


class Front(NamedTuple):
    """Conversion of bytes to the network's input: (pixel * scale - mean) / std per channel of the RGB image, then the
    channels reversed if `reverse`, in `layout`, as `dtype` of the network's input."""

    layout: Layout
    dtype: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    reverse: bool

    def applied(self, images: NDArray[np.uint8]) -> NDArray[np.generic]:
        """Applies the preprocessing to (N, H, W, C) in numpy, as a reference for the nodes."""
        values = (images * np.float64(self.scale) - np.array(self.mean)) / np.array(self.std)
        values = values[..., ::-1] if self.reverse else values
        values = values.transpose(0, 3, 1, 2) if self.layout == "NCHW" else values
        return np.ascontiguousarray(values, helper.tensor_dtype_to_np_dtype(self.dtype))


class Original:
    """Computes the file's own outputs for images (N, H, W, C) uint8, one by one or in its fixed batch size;
    preprocessing is in numpy, without nodes. Raises BadNetworkFile if onnxruntime cannot run it."""

    def __init__(self, file: OnnxFile, output: Tensor, front: Front | None) -> None:
        self.file, self.output, self.front = file, output, front
        self.session = session(file.model)
        size = file.input.shape[0]
        # Not several if it accepts any number: an output must not depend on the other images of the batch.
        self.batch = size if isinstance(size, int) else 1

    def outputs(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Returns the outputs for any number of images."""
        parts = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            filled = np.concatenate([part, np.repeat(part[-1:], self.batch - len(part), axis=0)])
            parts.append(self.raw(filled)[: len(part)])
        return np.concatenate(parts)

    def raw(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Returns the raw output for exactly one batch."""
        values = images if self.front is None else self.front.applied(images)
        try:
            (output,) = self.session.run([self.output.name], {self.file.input.name: values})
        except Exception as error:  # onnxruntime's exceptions for an invalid input
            size = f"{images.shape[1]}x{images.shape[2]}"
            raise BadNetworkFile(f"onnxruntime does not run it on an image of {size}: {error_message(error)}") from None
        return np.asarray(output)


def noise(size: Size, channels: int, count: int) -> NDArray[np.uint8]:
    """Returns random pixels, (count, height, width, channels), always the same."""
    return np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8)


def session(model: onnx.ModelProto, optimised: bool = True) -> Session:
    """Opens a session. Raises BadNetworkFile if onnxruntime does not accept the graph."""
    try:
        return runtime.session(model, optimised=optimised)
    except Exception as error:  # onnxruntime's exceptions for an invalid file
        raise BadNetworkFile(f"onnxruntime does not run it: {error_message(error)}") from None


def error_message(error: Exception) -> str:
    """Returns onnxruntime's message, with the names in the file."""
    return runtime.error_message(error).replace(PREFIX, "")
