"""The Open Inference Protocol over a real server: tensors in, tensors out, and what clients ask about models."""

from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from convoy.service import metadata
from convoy.service.pb import inference_pb2 as pb
from tests.service import networks
from tests.service.calls import infer_request, method, outputs, reason

Output = pb.ModelInferRequest.InferRequestedOutputTensor


@pytest.fixture
def infer(channel: grpc.Channel) -> Any:
    return method(channel, "ModelInfer")


def test_a_file_without_metadata_serves_its_tensors_as_they_are(infer: Any) -> None:
    values = np.arange(20, dtype=np.float32).reshape(5, 4)
    response = infer(infer_request("doubler", values))
    assert (response.model_name, response.model_version, response.id) == ("doubler", "1", "17")
    found = outputs(response)
    np.testing.assert_array_equal(found["y"], values * 2)
    np.testing.assert_array_equal(found["total"], values.sum(1, keepdims=True))


def test_values_in_contents_are_as_good_as_raw_ones(infer: Any) -> None:
    request = infer_request("doubler", np.zeros((1, 4), np.float32))
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    np.testing.assert_array_equal(outputs(infer(request))["y"], [[2, 4, 6, 8]])


def test_a_file_of_fixed_batch_runs_one_request_at_a_time(infer: Any, channel: grpc.Channel) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(outputs(infer(infer_request("triple", values)))["y"], values * 2)
    config = method(channel, "ModelConfig")(pb.ModelConfigRequest(name="triple")).config
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [3, 4]
    with pytest.raises(grpc.RpcError, match="'x' has shape"):
        infer(infer_request("triple", values[:2]))


def test_an_output_whose_size_nobody_knows_beforehand_comes_whole(infer: Any) -> None:
    for length in (1, 7, 100_000):
        values = np.random.default_rng(length).normal(size=length).astype(np.float32)
        np.testing.assert_array_equal(
            outputs(infer(infer_request("compressor", values)))["positive"], values[values > 0]
        )


def test_an_image_model_answers_tensors_too_in_any_batch(infer: Any) -> None:
    images = np.random.default_rng(1).integers(0, 256, (9, networks.SIDE, networks.SIDE, 1), dtype=np.uint8)
    found = outputs(infer(infer_request("letters", images, "image", "UINT8")))["probabilities"]
    logits = images.reshape(9, -1).astype(np.float32) @ networks.classifier_weights()
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), atol=1e-5)


def test_concurrent_requests_of_several_rows_ride_together_and_stay_apart(infer: Any) -> None:
    calls = []
    for seed in range(60):
        values = np.random.default_rng(seed).normal(size=(1 + seed % 5, 4)).astype(np.float32)
        calls.append((values, infer.future(infer_request("doubler", values))))
    for values, call in calls:
        np.testing.assert_array_equal(outputs(call.result())["y"], values * 2)


def test_only_the_outputs_asked_for_come_in_the_order_asked_for(infer: Any) -> None:
    request = infer_request("doubler", np.ones((2, 4), np.float32))
    request.outputs.extend([Output(name="total"), Output(name="y")])
    assert [tensor.name for tensor in infer(request).outputs] == ["total", "y"]
    del request.outputs[1]
    assert list(outputs(infer(request))) == ["total"]


def test_a_model_of_tensors_takes_any_length_of_its_free_axis(infer: Any) -> None:
    for length in (1, 40, 700):
        values = np.random.default_rng(length).normal(size=(4, 3, length)).astype(np.float32)
        found = outputs(infer(infer_request("waves", values, "waveform")))["probabilities"]
        wanted = np.exp(values.mean(2))
        np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), atol=1e-6)


def test_ranked_labels_come_where_classification_is_asked_for(infer: Any) -> None:
    image = np.full((1, networks.SIDE, networks.SIDE, 1), 200, np.uint8)
    request = infer_request("letters", image, "image", "UINT8")
    output = Output(name="probabilities")
    output.parameters["classification"].int64_param = 3
    request.outputs.append(output)
    response = infer(request)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [1, 3])
    raw, texts = response.raw_output_contents[0], []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    # Pixels 60 to 63 count for classes 0 to 3 once more: those four share the first place.
    assert [text.split(":")[1:] for text in texts] == [["0", "a"], ["1", "b"], ["2", "c"]]


def test_stage_timings_and_batch_size_come_as_parameters(infer: Any) -> None:
    parameters = infer(infer_request("doubler", np.ones((3, 4), np.float32))).parameters
    assert parameters["convoy_batch_size"].int64_param == 3
    stages = ("receive", "preprocess", "queue", "gather", "run", "scatter", "postprocess")
    total = sum(parameters[f"convoy_{stage}_seconds"].double_param for stage in stages)
    assert total == pytest.approx(parameters["convoy_total_seconds"].double_param)


@pytest.mark.parametrize(("name", "number"), [("timeout", 0), ("timeout", 2**63 - 1), ("priority", 0), ("priority", 9)])
@pytest.mark.parametrize("field", ["int64_param", "uint64_param"])
def test_timeout_of_zero_is_none_and_any_priority_is_answered(infer: Any, name: str, number: int, field: str) -> None:
    request = infer_request("doubler", np.ones((3, 4), np.float32))
    setattr(request.parameters[name], field, number)
    assert len(infer(request).outputs) == 2


def test_the_timeout_parameter_is_a_deadline_in_microseconds(infer: Any) -> None:
    request = infer_request("doubler", np.ones((3, 4), np.float32))
    request.parameters["timeout"].int64_param = 1
    with pytest.raises(grpc.RpcError) as caught:
        infer(request)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    request.parameters["timeout"].int64_param = 10_000_000
    assert infer(request)


def test_a_timeout_of_zero_is_none(infer: Any) -> None:
    request = infer_request("doubler", np.ones((3, 4), np.float32))
    request.parameters["timeout"].int64_param = 0
    assert outputs(infer(request))["y"].shape == (3, 4)
    request.parameters["timeout"].uint64_param = 2**64 - 1
    request.parameters["priority"].int64_param = 2
    assert outputs(infer(request))["y"].shape == (3, 4)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("timeout", {"string_param": "5"}, "parameter 'timeout' has string_param, want int64_param"),
        ("timeout", {"double_param": 0.5}, "parameter 'timeout' has double_param, want int64_param"),
        ("timeout", {"int64_param": -3}, "parameter 'timeout' is -3 microseconds, want 0 for none, or more"),
        ("timeout", {}, "parameter 'timeout' has no value, want int64_param"),
        ("priority", {"bool_param": True}, "parameter 'priority' has bool_param, want int64_param"),
    ],
)
def test_a_parameter_of_another_type_is_named(infer: Any, name: str, value: dict[str, Any], words: str) -> None:
    request = infer_request("doubler", np.ones((3, 4), np.float32))
    request.parameters[name].CopyFrom(pb.InferParameter(**value))
    with pytest.raises(grpc.RpcError) as caught:
        infer(request)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"int64_param": 0}, "output 'y' requests 0 classes, want 1 or more"),
        ({"string_param": "3"}, "parameter 'classification' has string_param, want int64_param"),
    ],
)
def test_a_number_of_classes_is_a_number(infer: Any, value: dict[str, Any], words: str) -> None:
    request = infer_request("doubler", np.ones((3, 4), np.float32))
    request.outputs.append(Output(name="y", parameters={"classification": pb.InferParameter(**value)}))
    with pytest.raises(grpc.RpcError) as caught:
        infer(request)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, words)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_every_service_in_both_versions(channel: grpc.Channel, version: str) -> None:
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (listing,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in listing.list_services_response.service}
    assert {"convoy.v1.Vision", "inference.GRPCInferenceService", "grpc.reflection.v1.ServerReflection"} <= names
    questions = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in sorted(names)]
    for answer in ask(iter(questions)):
        assert answer.file_descriptor_response.file_descriptor_proto


def wrong(**changes: Any) -> pb.ModelInferRequest:
    request = infer_request("doubler", np.ones((2, 4), np.float32))
    for name, value in changes.items():
        if name == "shape":
            del request.inputs[0].shape[:]
            request.inputs[0].shape.extend(value)
        elif name == "raw":
            del request.raw_input_contents[:]
            request.raw_input_contents.extend(value)
        else:
            setattr(request.inputs[0], name, value)
    return request


def both() -> pb.ModelInferRequest:
    request = wrong()
    request.inputs[0].contents.fp32_contents.extend([1.0] * 8)
    return request


def twice() -> pb.ModelInferRequest:
    request = wrong()
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    return request


def odd_output(name: str = "", parameter: str = "") -> pb.ModelInferRequest:
    request = wrong()
    output = Output(name=name or "y")
    if parameter:
        output.parameters[parameter].string_param = "region"
    request.outputs.append(output)
    return request


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        pytest.param(wrong(name="z"), "input 'z' is unknown", id="name"),
        pytest.param(wrong(datatype="FP64"), "input 'x' has datatype 'FP64', want 'FP32'", id="dtype"),
        pytest.param(wrong(shape=[8]), "input 'x' has rank 1", id="rank"),
        pytest.param(wrong(shape=[2, 5]), "input 'x' has shape [2, 5], want [-1, 4]", id="side"),
        pytest.param(wrong(shape=[-1, 4]), "input 'x' has shape [-1, 4]", id="negative"),
        pytest.param(wrong(shape=[0, 4], raw=[b""]), "input 'x' has shape [0, 4]", id="zero"),
        pytest.param(wrong(shape=[2**62, 4]), "input 'x' has 32 bytes", id="overflow"),
        pytest.param(wrong(raw=[b"123"]), "input 'x' has 3 bytes, want 32", id="bytes"),
        pytest.param(wrong(raw=[b"1", b"2"]), "raw_input_contents has 2 entries for 1 inputs", id="entries"),
        pytest.param(wrong(raw=[]), "input 'x' has 0 fp32_contents, want 8", id="nothing"),
        pytest.param(both(), "input 'x' has contents as well as raw_input_contents", id="both"),
        pytest.param(twice(), "input 'x' occurs twice", id="twice"),
        pytest.param(pb.ModelInferRequest(model_name="doubler"), "input 'x' is missing", id="missing"),
        pytest.param(odd_output("nothing"), "output 'nothing' is unknown", id="output"),
        pytest.param(odd_output("", "shared_memory_region"), "shared memory", id="shared-memory"),
        pytest.param(
            infer_request("doubler", np.zeros((33, 4), np.float32)),
            "input 'x' has a batch of 33, want 1 to 32: max_batch_size",
            id="batch",
        ),
        pytest.param(
            infer_request("waves", np.zeros((1, 2, 40), np.float32), "waveform"),
            "input 'waveform' has shape [1, 2, 40], want [-1, 3, -1]",
            id="axis",
        ),
        pytest.param(
            infer_request("colours", np.zeros((1, 6, 8, 3), np.uint8), "image", "UINT8"),
            "input 'image' has sides [6, 8], want multiples of 4",
            id="multiple",
        ),
    ],
)
def test_a_wrong_tensor_is_an_invalid_argument_that_names_it(
    infer: Any, request_: pb.ModelInferRequest, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()
    assert reason(caught.value) == "BAD_TENSOR"


@pytest.mark.parametrize("name", ["ModelInfer", "ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize(
    ("model", "version", "code"),
    [("nobody", "", "NOT_FOUND"), ("doubler", "7", "NOT_FOUND"), ("doubler", "one", "INVALID_ARGUMENT")],
)
def test_an_unknown_model_or_version_is_not_found(
    channel: grpc.Channel, name: str, model: str, version: str, code: str
) -> None:
    kind = getattr(pb, f"{name}Request")
    request = (
        kind(model_name=model, model_version=version) if name == "ModelInfer" else kind(name=model, version=version)
    )
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, name)(request)
    assert caught.value.code().name == code


def test_live_ready_and_metadata(channel: grpc.Channel) -> None:
    assert method(channel, "ServerLive")(pb.ServerLiveRequest()).live
    assert method(channel, "ServerReady")(pb.ServerReadyRequest()).ready
    ready = method(channel, "ModelReady")
    assert ready(pb.ModelReadyRequest(name="letters")).ready
    assert ready(pb.ModelReadyRequest(name="letters", version="1")).ready
    assert not ready(pb.ModelReadyRequest(name="letters", version="2")).ready
    assert not ready(pb.ModelReadyRequest(name="nobody")).ready
    server = method(channel, "ServerMetadata")(pb.ServerMetadataRequest())
    assert server.name == "convoy"
    assert "statistics" in server.extensions


def test_model_metadata_and_configuration_agree(channel: grpc.Channel) -> None:
    found = method(channel, "ModelMetadata")(pb.ModelMetadataRequest(name="colours"))
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in found.inputs] == [
        ("image", "UINT8", [-1, -1, -1, 3])
    ]
    assert [tensor.name for tensor in found.outputs] == ["mask", "confidence"]
    assert list(found.versions) == ["1"]
    assert found.properties["provider"] == "CPUExecutionProvider"
    document = metadata.decode(dict(found.properties))
    assert document is not None
    assert document.labels == ["red", "green", "blue"]
    config = method(channel, "ModelConfig")(pb.ModelConfigRequest(name="colours")).config
    assert config.max_batch_size == 32
    assert list(config.input[0].dims) == [-1, -1, 3]
    assert config.input[0].data_type == pb.TYPE_UINT8


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("letters", pb.ModelInput.FORMAT_NHWC),
        ("colours", pb.ModelInput.FORMAT_NHWC),
        ("waves", pb.ModelInput.FORMAT_NONE),
        ("doubler", pb.ModelInput.FORMAT_NONE),
    ],
)
def test_configuration_says_how_pixels_lie_where_a_model_takes_images(
    channel: grpc.Channel, model: str, wanted: pb.ModelInput.Format
) -> None:
    config = method(channel, "ModelConfig")(pb.ModelConfigRequest(name=model)).config
    assert [tensor.format for tensor in config.input] == [wanted]
    assert pb.ModelInput.DESCRIPTOR.fields_by_name["format"].number == 3


def test_metadata_of_a_model_of_tensors_carry_its_document(channel: grpc.Channel) -> None:
    found = method(channel, "ModelMetadata")(pb.ModelMetadataRequest(name="waves"))
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in found.inputs] == [
        ("waveform", "FP32", [-1, 3, -1])
    ]
    document = metadata.decode(dict(found.properties))
    assert document is not None
    assert document.tensor == networks.WAVES


def test_the_index_lists_every_version(channel: grpc.Channel) -> None:
    index = method(channel, "RepositoryIndex")(pb.RepositoryIndexRequest(ready=True))
    assert {(entry.name, entry.version, entry.state) for entry in index.models} >= {("letters", "1", "READY")}


REGION = {"name": "region", "byte_size": 4}
TRACE = pb.TraceSettingRequest.SettingValue(value=["TIMESTAMPS"])
LOG = pb.LogSettingsRequest.SettingValue(uint32_param=1)


@pytest.mark.parametrize(
    ("name", "request_", "words"),
    [
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="letters"), "MODEL/VERSION/model.onnx"),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="letters"), "remove MODEL/VERSION"),
        ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(**REGION), "send tensors in the request"),
        ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(**REGION), "send tensors in the request"),
        ("TraceSetting", pb.TraceSettingRequest(settings={"trace_level": TRACE}), "times of its stages"),
        ("LogSettings", pb.LogSettingsRequest(settings={"log_verbose_level": LOG}), "server.log_level"),
    ],
)
def test_call_that_has_no_place_here_is_unimplemented_and_says_what_takes_its_place(
    channel: grpc.Channel, name: str, request_: Any, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, name)(request_)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert words in caught.value.details()
    assert reason(caught.value) == "NOT_OFFERED"


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
        ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
        ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="region")),
        ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()),
        ("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest()),
        ("TraceSetting", pb.TraceSettingRequest(model_name="letters")),
        ("TraceSetting", pb.TraceSettingRequest(settings={"trace_level": pb.TraceSettingRequest.SettingValue()})),
        ("LogSettings", pb.LogSettingsRequest()),
    ],
)
def test_call_that_undoes_nothing_succeeds(channel: grpc.Channel, name: str, request_: Any) -> None:
    assert method(channel, name)(request_).ListFields() == []


def test_twenty_methods_are_declared() -> None:
    assert len(pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods) == 20
