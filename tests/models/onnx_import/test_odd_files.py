"""ONNX files that runtimes take, though what they say of themselves is odd."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convoy.service import cli


def classifier(first: str | int = "N", unused: bool = False, ir: int = 10) -> onnx.ModelProto:
    """Three classes: the means of the channels of a picture, as NCHW floats."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("Mul", ["flat", "gain"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["y"], axis=1),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [first, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [first, 3])],
        [numpy_helper.from_array(np.full(1, 4, np.float32), "gain")],
    )
    if unused:
        graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "nobody-takes-it"))
        if ir < 4:
            graph.input.extend(
                helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims))
                for tensor in graph.initializer
            )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=ir)


@pytest.mark.parametrize(
    "model",
    [classifier(-1), classifier("?"), classifier(unused=True), classifier(unused=True, ir=3)],
    ids=["minus-one", "question", "unused-weight", "unused-weight-of-old-file"],
)
def test_odd_file_is_adopted(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: onnx.ModelProto) -> None:
    file = tmp_path / "odd.onnx"
    onnx.save(model, file)
    options = [
        "--repository",
        str(tmp_path / "repository"),
        "--name",
        "odd",
        "--uint8-front",
        "--mean",
        "0",
        "--std",
        "1",
    ]
    assert cli.run(["adopt", str(file), *options]) == 0, capsys.readouterr().err
    assert (tmp_path / "repository" / "odd" / "1" / "model.onnx").is_file()


def test_free_side_written_as_a_number_is_shown_as_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(classifier(-1), tmp_path / "odd.onnx")
    assert cli.run(["inspect", str(tmp_path / "odd.onnx")]) == 0
    assert "-1" not in capsys.readouterr().out.replace(str(tmp_path), "")
