"""Preprocessing nodes for a network made elsewhere: they convert bytes to its input."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from convoy.models.settings import Layout
from convoy.service import metadata


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


def nodes(front: Front, given: str) -> list[NodeProto]:
    """Returns the nodes from `image` to `given`, the network's input."""
    name, made = metadata.IMAGE, []
    if front.layout == "NCHW":
        # Transposing before the cast moves a quarter of the bytes.
        made.append(helper.make_node("Transpose", [name], ["moved"], perm=[0, 3, 1, 2]))
        name = "moved"
    if front.reverse:
        made.append(helper.make_node("Gather", [name, "turned"], ["reversed"], axis=1 if front.layout == "NCHW" else 3))
        name = "reversed"
    if front.dtype == TensorProto.UINT8:
        return [*made, helper.make_node("Identity", [name], [given])]
    made += [
        helper.make_node("Cast", [name], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["normalised"]),
        helper.make_node("Cast", ["normalised"], [given], to=front.dtype),
    ]
    return made


def constants(front: Front) -> list[TensorProto]:
    """Returns the constants of those nodes."""
    mean, std = np.array(front.mean), np.array(front.std)
    order = slice(None, None, -1) if front.reverse else slice(None)
    shape = (1, -1, 1, 1) if front.layout == "NCHW" else (1, 1, 1, -1)
    found: list[TensorProto] = []
    if front.reverse:
        found.append(numpy_helper.from_array(np.arange(len(mean))[::-1].astype(np.int64), "turned"))
    if front.dtype != TensorProto.UINT8:
        for name, values in (("factor", front.scale / std), ("offset", -mean / std)):
            found.append(numpy_helper.from_array(values[order].astype(np.float32).reshape(shape), name))
    return found
