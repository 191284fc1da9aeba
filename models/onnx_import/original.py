"""The file as it was made, running: what the adopted one must answer, and what its answers are seen from."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from convoy.models import runtime
from convoy.models.errors import BadNetworkFile
from convoy.models.onnx_import.front import Front
from convoy.models.onnx_import.look import Found, Tensor
from convoy.models.onnx_import.names import PREFIX
from convoy.models.onnx_import.wanted import Size
from convoy.models.runtime import Session


class Original:
    """Answers images (N, H, W, C) uint8 as the file itself does, one by one or as many at a time as it was made for;
    pixels are brought to it by numpy, not by nodes. Raises BadNetworkFile where onnxruntime does not run it."""

    def __init__(self, found: Found, output: Tensor, front: Front | None) -> None:
        self.found, self.output, self.front = found, output, front
        self.session = session(found.model)
        size = found.input.shape[0]
        # Not several where it takes any number: an answer must not depend on who shares the batch.
        self.batch = size if isinstance(size, int) else 1

    def answers(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """As many as there are images."""
        parts = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            filled = np.concatenate([part, np.repeat(part[-1:], self.batch - len(part), axis=0)])
            parts.append(self.raw(filled)[: len(part)])
        return np.concatenate(parts)

    def raw(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Whatever comes, of exactly as many images as it takes at a time."""
        values = images if self.front is None else self.front.applied(images)
        try:
            (given,) = self.session.run([self.output.name], {self.found.input.name: values})
        except Exception as error:  # whatever onnxruntime makes of an input
            raise BadNetworkFile(
                f"onnxruntime does not run it on an image of {images.shape[1]}x{images.shape[2]}: {words(error)}"
            ) from None
        return np.asarray(given)


def noise(size: Size, channels: int, count: int) -> NDArray[np.uint8]:
    """Random pixels, (count, height, width, channels), the same each time."""
    return np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8)


def session(model: onnx.ModelProto, optimised: bool = True) -> Session:
    """Raises BadNetworkFile where onnxruntime does not take it."""
    try:
        return runtime.session(model, optimised=optimised)
    except Exception as error:  # whatever onnxruntime makes of a file
        raise BadNetworkFile(f"onnxruntime does not run it: {words(error)}") from None


def words(error: Exception) -> str:
    """What onnxruntime says, with the names that the file has."""
    return runtime.words(error).replace(PREFIX, "")
