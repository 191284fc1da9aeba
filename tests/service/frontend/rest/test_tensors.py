"""Bodies of the Open Inference Protocol over HTTP: what they become, and that what is wrong is named."""

import json
from base64 import b64encode
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from convoy.service.dtypes import NAMES
from convoy.service.errors import BadRequest, BadTensor
from convoy.service.frontend.rest.tensors import Binary, json_length, raw_request, request, response
from convoy.service.pb import inference_pb2 as pb

ALL_JSON = Binary({}, others=False)
IN_JSON = sorted(set(NAMES) - {"FP16"})


def body_of(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} | changes
    return json.dumps({"inputs": [{name: value for name, value in tensor.items() if value is not ...}]}).encode()


def read(body: bytes, length: int | None = None) -> pb.ModelInferRequest:
    return request("m", "", body, len(body) if length is None else length)[0]


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    datatype = draw(st.sampled_from(IN_JSON))
    dtype = np.dtype(NAMES[datatype])
    finite: dict[str, Any] = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return datatype, draw(arrays(dtype, array_shapes(max_dims=3, max_side=4), elements=finite))


@given(tensors(), st.booleans())
def test_numbers_arrive_as_they_were_written_flat_or_nested(given_: tuple[str, np.ndarray], nested: bool) -> None:
    datatype, values = given_
    data = (values if nested else values.reshape(-1)).tolist()
    found = read(body_of(shape=list(values.shape), datatype=datatype, data=data))
    assert list(found.inputs[0].shape) == list(values.shape)
    assert found.raw_input_contents[0] == values.tobytes()


@given(tensors())
def test_answers_in_json_have_every_bit(given_: tuple[str, np.ndarray]) -> None:
    datatype, values = given_
    output = pb.ModelInferResponse.InferOutputTensor(name="y", datatype=datatype, shape=values.shape)
    answer = pb.ModelInferResponse(model_name="m", outputs=[output], raw_output_contents=[values.tobytes()])
    written, json_bytes = response(answer, ALL_JSON)
    assert json_bytes is None
    (found,) = json.loads(written)["outputs"]
    assert np.array(found["data"], values.dtype).tobytes() == values.tobytes()


def test_binary_inputs_and_outputs_follow_the_json_in_its_order() -> None:
    head = json.dumps(
        {
            "id": "7",
            "inputs": [
                {"name": "a", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}},
                {"name": "b", "shape": [1], "datatype": "INT8", "data": [3]},
                {"name": "c", "shape": [1], "datatype": "INT16", "parameters": {"binary_data_size": 2}},
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}],
            "parameters": {"binary_data_output": True, "timeout": 5, "priority": 2},
        }
    ).encode()
    found, binary = request("m", "3", head + b"\1\2\4\0", len(head))
    assert list(found.raw_input_contents) == [b"\1\2", b"\3", b"\4\0"]
    assert (found.model_name, found.model_version, found.id) == ("m", "3", "7")
    assert (binary.wants("y"), binary.wants("z")) == (False, True)
    assert {name: value.int64_param for name, value in found.parameters.items()} == {"timeout": 5, "priority": 2}
    assert not found.inputs[0].parameters
    kind = pb.ModelInferResponse.InferOutputTensor
    outputs = [kind(name=name, datatype="INT8", shape=[2]) for name in ("z", "y", "w")]
    answer = pb.ModelInferResponse(model_name="m", outputs=outputs, raw_output_contents=[b"\1\2", b"\3\4", b"\5\6"])
    written, json_bytes = response(answer, binary)
    assert json_bytes is not None
    assert written[json_bytes:] == b"\1\2\5\6"
    listed = json.loads(written[:json_bytes])["outputs"]
    assert [(each.get("data"), each.get("parameters")) for each in listed] == [
        (None, {"binary_data_size": 2}),
        ([3, 4], None),
        (None, {"binary_data_size": 2}),
    ]


def test_files_come_in_base64_or_as_bytes_and_go_as_texts() -> None:
    found = read(
        body_of(datatype="BYTES", shape=[2], data=[{"b64": b64encode(part).decode()} for part in (b"ab", b"")])
    )
    assert found.raw_input_contents[0] == b"\2\0\0\0ab\0\0\0\0"
    output = pb.ModelInferResponse.InferOutputTensor(name="y", datatype="BYTES", shape=[1, 2])
    answer = pb.ModelInferResponse(outputs=[output], raw_output_contents=[b"\3\0\0\0a:1\1\0\0\0b"])
    assert json.loads(response(answer, ALL_JSON)[0])["outputs"][0]["data"] == ["a:1", "b"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": [1]}, "input 'x' has 1 values, want 2 for shape [1, 2]"),
        ({"data": [[1], 2]}, "input 'x' is ragged"),
        ({"data": ...}, "input 'x' has 0 of data, binary_data_size and shared_memory_region, want one of them"),
        ({"parameters": {"binary_data_size": 0}}, "input 'x' has 2 of data"),
        ({"data": ..., "parameters": {"binary_data_size": 9}}, "is 9, want bytes from 0 to 0"),
        ({"data": ..., "parameters": {"binary_data_size": "1"}}, "is '1', want bytes"),
        ({"data": ["true", 1]}, "input 'x' contains '\"true\",1]', want numbers in nested lists"),
        ({"data": [True, 1]}, "input 'x' contains 'true,1]', want numbers"),
        ({"data": [1e39, 1]}, "input 'x' has 1e+39, which is outside FP32"),
        ({"datatype": "BOOL", "data": [1, 0]}, "want true or false in nested lists"),
        ({"datatype": "INT8", "data": [1, 128]}, "input 'x' has '128', which is outside INT8"),
        ({"datatype": "INT8", "data": [1, 2.5]}, "want whole ones: INT8"),
        ({"datatype": "UINT64", "data": [1, -1]}, "input 'x' has '-1', which is outside UINT64"),
        ({"datatype": "FP16"}, "input 'x' is FP16, which JSON has no numbers for"),
        ({"datatype": "FLOAT"}, "input 'x' has datatype 'FLOAT', want one of BOOL, FP32"),
        ({"datatype": "BYTES", "data": ["a", "b"]}, 'want a file in Base64 each'),
        ({"datatype": "BYTES", "data": [{"b64": "?"}, {"b64": ""}]}, "want a file in Base64 each"),
        ({"shape": [1, -2]}, "input 'x' has 2 values"),
        ({"shape": [0, 2**70], "data": []}, "input 'x' contains an empty list"),
        ({"parameters": {"sequence_id": 4}}, "parameter 'sequence_id' of input 'x' is not offered"),
        ({"parameters": {"size": 2**70}}, "want a number of 64 bits"),
        ({"name": "\ud800"}, "surrogate pair"),
        ({"shape": ["1"]}, "Expected `int`, got `str` - at `$.inputs[0].shape[0]`"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(body_of(**changes))
    assert said in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"inputs": 4}', b"\xff\xfe", b"[" * 10**5, b'{"inputs":[],"id":"\\ud800"}', b'{"inputs":[]}x'],
    ids=repr,
)  # fmt: skip
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read(body)


@pytest.mark.parametrize("depth", [100, 10**5])
def test_deeply_nested_data_is_refused(depth: int) -> None:
    data = b'"data": ' + b"[" * depth + b"1" + b"]" * depth
    with pytest.raises(BadRequest, match="deep"):
        read(body_of(data=...).replace(b'"datatype"', data + b', "datatype"'))


def test_bytes_that_no_input_wants_are_refused() -> None:
    body = body_of()
    with pytest.raises(BadRequest, match="3 bytes follow the binary inputs, want none"):
        read(body + b"abc", len(body))


@pytest.mark.parametrize("header", [b"-1", b"1e3", b"", b"11", b"0x5", b"9223372036854775808", b" 5"])
def test_length_of_json_must_be_within_the_body(header: bytes) -> None:
    with pytest.raises(BadRequest, match="want bytes of JSON from 0 to 10"):
        json_length(header, bytes(10))


def test_length_of_json_is_the_whole_body_without_a_header() -> None:
    assert json_length(None, bytes(10)) == 10
    assert json_length(b"10", bytes(10)) == 10
    assert json_length(b"0", bytes(10)) == 0


def metadata(*inputs: tuple[str, str, list[int]], task: str = "") -> pb.ModelMetadataResponse:
    kind = pb.ModelMetadataResponse.TensorMetadata
    specs = [kind(name=name, datatype=datatype, shape=shape) for name, datatype, shape in inputs]
    return pb.ModelMetadataResponse(inputs=specs, properties={"task": task} if task else {})


@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [([-1, 4], 16, [1, 4]), ([-1, 3, -1], 24, [1, 3, 2]), ([4], 16, [4]), ([2, -1], 16, [2, 2]), ([], 4, [])],
)
def test_raw_request_has_the_shape_that_its_size_says(shape: list[int], size: int, wanted: list[int]) -> None:
    found = raw_request("m", "2", bytes(size), metadata(("x", "FP32", shape)))
    assert (found.inputs[0].name, list(found.inputs[0].shape)) == ("x", wanted)
    assert list(found.raw_input_contents) == [bytes(size)]


def test_raw_request_of_a_picture_is_its_file() -> None:
    of_image = metadata(("image", "UINT8", [-1, 8, 8, 1]), task="classification")
    found = raw_request("m", "", b"\xff\xd8\xff...", of_image)
    assert (found.inputs[0].datatype, list(found.inputs[0].shape)) == ("BYTES", [1])
    assert found.raw_input_contents[0] == b"\6\0\0\0\xff\xd8\xff..."
    assert raw_request("m", "", bytes(64), of_image).inputs[0].datatype == "UINT8"


def test_raw_request_that_is_ambiguous_is_refused() -> None:
    with pytest.raises(BadRequest, match="has 2 inputs, want JSON"):
        raw_request("m", "", b"", metadata(("a", "FP32", [1]), ("b", "FP32", [1])))
    with pytest.raises(BadRequest, match="want JSON that says which"):
        raw_request("m", "", b"", metadata(("a", "FP32", [-1, -1, -1])))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_json_has_not_are_refused(value: float) -> None:
    output = pb.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=[1])
    answer = pb.ModelInferResponse(outputs=[output], raw_output_contents=[np.float32(value).tobytes()])
    with pytest.raises(BadRequest, match="output 'y' has numbers that are not finite: ask for binary data"):
        response(answer, ALL_JSON)
    assert response(answer, Binary({}, others=True))[1] is not None


def test_errors_are_those_of_tensors() -> None:
    with pytest.raises(BadTensor):
        read(body_of(data=[1]))
