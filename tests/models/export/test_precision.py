"""A network in half precision answers as the one in single precision, for the same bytes."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from convoy.service.engine.session import load
from tests.performance import models


def test_half_precision_is_inside_and_answers_are_the_same(tmp_path: Path) -> None:
    single, half = models.real(tmp_path / "models", "lenet5"), models.half(tmp_path / "models", "lenet5")
    graph = onnx.load(half).graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    weights = [
        weight for weight in graph.initializer if len(weight.dims) > 1 and weight.dims[0] > 1
    ]  # normalisation has 1
    assert {weight.data_type for weight in weights} == {TensorProto.FLOAT16}
    side = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    images = np.random.default_rng(2).integers(0, 256, (6, side, side, 1), np.uint8)
    (wanted,), (found,) = (load(file, "cpu", 0, 1).run([images]) for file in (single, half))
    assert not np.array_equal(found, wanted)  # it is not the same network
    assert np.abs(found - wanted).max() < 0.01 * wanted.max()
