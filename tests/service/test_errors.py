"""What onnxruntime says reaches people as a reason, without the names and places of its own code."""

import onnx
import pytest
from onnx import TensorProto, helper

from convoy.service.errors import BadModelFile, runtime_reason

SAID = {
    "[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:/src/core/graph/model_load_utils.h:46 void "
    "onnxruntime::model_load_utils::ValidateOpsetForDomain(const std::unordered_map<std::basic_string<char>, int>&, "
    "const onnxruntime::logging::Logger&, bool, const std::string&, int) ONNX Runtime only supports opset 28.\n": (
        "Load model from m.onnx failed: ONNX Runtime only supports opset 28."
    ),
    "[ONNXRuntimeError] : 1 : FAIL : /src/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const "
    "onnxruntime::ModelOptions&) Unsupported model IR version: 99, max supported IR version: 14\n": (
        "Unsupported model IR version: 99, max supported IR version: 14"
    ),
    "[ONNXRuntimeError] : 1 : FAIL : Deserialize tensor w failed.tensorprotoutils.cc:2201 GetExtDataFromTensorProto "
    "External initializer: w offset: 0": "Deserialize tensor w External initializer: w offset: 0",
    "[ONNXRuntimeError] : 1 : FAIL : Node () Op (Conv) [ShapeInferenceError] Input tensor must have at least 3": (
        "Node () Op (Conv) [ShapeInferenceError] Input tensor must have at least 3"
    ),
    "": "RuntimeError",
}


@pytest.mark.parametrize("said", SAID)
def test_reason_is_what_follows_the_names_of_the_code(said: str) -> None:
    assert runtime_reason(RuntimeError(said)) == SAID[said]


def test_long_list_of_names_is_cut() -> None:
    assert len(runtime_reason(RuntimeError("x" * 5000))) == 300


@pytest.mark.parametrize(("opset", "ir", "wanted"), [(99, 10, "pset 99"), (18, 99, "IR version: 99")])
def test_file_of_a_newer_onnx_is_refused_with_the_reason(tmp_path, opset: int, ir: int, wanted: str) -> None:
    from convoy.service.engine.session import load

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    file = tmp_path / "model" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), file)
    with pytest.raises(BadModelFile, match=wanted) as refused:
        load(file, "cpu", 0, 1)
    assert "::" not in refused.value.message
    assert str(tmp_path) not in refused.value.message
