import numpy as np
import pytest

from convoy.service.bench import oip
from convoy.service.errors import BadConfig
from convoy.service.pb import inference_pb2 as pb


def asked(*inputs, shapes=None, batch=2):
    kind = pb.ModelMetadataResponse.TensorMetadata
    tensors = [kind(name=name, datatype=datatype, shape=shape) for name, datatype, shape in inputs]
    return oip.tensor_model(pb.ModelMetadataResponse(inputs=tensors), "net", 1.0, shapes or {}, batch)


def sent(model, numbers):
    workload = oip.workload(model, 0, seed=1)
    return [pb.ModelInferRequest.FromString(workload.body(number)) for number in numbers]


def values(request, place, dtype):
    tensor = request.inputs[place]
    return np.frombuffer(request.raw_input_contents[place], dtype).reshape(tensor.shape)


@pytest.mark.parametrize(
    ("datatype", "dtype", "least", "most"),
    [
        ("UINT8", np.uint8, 0, 255),
        ("INT8", np.int8, 0, 127),
        ("INT64", np.int64, 0, 127),
        ("UINT32", np.uint32, 0, 127),
        ("FP16", np.float16, 0, 1),
        ("FP32", np.float32, 0, 1),
        ("FP64", np.float64, 0, 1),
        ("BOOL", np.bool_, 0, 1),
    ],
)
def test_tensors_are_random_and_of_the_type_and_shape_that_the_metadata_tell(datatype, dtype, least, most):
    first, second = sent(asked(("x", datatype, (-1, 30, 40))), [0, 1])
    found = values(first, 0, dtype)
    assert (found.shape, first.inputs[0].datatype, first.model_name) == ((2, 30, 40), datatype, "net")
    assert least <= found.min() < found.max() <= most
    assert found.max() > 0.9 * most
    assert first.raw_input_contents != second.raw_input_contents


def test_shapes_that_are_given_are_sent_in_turn_and_their_first_sides_are_the_images():
    model = asked(
        ("a", "FP32", (-1, -1)), ("b", "INT64", (3,)), shapes={"a": [(1, 5), (4, 7), (2, 2)]}
    )  # b has no free side
    found = sent(model, range(6))
    assert [tuple(request.inputs[0].shape) for request in found] == [(1, 5), (4, 7), (2, 2)] * 2
    assert {tuple(request.inputs[1].shape) for request in found} == {(3,)}
    assert [oip.workload(model, 0, 1).images(number) for number in range(4)] == [1, 4, 2, 1]


def test_fixed_first_side_is_one_image():
    assert oip.workload(asked(("x", "FP32", (8, 3))), 0, 1).images(0) == 1


def test_large_requests_do_not_fill_the_memory(monkeypatch):
    model = asked(("x", "UINT8", (-1, 100)), shapes={"x": [(1, 100), (2, 100)]})
    assert len({oip.workload(model, 0, 1).body(number) for number in range(64)}) == 16
    monkeypatch.setattr(oip, "_BYTES", 400)
    workload = oip.workload(model, 0, seed=1)
    assert len({workload.body(number) for number in range(64)}) == 2  # still one of each shape


@pytest.mark.parametrize(
    ("tensor", "shapes", "said"),
    [
        (("x", "FP32", (-1, -1, 3)), {}, "input 'x' has free sides (-1x-1x3): set them, as in --shape x:2x224x3"),
        (("x", "FP32", (-1, 4)), {"x": [(1, 5)]}, "--shape x:1x5 does not fit -1x4"),
        (("x", "FP32", (-1, 4)), {"x": [(1, 4, 4)]}, "--shape x:1x4x4 does not fit -1x4"),
        (("x", "BYTES", (-1,)), {}, "input 'x' is BYTES, want one of BOOL, UINT8"),
    ],
)
def test_shape_that_does_not_fit_is_refused(tensor, shapes, said):
    with pytest.raises(BadConfig) as caught:
        asked(tensor, shapes=shapes)
    assert said in caught.value.message
