"""KServe's predictions, on methods of gRPC whose answers are known."""

import json
from base64 import b64decode, b64encode
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.config import LimitsConfig
from convoy.service.dtypes import DATATYPES, DTYPES, NAMES
from convoy.service.errors import BadImage, BadRequest, BadTensor, ConvoyError, NotOffered, QueueFull, UnknownModel
from convoy.service.frontend.rest.predict import Predictions
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service.frontend.rest.asking import Methods, ask, value

Inputs = dict[str, str]  # name: dtype


def config(inputs: Inputs, rows: int = 4, outputs: tuple[str, ...] = (), images: bool = False) -> Any:
    """ModelConfig of a model."""
    types = inference_pb2.DataType
    form = inference_pb2.ModelInput.FORMAT_NHWC if images else inference_pb2.ModelInput.FORMAT_NONE
    answer = inference_pb2.ModelConfigResponse()
    answer.config.max_batch_size = rows
    for name, dtype in inputs.items():
        answer.config.input.add(name=name, data_type=types.Value(f"TYPE_{DATATYPES[dtype]}"), format=form)
    for name in outputs:
        answer.config.output.add(name=name)
    return lambda request: answer


def arrays_of(request: Any) -> dict[str, np.ndarray]:
    return {
        tensor.name: np.frombuffer(raw, DTYPES[NAMES[tensor.datatype]]).reshape(tuple(tensor.shape))
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def answered(outputs: dict[str, np.ndarray]) -> inference_pb2.ModelInferResponse:
    response = inference_pb2.ModelInferResponse()
    for name, values in outputs.items():
        response.outputs.add(name=name, datatype=DATATYPES[values.dtype.name], shape=values.shape)
        response.raw_output_contents.append(values.tobytes())
    return response


def echo(request: Any) -> inference_pb2.ModelInferResponse:
    """Every input is an output."""
    return answered(arrays_of(request))


def predict(instances: Any, inputs: Inputs, rows: int = 4, infer: Any = echo, **limits: int) -> tuple[list[Any], Any]:
    """The requests of ModelInfer, and the predictions."""
    methods = Methods(ModelConfig=config(inputs, rows), ModelInfer=infer)
    body = instances if isinstance(instances, bytes) else json.dumps({"instances": instances}).encode()
    response = ask(Predictions(LimitsConfig(**limits)).predict, methods, body, model="m", version="3")
    answer = value(response)
    assert list(answer) == ["predictions"]
    assert (methods.asked[0].name, methods.asked[0].version) == ("m", "3")
    return methods.asked[1:], answer["predictions"]


def refused(kind: type[ConvoyError], instances: Any, inputs: Inputs, **more: Any) -> str:
    with pytest.raises(kind) as error:
        predict(instances, inputs, **more)
    assert type(error.value) is kind
    return error.value.message


def test_lists_are_the_rows_of_one_tensor():
    (request,), predictions = predict([[1, 2.5], [-3, 4]], {"x": "float32"})
    assert (request.model_name, request.model_version) == ("m", "3")
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", "FP32", [2, 2])
    assert predictions == [[1.0, 2.5], [-3.0, 4.0]]


def test_objects_have_a_list_for_each_input():
    instances = [{"b": [1, 2], "a": 0.5}, {"a": 0.25, "b": [3, 4]}]
    (request,), predictions = predict(instances, {"a": "float32", "b": "int64"})
    assert {name: (values.shape, values.dtype) for name, values in arrays_of(request).items()} == {
        "a": ((2,), np.float32),
        "b": ((2, 2), np.int64),
    }
    assert predictions == instances


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (5, [5]), (9, [5])])
def test_more_instances_than_a_run_takes_are_several_runs_in_order(rows, sizes):
    instances = [[number, -number] for number in range(5)]
    requests, predictions = predict(instances, {"x": "int32"}, rows)
    assert [request.inputs[0].shape[0] for request in requests] == sizes
    assert predictions == instances


def test_a_model_without_batch_dimension_runs_each_instance_alone():
    instances = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    requests, predictions = predict(instances, {"x": "float32"}, rows=0)
    assert [list(request.inputs[0].shape) for request in requests] == [[2, 2], [2, 2]]
    assert predictions == instances


@given(st.sampled_from(sorted(DTYPES)), st.integers(1, 6), st.integers(1, 3), st.integers(0, 3), st.data())
def test_every_tensor_returns_as_it_was_sent(name, instances, side, rows, data):
    kind = np.dtype(name).kind
    element = {
        "b": st.booleans(),
        "f": st.floats(width=16, allow_nan=False, allow_infinity=False),
        "i": st.integers(-128, 127),
        "u": st.integers(0, 255),
    }[kind]
    lists = data.draw(st.lists(st.lists(element, min_size=side, max_size=side), min_size=instances, max_size=instances))
    _, predictions = predict(lists, {"x": name}, rows)
    assert np.array_equal(np.array(predictions, name), np.array(lists, name))
    _, predictions = predict([{"x": each} for each in lists], {"x": name}, rows)
    assert np.array_equal(np.array(predictions, name), np.array(lists, name))


def test_a_large_tensor_is_read_and_written_in_threads():
    values = np.random.default_rng(0).random((3, 200, 300)).astype(np.float32)
    (request,), predictions = predict(values.tolist(), {"x": "float32"})
    assert np.array_equal(arrays_of(request)["x"], values)
    assert np.array_equal(np.array(predictions, np.float32), values)


@pytest.mark.parametrize(
    ("kind", "instances", "inputs", "message"),
    [
        (BadTensor, [[1], [2, 3]], {"x": "float32"}, "instances is ragged: lists in its element 1 differ"),
        (BadTensor, [[1], ["a"]], {"x": "float32"}, "instances[0]: expected `object`, got `array`"),
        (BadTensor, [[1], [None]], {"x": "float32"}, "instances contains 'null]]', want numbers"),
        (BadTensor, [1.5], {"x": "int32"}, "instances has numbers with a fraction or an exponent, want whole"),
        (BadTensor, [[1], [2]], {"x": "int32", "y": "int32"}, "instances are lists, want an object with ['x', 'y']"),
        (BadTensor, [{"x": 1}], {"x": "int32", "y": "int32"}, "instances[0] has ['x'], want ['x', 'y']"),
        (BadTensor, [{"x": 1}, {"z": 1}], {"x": "int32"}, "instances[1] has ['z'], want ['x']"),
        (BadTensor, [{"x": [1]}, {"x": [1, 2]}], {"x": "int8"}, "instances[1].x has shape [2], instances[0].x has [1]"),
        (BadTensor, [{"x": [1]}, {"x": [[]]}], {"x": "int8"}, "instances[1].x contains an empty list"),
        (BadTensor, [{"x": {"y": 1}}], {"x": "int8"}, "instances[0].x contains '{\"y\":1}', want numbers"),
        (BadTensor, [{"b64": "QQ=="}], {"x": "int8"}, "instances contain b64, but the model accepts no files"),
        (BadRequest, [], {"x": "int8"}, "request has 0 instances, want 1 to 3"),
        (BadRequest, [1, 2, 3, 4], {"x": "int8"}, "request has 4 instances, want 1 to 3"),
        (BadRequest, [{"x": 1}] * 4, {"x": "int8"}, "request has 4 instances, want 1 to 3"),
        (BadRequest, [{"x": 1}] * 40, {"x": "int8"}, "request has more than 3 instances, want 1 to 3"),
        (BadRequest, 5, {"x": "int8"}, "instances is no list, want one with an element for each instance"),
        (BadRequest, {"x": [1]}, {"x": "int8"}, "instances: expected `array`, got `object`"),
        (BadRequest, "abc", {"x": "int8"}, "instances: expected `array`, got `str`"),
        (BadRequest, [[1], {"x": [1]}], {"x": "int8"}, "instances[0]: expected `object`, got `array`"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_instances_that_are_no_tensors_are_refused(kind, instances, inputs, message):
    kind = BadRequest if "expected" in message else kind
    assert refused(kind, instances, inputs, max_images=3).startswith(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"inputs": [[1]]}', "request body has inputs, TensorFlow Serving's columnar form, which is not offered"),
        (b'{"inputs": [[1]], "instances": [[1]]}', "request body has inputs, TensorFlow Serving's columnar form"),
        (b'{"signature_name": "x", "instances": []}', "request body: object contains unknown field `signature_name`"),
        (b"{}", 'request body has no instances, want {"instances": [..]}'),
        (b"", "request body is not JSON: "),
        (b'{"instances": [1,]}', "request body is not JSON: "),
        (b'{"instances": [NaN]}', "request body is not JSON: "),
        (b'{"instances": [01]}', "request body is not JSON: "),
        (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "request body is nested too deeply"),
        (b'{"instances": [' + b'{"x":' * 100_000, "request has more than 256 instances, want 1 to 256"),
        (b'{"instances": ' + b"[" * 500 + b"1" + b"]" * 500 + b"}", "instances is nested 500 deep, want at most 9"),
        (b'{"instances": [' + b"0," * 100_000 + b"0]}", "request has 100001 instances, want 1 to 256"),
        (b'{"instances": ["\xff"]}', "instances[0]: expected `object`, got `str`"),
        (b"\xff", "request body is not JSON"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_body_without_instances_is_refused(body, message):
    with pytest.raises(BadRequest) as error:
        predict(body, {"x": "float32"})
    assert error.value.message.startswith(message)
    assert "\n" not in error.value.message


@given(st.binary(max_size=60), st.text('[]{}":,0 .e-xb64trufalsn', max_size=60))
def test_no_body_ends_otherwise_than_in_predictions_or_a_refusal(noise, text):
    for body in (noise, b'{"instances": ' + noise + b"}", b'{"instances": ' + text.encode() + b"}"):
        with suppress(BadRequest):
            predict(body, {"x": "float32"})


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_outputs_that_json_cannot_express_are_refused(wrong):
    def infer(request: Any) -> Any:
        return answered({"y": np.array([[1, wrong]], np.float32)})

    message = refused(BadRequest, [[1]], {"x": "float32"}, infer=infer)
    assert message.startswith("output 'y' has NaN or infinite values, which JSON cannot express")


def test_one_failing_run_fails_the_request():
    def infer(request: Any) -> Any:
        return QueueFull("full") if arrays_of(request)["x"][0] == 2 else echo(request)

    assert refused(QueueFull, [0, 1, 2, 3], {"x": "int8"}, rows=1, infer=infer) == "full"


def test_an_unknown_model_is_refused_before_its_instances_are_looked_at():
    methods = Methods(ModelConfig=lambda request: UnknownModel("unknown"))
    with pytest.raises(UnknownModel):
        ask(Predictions(LimitsConfig()).predict, methods, b"nonsense")


def classified(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    response = pb.ClassifyResponse()
    for image in request.images:
        if image.encoded == b"bad":
            response.results.add(error=pb.ImageError(code=3, reason="BAD_IMAGE", message="image is bad"))
        else:
            label = pb.Label(index=len(image.encoded), name="x", probability=0.3)
            response.results.add(classification=pb.Classification(labels=[label]))
    return response


def segmented(request: pb.SegmentRequest) -> pb.SegmentResponse:
    assert request.format == pb.MASK_FORMAT_PNG
    counts = [pb.ClassPixels(class_index=index, name=name, pixels=index + 1) for index, name in enumerate("aab")]
    return pb.SegmentResponse(
        results=[
            pb.SegmentResult(segmentation=pb.Segmentation(mask=b"png of " + image.encoded, class_pixels=counts))
            for image in request.images
        ]
    )


def files(instances: Any, output: str = "probabilities") -> tuple[Any, list[Any]]:
    """The request for images, and the predictions."""
    of_model = config({"image": "uint8"}, 4, (output,), images=True)
    methods = Methods(ModelConfig=of_model, Classify=classified, Segment=segmented, ModelInfer=echo)
    body = json.dumps({"instances": instances}).encode()
    response = ask(Predictions(LimitsConfig(max_images=3)).predict, methods, body, model="m", version="3")
    return methods.asked[1], value(response)["predictions"]


def b64(data: bytes) -> dict[str, str]:
    return {"b64": b64encode(data).decode()}


def test_files_are_classified():
    request, predictions = files([b64(b"1"), {"image_bytes": b64(b"22")}, {"image": b64(b"333")}])
    assert [image.encoded for image in request.images] == [b"1", b"22", b"333"]
    assert (request.model, request.version, request.top_k) == ("m", 3, 0)
    assert predictions == [{"labels": [{"index": count, "name": "x", "probability": 0.3}]} for count in (1, 2, 3)]


def test_files_are_segmented():
    _, predictions = files([b64(b"one"), b64(b"two")], "mask")
    assert [b64decode(each["mask_png"]["b64"]) for each in predictions] == [b"png of one", b"png of two"]
    assert predictions[0]["class_pixels"] == {"a": 3, "b": 3}  # two classes have one name


def test_a_model_for_images_accepts_its_tensor_too():
    request, predictions = files([[[1, 2], [3, 4]]])
    assert list(request.inputs[0].shape) == [1, 2, 2]
    assert predictions == [[[1, 2], [3, 4]]]


def test_one_failing_file_fails_the_request():
    with pytest.raises(BadImage) as error:
        files([b64(b"good"), b64(b"bad"), b64(b"bad")])
    assert error.value.message == "instances[1]: image is bad"


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([{"b64": "Q"}], "instances[0].b64 is not base64"),
        ([{"b64": "QQ=="}, {"image": {"b64": "=="}}], "instances[1].image.b64 is not base64"),
        ([{"b64": "QQ==", "image": {"b64": ""}}], "instances[0] has 2 files, want one"),
        ([{"b64": "QQ=="}, {}], "instances[1] has 0 files, want one"),
        ([{"b64": "QQ=="}, [[1]]], "instances[1]: expected `object`, got `array`"),
        ([{"b64": 5}], "instances[0].b64: expected `str`, got `int`"),
        ([{"picture": {"b64": ""}}], "instances[0]: object contains unknown field `picture`"),
        ([{"b64": ""}] * 4, "request has 4 instances, want 1 to 3"),
    ],
)
def test_instances_that_are_no_files_are_refused(instances, message):
    with pytest.raises(BadRequest) as error:
        files(instances)
    assert error.value.message.startswith(message)


@pytest.mark.parametrize("headers", [{"content_type": "application/cloudevents+json"}, {"ce_specversion": "1.0"}])
def test_cloud_events_are_not_offered(headers):
    with pytest.raises(NotOffered):
        ask(Predictions(LimitsConfig()).predict, Methods(), b"{}", **headers)


def test_explanations_are_not_offered():
    with pytest.raises(NotOffered):
        ask(Predictions(LimitsConfig()).explain, Methods(), b"{}")


def test_predictions_have_no_parameters():
    with pytest.raises(BadRequest, match="query parameter 'top_k' is unknown, want none"):
        ask(Predictions(LimitsConfig()).predict, Methods(), b"{}", "top_k=3")
