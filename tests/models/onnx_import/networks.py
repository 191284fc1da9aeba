"""Small networks as other people's tools leave them: from torch's exporter, and node by node from onnx's helper."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

SIDE, CLASSES = 12, 5


class Net(nn.Module):
    """(N, 3, 12, 12) to logits (N, 5), or to probabilities."""

    def __init__(self, probabilities: bool = False, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(channels, 6, 3, padding=1)
        self.dense = nn.Linear(6, CLASSES)
        self.probabilities = probabilities

    def forward(self, image: Tensor) -> Tensor:
        maps = torch.relu(self.convolution(image))
        logits = 4 * self.dense(maps.amax(dim=(2, 3)))
        return torch.softmax(logits, dim=1) if self.probabilities else logits


class Pixelwise(nn.Module):
    """(N, 3, H, W) to logits (N, 5, H, W); sides are multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(3, 8, 4, stride=4)
        self.up = nn.ConvTranspose2d(8, CLASSES, 4, stride=4)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.up(torch.relu(self.down(image)))
        return logits


def from_torch(
    path: Path, network: nn.Module, shape: Sequence[int], dynamic: dict[int, str] | None = None, external: bool = False
) -> Path:
    """What torch's exporter writes; all sides are fixed but the `dynamic` ones."""
    axes = dict.fromkeys(dynamic or {}, torch.export.Dim.DYNAMIC)
    torch.onnx.export(
        network.eval(),
        (torch.zeros(*(max(2, side) if place in axes else side for place, side in enumerate(shape))),),
        path,
        dynamo=True,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=(axes,) if axes else None,
        opset_version=18,
        external_data=external,
        verbose=False,
    )
    return path


def from_helper(
    path: Path,
    *,
    layout: str = "NCHW",
    dtype: int = TensorProto.FLOAT,
    batch: int | str = 1,
    flatten: Sequence[int] | None = (1, -1),
    tail: str | None = None,
    opset: int = 13,
    prelude: Sequence[onnx.NodeProto] = (),
) -> Path:
    """Mean of each channel after a 1x1 convolution, a reshape to `flatten`, and a dense layer: logits (batch, 5).

    `prelude` goes from `pooled` (batch, 4, 1, 1) to `before`, where it is given.
    """
    random = np.random.default_rng(0)
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT if dtype == TensorProto.UINT8 else dtype)
    weights = {
        "kernel": random.normal(0, 1, (4, 3, 1, 1)).astype(kind),
        "dense": random.normal(0, 2, (4, CLASSES)).astype(kind),
        "shape": np.array(flatten, np.int64),
    }
    if dtype == TensorProto.UINT8:
        weights["full"] = np.array(255, np.float32)
    nodes, name = [], "input"
    if dtype == TensorProto.UINT8:
        nodes.append(helper.make_node("Cast", [name], ["cast"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Div", ["cast", "full"], ["floats"]))
        name = "floats"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [name], ["moved"], perm=[0, 3, 1, 2]))
        name = "moved"
    nodes += [
        helper.make_node("Conv", [name, "kernel"], ["maps"], name="first"),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        *prelude,
        helper.make_node("Reshape", ["before" if prelude else "pooled", "shape"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    if tail is not None:
        nodes.append(helper.make_node(tail, ["logits"], ["probabilities"], axis=1))
    sides = [3, SIDE, SIDE] if layout == "NCHW" else [SIDE, SIDE, 3]
    answer = "logits" if tail is None else "probabilities"
    outer = TensorProto.FLOAT if dtype == TensorProto.UINT8 else dtype
    graph = helper.make_graph(
        nodes,
        "elsewhere",
        [helper.make_tensor_value_info("input", dtype, [batch, *sides])],
        [helper.make_tensor_value_info(answer, outer, [batch, CLASSES])],
        [numpy_helper.from_array(values, key) for key, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def per_pixel(path: Path, axis: int, probabilities: bool, opset: int) -> Path:
    """A 1x1 convolution for one image, (1, 3, 12, 12): a number for each of 5 classes along `axis` at each pixel."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["first"]),
        helper.make_node("Transpose", ["first"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Softmax" if probabilities else "Identity", ["last"], ["answers"], **_axis(probabilities)),
        helper.make_node("Transpose", ["answers"], ["output"], perm=[0, 3, 1, 2] if axis == 1 else [0, 1, 2, 3]),
    ]
    sides = [1, CLASSES, SIDE, SIDE] if axis == 1 else [1, SIDE, SIDE, CLASSES]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, sides)],
        [numpy_helper.from_array(random.normal(0, 2, (CLASSES, 3, 1, 1)).astype(np.float32), "kernel")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def _axis(wanted: bool) -> dict[str, int]:
    return {"axis": 3} if wanted else {}
