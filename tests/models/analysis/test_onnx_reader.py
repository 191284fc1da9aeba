"""Reading an ONNX file: the same figures as for the network it was exported from, and files made elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convoy.models import checkpoint, zoo
from convoy.models.analysis import rows as layer_table
from convoy.models.analysis.rows import Anatomy
from convoy.models.analysis.summary import inspect_file
from convoy.models.errors import BadNetworkFile, ImpossibleLayer
from convoy.models.export.export import onnx_graph
from convoy.models.registry import Argument

Figures = list[tuple[str, tuple[int, ...], int, tuple[object, ...]]]


def export(folder: Path, name: str, size: tuple[int, int] | None, arguments: dict[str, Argument]) -> tuple[Path, Path]:
    """An architecture as a checkpoint and as an ONNX file."""
    checkpoint_path, path = folder / f"{name}.ckpt", folder / f"{name}.onnx"
    zoo.untrained(name, checkpoint_path, 7, size, arguments)
    onnx.save(onnx_graph(*checkpoint.load(checkpoint_path)), path)
    return checkpoint_path, path


def figures(whole: Anatomy) -> Figures:
    """Rows with what both readers can know: the exporter takes normalisation into convolutions and adds what serving
    wants before and after."""
    rows = [row for row in whole.rows if row.kind != "batch normalisation"]
    start = next(index for index, row in enumerate(rows) if row.multiply_adds)
    return [(row.kind, row.shape, row.multiply_adds, row.fields) for row in rows[start:]]


def layers(whole: Anatomy) -> list[str]:
    return [row.layer for row in whole.rows if row.multiply_adds]


@pytest.mark.parametrize(
    ("name", "size", "arguments", "served", "more"),
    [
        # Where C3 has no connection, the file has zeros.
        ("lenet5", None, {}, 0, (6 * 16 - 60) * 25 + 2),
        # Of a normalisation's four numbers a map one is left, the convolution's bias. The mask takes three reductions.
        ("unet", None, {"width": 2, "depth": 2}, 3, -3 * 40 + 6),
        ("resnet18", (64, 64), {}, 0, -3 * 4800 + 6),
    ],
)
def test_file_has_the_figures_of_its_network(
    name: str,
    size: tuple[int, int] | None,
    arguments: dict[str, Argument],
    served: int,
    more: int,
    tmp_path: Path,
) -> None:
    network, file = map(inspect_file, export(tmp_path, name, size, arguments))
    theirs = figures(file)
    assert figures(network) == theirs[: len(theirs) - served]
    assert layers(network) == layers(file)
    assert network.multiply_adds == file.multiply_adds > 0
    # The file also has the scale and the offset of the pixels.
    assert file.parameters == network.parameters + more


def made_elsewhere(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray[Any, Any]],
    shape: Sequence[int | str] = ("N", 3, "H", "W"),
    **options: Any,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "elsewhere",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = folder / "elsewhere.onnx"
    options = {"opset_imports": [helper.make_opsetid("", 11)]} | options
    onnx.save(helper.make_model(graph, **options), path)
    return path


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype=np.float32)


def test_file_made_elsewhere_is_taken_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "first", auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("LeakyRelu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], "second", group=4, pads=[1, 0, 1, 0], dilations=[2, 1]),
        helper.make_node("ConvTranspose", ["c", "w3"], ["d"], "third", strides=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "fourth"),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], "fifth", transB=1),
    ]
    weights = {"w1": ones(8, 3, 3, 3), "b1": ones(8), "w2": ones(4, 2, 3, 1), "w3": ones(4, 5, 3, 3), "w4": ones(6, 5)}
    whole = inspect_file(made_elsewhere(tmp_path, nodes, weights | {"b4": ones(6)}), (20, 31))
    assert whole.image == (1, 3, 20, 31)
    assert [(row.layer, row.kind, row.shape, row.parameters, row.multiply_adds) for row in whole.rows] == [
        ("first", "convolution 3x3 / 2", (8, 10, 16), 8 * 27 + 8, 10 * 16 * 8 * 27),
        ("second", "grouped (4) convolution 3x1 dilated 2x1", (4, 8, 16), 24, 8 * 16 * 4 * 6),
        ("third", "transposed convolution 3x3 / 3", (5, 22, 46), 4 * 5 * 9, 8 * 16 * 4 * 5 * 9),
        ("fourth", "mean of each map", (5, 1, 1), 0, 0),
        ("fifth", "dense", (6,), 36, 30),
    ]
    assert whole.mentioned == {"leakyrelu": 1}
    first = whole.rows[0].fields
    # 20 rows want one row of padding, at the bottom; 31 columns one on either side.
    assert [field.at(0) for field in first] == [(0, 2), (-1, 1)]


def test_shapes_that_a_graph_reckons_are_followed(tmp_path: Path) -> None:
    constant = numpy_helper.from_array(np.array([0, 0, -1], dtype=np.int64))
    nodes = [
        helper.make_node("Constant", [], ["weight"], value=numpy_helper.from_array(ones(2, 3, 1, 1))),
        helper.make_node("Conv", ["x", "weight"], ["a"], "conv"),
        helper.make_node("Constant", [], ["shape"], value=constant),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "two"], ["h"]),
        helper.make_node("Div", ["h", "half"], ["k"]),
        helper.make_node("Slice", ["b", "zero", "k", "two"], ["c"]),
        helper.make_node("ReduceMax", ["c"], ["y"], "top", axes=[2], keepdims=0),
    ]
    numbers = {"two": [2], "half": [2], "zero": [0]}
    weights = {name: np.array(value, dtype=np.int64) for name, value in numbers.items()}
    whole = inspect_file(made_elsewhere(tmp_path, nodes, weights), (6, 4))
    assert [(row.layer, row.shape, row.parameters) for row in whole.rows] == [("conv", (2, 6, 4), 6), ("top", (2,), 0)]
    # Three places of the flattened map: which of the image's they are is told no more exactly than by all of it.
    assert [field.at(0) for field in whole.rows[1].fields] == [(0, 5), (0, 3)]


def test_places_that_are_cut_out_or_added_are_followed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Slice", ["x", "one", "end", "three", "two"], ["a"]),  # columns 1, 3, 5, ...
        helper.make_node("Pad", ["a", "pads"], ["b"]),  # two rows above
        helper.make_node("Gather", ["b", "table"], ["c"], axis=2),  # windows of two rows, in steps of three
        helper.make_node("ReduceSum", ["c"], ["d"], "rows", axes=[2], keepdims=0),
        helper.make_node("MaxPool", ["d"], ["y"], "pool", kernel_shape=[1, 2]),
    ]
    numbers = {"one": [1], "end": [1000], "three": [3], "two": [2], "pads": [0, 0, 2, 0, 0, 0, 0, 0]}
    numbers["table"] = [[0, 3, 6], [1, 4, 7]]
    weights = {name: np.array(value, dtype=np.int64) for name, value in numbers.items()}
    whole = inspect_file(made_elsewhere(tmp_path, nodes, weights), (10, 12))
    assert [row.shape for row in whole.rows] == [(3, 3, 6), (3, 3, 5)]
    height, width = whole.rows[-1].fields
    assert [height.at(place) for place in range(3)] == [(-2, -1), (1, 2), (4, 5)]
    assert [width.at(place) for place in range(3)] == [(1, 3), (3, 5), (5, 7)]


def test_channels_may_come_last(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("MaxPool", ["a"], ["y"], "pool", kernel_shape=[2, 3]),
    ]
    whole = inspect_file(made_elsewhere(tmp_path, nodes, {}, ["N", "H", "W", 3]), (8, 9))
    assert whole.sides == (8, 9)
    assert [(row.shape, tuple(field.size for field in row.fields)) for row in whole.rows] == [((3, 7, 7), (2, 3))]


def test_operation_that_says_nothing_of_places_sees_everything(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("CumSum", ["x", "axis"], ["a"], "sums"),
        helper.make_node("MaxPool", ["a"], ["y"], "pool", kernel_shape=[2, 2]),
    ]
    whole = inspect_file(made_elsewhere(tmp_path, nodes, {"axis": np.array(2)}), (8, 9))
    assert [[field.at(0) for field in row.fields] for row in whole.rows] == [[(0, 7), (0, 8)]] * 2
    assert whole.unknown == {"CumSum": 1}
    assert layer_table.notes(whole) == ["unknown, so counted without cost and with the whole image as field: CumSum x1"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [
                helper.make_node("Conv", ["x", "w"], ["a"], "conv", strides=[2, 2]),
                helper.make_node("MaxPool", ["a"], ["y"], "pool", kernel_shape=[2, 2]),
            ],
            "pool: nothing is left by max pooling of 4x1x2 with kernel 2x2, stride 1, padding 0",
        ),
        ([helper.make_node("Conv", ["w", "x"], ["y"], "conv")], "conv: "),
        ([helper.make_node("Conv", ["x", "v"], ["y"], "conv")], "conv: a convolution of 5 maps gets 3"),
        (
            [
                helper.make_node("Flatten", ["x"], ["a"]),
                helper.make_node("Gemm", ["a", "m"], ["y"], "last"),
            ],
            "last: a dense layer for 10 numbers gets 60",
        ),
        ([helper.make_node("Add", ["x", "w"], ["y"], "sum")], "sum: Add of 1x3x4x5 and 4x3x3x3: "),
    ],
)
def test_impossible_arithmetic_names_the_node(nodes: list[onnx.NodeProto], message: str, tmp_path: Path) -> None:
    weights = {"w": ones(4, 3, 3, 3), "v": ones(4, 5, 1, 1), "m": ones(10, 2)}
    with pytest.raises(ImpossibleLayer) as refused:
        inspect_file(made_elsewhere(tmp_path, nodes, weights), (4, 5))
    assert refused.value.message.startswith(f"elsewhere.onnx: {message}")


def test_what_is_no_network_of_images_is_refused(tmp_path: Path) -> None:
    def refused(path: Path, *size: int) -> str:
        with pytest.raises(BadNetworkFile) as caught:
            inspect_file(path, size or None)
        return caught.value.message

    relu = [helper.make_node("Relu", ["x"], ["y"], "act")]
    fused = [helper.make_node("FusedConv", ["x"], ["y"], "fused", domain="com.microsoft")]
    two = [helper.make_node("Add", ["x", "z"], ["y"])]
    assert "Add reads 'z', which no node before it outputs" in refused(made_elsewhere(tmp_path, two, {}))
    assert "fused: com.microsoft.FusedConv is not an ONNX operation" in refused(made_elsewhere(tmp_path, fused, {}))
    assert "has the input x of shape" in refused(made_elsewhere(tmp_path, relu, {}, [1, 5]))
    assert "does not contain the number of channels" in refused(made_elsewhere(tmp_path, relu, {}, [1, "C", 5, 5]))
    fixed = made_elsewhere(tmp_path, relu, {}, [1, 3, "H", 5])
    assert f"size 4x6: {fixed} accepts an input of anyx5" in refused(fixed, 4, 6)
    assert "accepts an input of 7" in refused(made_elsewhere(tmp_path, relu, {}, [1, 3, 7]), 4, 6)
    nonsense = tmp_path / "nonsense.onnx"
    nonsense.write_bytes(b"\x00not a network")
    assert refused(nonsense) == f"{nonsense} is not an ONNX file"
    nonsense.write_bytes(b"")
    assert "is not an ONNX file, or contains no operations" in refused(nonsense)
    path = made_elsewhere(tmp_path, two, {})
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    onnx.save(model, path)
    assert "has 2 inputs (x, z), want one image" in refused(path)


def test_weights_that_lie_elsewhere_are_not_needed(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    path = made_elsewhere(tmp_path, nodes, {"w": ones(40, 3, 5, 5)})
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert inspect_file(path, (9, 9)).parameters == 3000
