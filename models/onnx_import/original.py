"""Runs the original file, as the reference for the adopted one."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from convoy.models import runtime
from convoy.models.errors import BadNetworkFile
from convoy.models.onnx_import.front import Front
from convoy.models.onnx_import.look import Found, Tensor
from convoy.models.onnx_import.names import PREFIX
from convoy.models.runtime import Session
from convoy.models.settings import Size


class Original:
    """Computes the file's own outputs for images (N, H, W, C) uint8, one by one or in its fixed batch size;
    preprocessing is in numpy, without nodes. Raises BadNetworkFile if onnxruntime cannot run it."""

    def __init__(self, found: Found, output: Tensor, front: Front | None) -> None:
        self.found, self.output, self.front = found, output, front
        self.session = session(found.model)
        size = found.input.shape[0]
        # Not several if it accepts any number: an output must not depend on the other images of the batch.
        self.batch = size if isinstance(size, int) else 1

    def answers(self, images: NDArray[np.uint8]) -> NDArray[Any]:
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
            (given,) = self.session.run([self.output.name], {self.found.input.name: values})
        except Exception as error:  # onnxruntime's exceptions for an invalid input
            raise BadNetworkFile(
                f"onnxruntime does not run it on an image of {images.shape[1]}x{images.shape[2]}: {words(error)}"
            ) from None
        return np.asarray(given)


def noise(size: Size, channels: int, count: int) -> NDArray[np.uint8]:
    """Returns random pixels, (count, height, width, channels), always the same."""
    return np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8)


def session(model: onnx.ModelProto, optimised: bool = True) -> Session:
    """Opens a session. Raises BadNetworkFile if onnxruntime does not accept the graph."""
    try:
        return runtime.session(model, optimised=optimised)
    except Exception as error:  # onnxruntime's exceptions for an invalid file
        raise BadNetworkFile(f"onnxruntime does not run it: {words(error)}") from None


def words(error: Exception) -> str:
    """Returns onnxruntime's message, with the names in the file."""
    return runtime.words(error).replace(PREFIX, "")
