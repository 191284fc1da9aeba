"""Tensors of the Open Inference Protocol: what is taken, and that what is wrong is named."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from convoy.service.errors import BadRequest, BadTensor, UnknownRegion
from convoy.service.frontend.regions import Regions, open_region
from convoy.service.frontend.tensors import (
    DATATYPES,
    Wanted,
    byte_strings,
    metadata_shape,
    output_bytes,
    put_place,
    ranked,
    read,
    requested_outputs,
)
from convoy.service.metadata import Axis, Document, InputSpec, TensorInput
from convoy.service.pb import inference_pb2 as pb
from convoy.service.repository import TensorSpec, Version
from tests.service import networks

FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
PIXELS = 1 << 20


def version(*inputs: TensorSpec, outputs: Sequence[TensorSpec] = (), **fields: Any) -> Version:
    return Version(
        model="model",
        version=1,
        state="READY",
        inputs=inputs,
        outputs=tuple(outputs),
        **{"batched": True, "max_batch_size": 8} | fields,
    )


def spec(name: str, shape: Sequence[int | str], dtype: str = "float32") -> TensorSpec:
    """A side is a number, or the name of a free one."""
    return TensorSpec(
        name,
        dtype,
        tuple(side if isinstance(side, int) else None for side in shape),
        tuple(side if isinstance(side, str) else "" for side in shape),
    )


def request(*tensors: tuple[str, NDArray[Any]], raw: bool = True) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="model")
    for name, values in tensors:
        tensor = made.inputs.add(name=name, datatype=DATATYPES[values.dtype.name], shape=values.shape)
        if raw:
            made.raw_input_contents.append(values.tobytes())
        else:
            getattr(tensor.contents, FIELDS[tensor.datatype]).extend(values.reshape(-1).tolist())
    return made


def refusal(made: pb.ModelInferRequest, row: Version, max_input_pixels: int = PIXELS) -> str:
    with pytest.raises(BadTensor) as refused:
        read(made, row, max_input_pixels)
    return refused.value.message


X = spec("x", ["N", 4])
Y = spec("y", ["N", 4])
ROW = version(X, outputs=[Y])
VALUES = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize(
    ("dtype", "raw"),
    [(dtype, True) for dtype in DATATYPES] + [(dtype, False) for dtype in DATATYPES if dtype != "float16"],
)
def test_tensor_of_every_datatype_is_read_raw_or_as_contents(dtype: str, raw: bool) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    found = read(request(("x", values), raw=raw), version(spec("x", ["N", 3], dtype)), PIXELS)
    assert found.rows == 2
    assert found.arrays[0].dtype == values.dtype
    assert (found.arrays[0] == values).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_limits_of_an_integer_are_kept_in_contents(dtype: str) -> None:
    limits = np.iinfo(dtype)
    values = np.array([[limits.min, limits.max]], dtype)
    found = read(request(("x", values), raw=False), version(spec("x", ["N", 2], dtype)), PIXELS)
    assert (found.arrays[0] == values).all()


@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=6, max_side=5)))
def test_values_keep_their_places_raw_and_as_contents(values: NDArray[np.float32]) -> None:
    row = version(spec("x", [f"side {axis}" for axis in range(values.ndim)]), batched=False)
    for raw in (True, False):
        (found,) = read(request(("x", values), raw=raw), row, PIXELS).arrays
        assert found.tobytes() == values.tobytes()
        assert found.shape == values.shape


def test_inputs_come_in_the_models_order_whatever_the_requests() -> None:
    row = version(spec("first", ["N", 1]), spec("second", ["N", 2]))
    one, two = np.zeros((3, 1), np.float32), np.ones((3, 2), np.float32)
    for raw in (True, False):
        found = read(request(("second", two), ("first", one), raw=raw), row, PIXELS)
        assert [values.shape for values in found.arrays] == [(3, 1), (3, 2)]
        assert found.arrays[1].all()


def test_scalar_is_a_tensor() -> None:
    row = version(spec("x", []), batched=False)
    found = read(request(("x", np.array(7, np.float32))), row, PIXELS)
    assert found.rows == 1
    assert found.arrays[0].shape == ()
    assert found.arrays[0] == 7


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 4), ()])
def test_input_without_a_declared_shape_takes_any_rank(shape: tuple[int, ...]) -> None:
    row = version(spec("x", []), batched=False)
    assert read(request(("x", np.ones(shape, np.float32))), row, PIXELS).arrays[0].shape == shape


@pytest.mark.parametrize("shape", [(0,), (1,) * 9, (2, -1)])
def test_input_without_a_declared_shape_takes_no_empty_side_and_no_higher_rank(shape: tuple[int, ...]) -> None:
    made = request(("x", np.ones((1, 1), np.float32)))
    del made.inputs[0].shape[:]
    made.inputs[0].shape.extend(shape)
    with pytest.raises(BadTensor, match="want at most 8 sides"):
        read(made, version(spec("x", []), batched=False), PIXELS)


@pytest.mark.parametrize("name", ["?", "None", "-1", "*", "unknown"])
def test_placeholders_bind_no_sides_to_each_other(name: str) -> None:
    row = version(spec("x", [name, 2]), spec("y", [name, 3]), batched=False)
    found = read(request(("x", np.ones((5, 2), np.float32)), ("y", np.ones((7, 3), np.float32))), row, PIXELS)
    assert [values.shape[0] for values in found.arrays] == [5, 7]


def test_placeholder_binds_the_rows_of_a_batch() -> None:
    row = version(spec("x", ["?", 2]), spec("y", ["?", 3]))
    with pytest.raises(BadTensor, match="has 5"):
        read(request(("x", np.ones((5, 2), np.float32)), ("y", np.ones((7, 3), np.float32))), row, PIXELS)


def test_raw_values_share_the_memory_of_the_request() -> None:
    assert not read(request(("x", VALUES)), ROW, PIXELS).arrays[0].flags.owndata


def test_unknown_missing_and_doubled_inputs_are_named() -> None:
    assert refusal(request(("z", VALUES)), ROW) == "input 'z' is unknown, want ['x']"
    assert refusal(request(), ROW) == "input 'x' is missing, want ['x']"
    assert refusal(request(("x", VALUES), ("x", VALUES)), ROW) == "input 'x' occurs twice"
    assert len(refusal(request(("z" * 10**6, VALUES)), ROW)) < 200


@pytest.mark.parametrize("letter", ["x", "\u732b"])
@pytest.mark.parametrize("length", [1, 1000])
def test_messages_about_a_model_of_many_tensors_stay_short(letter: str, length: int) -> None:
    specs = [spec(f"{letter * length}{number}", ["N", 4]) for number in range(1000)]
    row = version(*specs, outputs=specs)
    for wrong in (request(), request(("z" * 1000, VALUES)), request(*[(specs[0].name, VALUES)] * 2)):
        assert len(refusal(wrong, row).encode()) < 350
    with pytest.raises(BadTensor) as caught:
        requested_outputs(
            pb.ModelInferRequest(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="z" * 1000)]), row
        )
    assert len(str(caught.value).encode()) < 350


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"datatype": "FP64"}, "datatype 'FP64', want 'FP32'"),
        ({"datatype": ""}, "datatype ''"),
        ({"datatype": "F" * 10**6}, "datatype 'FFFF"),
        ({"datatype": "fp32"}, "datatype 'fp32'"),
        ({"shape": [8]}, r"rank 1, want [-1, 4]"),
        ({"shape": [1, 2, 4]}, r"rank 3, want [-1, 4]"),
        ({"shape": []}, "rank 0"),
        ({"shape": [2, 5]}, r"shape [2, 5], want [-1, 4]"),
        ({"shape": [4, 2]}, r"shape [4, 2], want [-1, 4]"),
        ({"shape": [0, 4]}, r"shape [0, 4]"),
        ({"shape": [-2, 4]}, r"shape [-2, 4]"),
        ({"shape": [2, -4]}, r"shape [2, -4]"),
        ({"shape": [1, 4]}, r"has 32 bytes, want 16 for shape [1, 4]"),
        ({"shape": [3, 4]}, "has 32 bytes, want 48"),
        ({"shape": [2**62, 4]}, "bytes, want 73786976294838206464"),
    ],
)
def test_wrong_datatype_rank_and_shape_are_named(change: dict[str, Any], words: str) -> None:
    made = request(("x", VALUES))
    read(made, ROW, PIXELS)
    tensor = made.inputs[0]
    if "shape" in change:
        tensor.shape[:] = change["shape"]
    else:
        tensor.datatype = change["datatype"]
    message = refusal(made, ROW)
    assert message.startswith("input 'x' has ")
    assert words in message
    assert len(message) < 200


@pytest.mark.parametrize("nbytes", [0, 1, 31, 33, 64])
def test_wrong_byte_count_is_named(nbytes: int) -> None:
    made = request(("x", VALUES))
    made.raw_input_contents[0] = bytes(nbytes)
    assert f"input 'x' has {nbytes} bytes, want 32" in refusal(made, ROW)


def test_contents_of_another_field_or_count_are_named() -> None:
    made = request(("x", VALUES), raw=False)
    made.inputs[0].contents.fp32_contents.append(1)
    assert "input 'x' has 9 fp32_contents, want 8" in refusal(made, ROW)
    made.inputs[0].ClearField("contents")
    assert "has 0 fp32_contents" in refusal(made, ROW)
    made.inputs[0].contents.fp64_contents.extend([1.0] * 8)
    assert "has 0 fp32_contents" in refusal(made, ROW)


@pytest.mark.parametrize(
    ("dtype", "field", "lowest", "highest"),
    [
        ("int8", "int_contents", -128, 127),
        ("int16", "int_contents", -(2**15), 2**15 - 1),
        ("uint8", "uint_contents", 0, 255),
        ("uint16", "uint_contents", 0, 2**16 - 1),
    ],
)
def test_contents_outside_their_datatype_are_refused(dtype: str, field: str, lowest: int, highest: int) -> None:
    row = version(spec("x", ["N", 1], dtype))

    def made(value: int) -> pb.ModelInferRequest:
        found = pb.ModelInferRequest()
        tensor = found.inputs.add(name="x", datatype=DATATYPES[dtype], shape=[1, 1])
        getattr(tensor.contents, field).append(value)
        return found

    for value in (lowest, highest):
        assert read(made(value), row, PIXELS).arrays[0].tolist() == [[value]]
    outside = [highest + 1] + ([lowest - 1] if lowest else [])
    for value in outside:
        assert refusal(made(value), row) == f"input 'x' has values outside {DATATYPES[dtype]}"


def test_half_precision_is_asked_for_raw() -> None:
    made = request(("x", np.zeros((1, 2), np.float16)))
    row = version(spec("x", ["N", 2], "float16"))
    read(made, row, PIXELS)
    del made.raw_input_contents[:]
    assert "want it in raw_input_contents" in refusal(made, row)


def test_contents_beside_raw_are_refused() -> None:
    made = request(("x", VALUES))
    made.inputs[0].contents.fp32_contents.extend([1.0] * 8)
    assert "input 'x' has contents as well as raw_input_contents" in refusal(made, ROW)


def test_raw_entries_are_one_an_input() -> None:
    made = request(("x", VALUES))
    made.raw_input_contents.append(b"")
    assert "raw_input_contents has 2 entries for 1 inputs" in refusal(made, ROW)


@pytest.mark.parametrize(("rows", "fits"), [(1, True), (8, True), (9, False)])
def test_rows_are_bounded_by_the_largest_batch(rows: int, fits: bool) -> None:
    made = request(("x", np.zeros((rows, 4), np.float32)))
    if fits:
        assert read(made, ROW, PIXELS).rows == rows
    else:
        assert "batch of 9, want 1 to 8" in refusal(made, ROW)
    assert read(made, version(X, batched=False, max_batch_size=1), PIXELS).rows == 1


def test_free_side_of_one_name_is_one_size() -> None:
    row = version(spec("a", ["N", "length"]), spec("b", ["N", "length"]), spec("c", ["N", "other"]))
    sides = {"a": (2, 3), "b": (2, 3), "c": (2, 9)}

    def made(**changed: tuple[int, int]) -> pb.ModelInferRequest:
        return request(*((name, np.zeros(shape, np.float32)) for name, shape in (sides | changed).items()))

    assert read(made(), row, PIXELS).rows == 2
    assert "input 'b' has length = 4, input 'a' has 3" in refusal(made(b=(2, 4)), row)
    assert "input 'c' has N = 1, input 'a' has 2" in refusal(made(c=(1, 9)), row)


def test_image_of_a_size_that_the_network_does_not_take_is_refused() -> None:
    document = Document(task="segmentation", labels=["a"], input=InputSpec(colour="L", multiple=4, fit="pad"))
    row = version(spec("image", ["N", "H", "W", 1], "uint8"), document=document)

    def image(height: int, width: int) -> pb.ModelInferRequest:
        return request(("image", np.zeros((1, height, width, 1), np.uint8)))

    read(image(8, 12), row, 96)
    assert "sides [8, 10], want multiples of 4" in refusal(image(8, 10), row, 96)
    assert "12x12 pixels, want at most 96" in refusal(image(12, 12), row, 96)


def test_image_smaller_than_the_network_takes_is_refused() -> None:
    least = InputSpec(colour="L", fit="pad", min_height=8, min_width=5)
    row = version(
        spec("image", ["N", "H", "W", 1], "uint8"), document=Document(task="matching", labels=["a"], input=least)
    )

    def image(height: int, width: int) -> pb.ModelInferRequest:
        return request(("image", np.zeros((1, height, width, 1), np.uint8)))

    read(image(8, 5), row, PIXELS)
    for height, width in ((7, 5), (8, 4)):
        assert f"sides [{height}, {width}], want at least [8, 5]" in refusal(image(height, width), row)


def test_size_of_an_output_follows_from_the_inputs() -> None:
    x = spec("x", ["N", "H", "W", 3], "uint8")
    outputs = [
        spec("mask", ["N", "H", "W"], "uint8"),
        spec("scores", ["N", 10], "float64"),
        spec("fixed", [2, 5], "int16"),
        spec("found", ["N", "some"]),
        TensorSpec("nameless", "float32", (None,), ("",)),
        spec("scalar", [], "float32"),
    ]
    row = version(x, outputs=outputs)
    inputs = [np.zeros((3, 4, 5, 3), np.uint8)]
    assert [output_bytes(row, inputs, number) for number in range(6)] == [60, 240, 20, 0, 0, 4]


def outputs(*names: str, **parameters: Any) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest()
    for name in names:
        output = made.outputs.add(name=name)
        for key, value in parameters.items():
            output.parameters[key].CopyFrom(value)
    return made


def test_outputs_are_answered_in_the_order_asked_for_or_all() -> None:
    row = version(X, outputs=[spec(name, ["N"]) for name in "abc"])
    assert requested_outputs(outputs(), row) == [Wanted(0), Wanted(1), Wanted(2)]
    assert requested_outputs(outputs("c", "a"), row) == [Wanted(2), Wanted(0)]
    with pytest.raises(BadTensor, match="'d' is unknown, want one of"):
        requested_outputs(outputs("a", "d"), row)
    with pytest.raises(BadTensor) as refused:
        requested_outputs(outputs("z" * 10**6), row)
    assert len(refused.value.message) < 200


def test_classification_asks_for_so_many_labels() -> None:
    assert requested_outputs(outputs("y", classification=pb.InferParameter(int64_param=3)), ROW) == [
        Wanted(0, classes=3)
    ]
    for count in (0, -1):
        with pytest.raises(BadTensor, match=f"{count} classes, want 1 or more"):
            requested_outputs(outputs("y", classification=pb.InferParameter(int64_param=count)), ROW)


def test_shared_memory_is_not_offered() -> None:
    with pytest.raises(BadTensor, match=r"output 'y' is in shared memory, .* admin\.shared_memory"):
        requested_outputs(outputs("y", shared_memory_region=pb.InferParameter(string_param="region")), ROW)


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    """The region `mine`, of 256 bytes."""
    (tmp_path / "mine").write_bytes(bytes(range(256)))
    known = Regions()
    known.add(*open_region("mine", "mine", 0, 256, tmp_path))
    return known


def put(parameters: Any, nbytes: int | None, offset: int | None = None, name: str = "mine") -> None:
    """The parameters of a tensor in shared memory."""
    parameters["shared_memory_region"].string_param = name
    if nbytes is not None:
        parameters["shared_memory_byte_size"].int64_param = nbytes
    if offset is not None:
        parameters["shared_memory_offset"].int64_param = offset


def test_inputs_in_shared_memory_have_no_raw_contents(regions: Regions) -> None:
    row = version(*(spec(name, ("batch", 2)) for name in "abc"))
    values = np.array([[1, 2]], np.float32)
    made = request(("c", values), ("a", values + 10), ("b", values + 20))
    del made.raw_input_contents[1]
    put(made.inputs[1].parameters, 8, 16)
    found = read(made, row, PIXELS, regions=regions)
    assert [each.shape for each in found.arrays] == [(1, 2)] * 3
    np.testing.assert_array_equal(found.arrays[1], values + 20)
    np.testing.assert_array_equal(found.arrays[2], values)
    assert [(number, place.offset, place.nbytes) for number, place in found.shared.items()] == [(0, 16, 8)]
    payload = memoryview((values + 30).tobytes())
    made.raw_input_contents[1] = b""
    again = read(made, row, PIXELS, {1: payload}, regions)  # by the number of its entry
    np.testing.assert_array_equal(again.arrays[1], values + 30)
    made.raw_input_contents.append(b"")
    with pytest.raises(BadTensor, match="3 entries for 3 inputs, 1 of them in shared memory"):
        read(made, row, PIXELS, regions=regions)


def test_shared_memory_goes_with_contents_of_other_inputs_but_not_of_its_own(regions: Regions) -> None:
    row = version(spec("a", ("batch", 2)), spec("b", ("batch", 2)))
    values = np.array([[1, 2]], np.float32)
    made = request(("a", values), ("b", values), raw=False)
    put(made.inputs[0].parameters, 8)
    with pytest.raises(BadTensor, match="input 'a' has contents and is in shared memory, want one of the two"):
        read(made, row, PIXELS, regions=regions)
    made.inputs[0].ClearField("contents")
    found = read(made, row, PIXELS, regions=regions)
    assert list(found.shared) == [0]
    np.testing.assert_array_equal(found.arrays[1], values)


@pytest.mark.parametrize(
    ("nbytes", "offset", "words"),
    [
        (7, 0, "input 'x' has 7 bytes of shared memory, want 8 for shape .1, 2."),
        (8, 249, "input 'x' has 8 bytes at 249 of region 'mine', which has 256"),
        (2**63 - 1, 2**63 - 1, "of region 'mine', which has 256"),
        (-1, 0, "has -1 bytes at 0"),
        (8, -8, "has 8 bytes at -8"),
        (None, 0, "has shared_memory_offset, shared_memory_region, but not shared_memory_byte_size"),
    ],
)
def test_place_in_shared_memory_is_checked(regions: Regions, nbytes: int | None, offset: int, words: str) -> None:
    made = request(("x", np.ones((1, 2), np.float32)))
    del made.raw_input_contents[:]
    put(made.inputs[0].parameters, nbytes, offset)
    with pytest.raises(BadTensor, match=words):
        read(made, version(spec("x", ("batch", 2))), PIXELS, regions=regions)


def test_parameters_of_shared_memory_have_their_types_and_a_known_region(regions: Regions) -> None:
    made = request(("x", np.ones((1, 2), np.float32)))
    del made.raw_input_contents[:]
    parameters = made.inputs[0].parameters
    for name, kind, words in [
        ("nobody", UnknownRegion, "region 'nobody' is not registered"),
        ("", UnknownRegion, "region '' is not registered"),
        ("../mine", UnknownRegion, "region '../mine' is not registered"),
    ]:
        put(parameters, 8, name=name)
        with pytest.raises(kind, match=words):
            read(made, version(spec("x", ("batch", 2))), PIXELS, regions=regions)
    parameters["shared_memory_region"].int64_param = 1
    with pytest.raises(BadRequest, match="'shared_memory_region' of input 'x' is no text, want string_param"):
        read(made, version(spec("x", ("batch", 2))), PIXELS, regions=regions)
    put(parameters, 8)
    parameters["shared_memory_offset"].string_param = "0"
    with pytest.raises(BadRequest, match="'shared_memory_offset' has string_param"):
        read(made, version(spec("x", ("batch", 2))), PIXELS, regions=regions)
    del parameters["shared_memory_region"]
    del parameters["shared_memory_offset"]
    with pytest.raises(BadTensor, match="has shared_memory_byte_size, but not shared_memory_region"):
        read(made, version(spec("x", ("batch", 2))), PIXELS, regions=regions)


def test_output_goes_into_shared_memory_where_that_is_asked_for(regions: Regions) -> None:
    made = outputs("y", classification=pb.InferParameter(int64_param=2))
    put(made.outputs[0].parameters, 64, 8)
    (wanted,) = requested_outputs(made, ROW, regions)
    assert (wanted.number, wanted.classes) == (0, 2)
    assert wanted.place is not None
    assert wanted.place[1:] == (8, 64)
    told = pb.ModelInferResponse.InferOutputTensor()
    put_place(told.parameters, wanted.place)
    assert told.parameters["shared_memory_region"].string_param == "mine"
    numbers = [told.parameters[f"shared_memory_{name}"].int64_param for name in ("offset", "byte_size")]
    assert numbers == [8, 64]


def test_labels_are_ranked_highest_first_with_their_index_and_name() -> None:
    values = np.array([[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]], np.float32)
    texts = ranked(values, 2, ["cat", "dog"])
    assert texts.tolist() == [["0.500000:1:dog", "0.250000:0:cat"], ["1.000000:2", "0.000000:0:cat"]]
    assert ranked(values, 99, []).shape == (2, 3)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float64"])
def test_scores_of_any_dtype_are_ranked(dtype: str) -> None:
    assert [text.split(":")[1] for text in ranked(np.array([[1, 3, 2]]).astype(dtype), 3, [])[0]] == ["1", "2", "0"]


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))), max_size=8))
def test_texts_are_read_back_from_their_lengths(texts: list[str]) -> None:
    data = byte_strings(np.array(texts, dtype=object))
    found = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    assert found == texts


def test_free_sides_are_told_as_minus_one() -> None:
    assert metadata_shape(spec("x", ["N", 4, "W"])) == [-1, 4, -1]


def waves(*shape: int) -> pb.ModelInferRequest:
    return request(("waveform", np.zeros(shape, np.float32)))


def test_axes_of_a_tensor_are_free_or_fixed_as_its_document_says() -> None:
    document = Document(task="classification", labels=["a"], tensor=networks.WAVES)
    row = version(spec("waveform", ["N", 3, "time"]), document=document)
    assert read(waves(2, 3, 40), row, 40).rows == 2
    assert "has shape [2, 4, 40], want [-1, 3, -1]" in refusal(waves(2, 4, 40), row)
    assert "has rank 2" in refusal(waves(3, 40), row)
    assert "input 'waveform' is 41 places, want at most 40 in total" in refusal(waves(2, 3, 41), row, 40)


def test_length_of_a_fixed_axis_is_not_limited_by_what_goes_for_free_ones() -> None:
    axes = (Axis(name="channel", size=3), Axis(name="time", size=100))
    tensor = TensorInput(name="waveform", dtype="float32", axes=axes)
    document = Document(task="classification", labels=["a"], tensor=tensor)
    row = version(spec("waveform", ["N", 3, 100]), document=document)
    assert read(waves(1, 3, 100), row, 40).rows == 1
