"""Which model files load, what they are found to take and give, and why the others are refused."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from convoy.service import metadata
from convoy.service.dtypes import DTYPES
from convoy.service.engine.providers import CPU, CUDA
from convoy.service.engine.session import DeviceLost, Session, load
from convoy.service.errors import BadMetadata, BadModelFile
from convoy.service.metadata import Axis, Document, InputSpec, input_shape
from convoy.service.repository import TensorSpec
from tests.service import networks

ONNX_TYPES = {np.dtype(name): helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in DTYPES}


def put(folder: Path, data: bytes) -> Path:
    file = folder / "model.onnx"
    file.write_bytes(data)
    return file


def refusal(file: Path, provider: str = "cpu") -> str:
    """The text with which a file is refused: one line that tells nothing of where the file lies."""
    with pytest.raises(BadModelFile) as refused:
        load(file, provider, 0, 1)
    assert "\n" not in refused.value.message
    assert str(file.parent) not in refused.value.message
    return refused.value.message


def with_document(model: onnx.ModelProto, document: Document) -> onnx.ModelProto:
    helper.set_model_props(model, {metadata.KEY: metadata.encode(document)})
    return model


def renamed(model: onnx.ModelProto, before: str, after: str) -> onnx.ModelProto:
    """The model with a tensor's name changed wherever it stands."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.name = after if value.name == before else value.name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [after if name == before else name for name in names]
    return model


def identity(onnx_type: int, shape: list[str | int] | None, output_shape: list[str | int] | None = None) -> bytes:
    """A file that says nothing about itself: y = x."""
    x = helper.make_tensor_value_info("x", onnx_type, shape)
    y = helper.make_tensor_value_info("y", onnx_type, output_shape or shape)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "network", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def test_sound_file_tells_what_it_takes_and_gives(tmp_path: Path) -> None:
    session = load(networks.save(networks.segmenter(), tmp_path, "scenes"), "cpu", 0, 1)
    assert session.inputs == (TensorSpec("image", "uint8", (None, None, None, 3), ("N", "H", "W", "")),)
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.outputs] == [
        ("mask", "uint8", (None, None, None)),
        ("confidence", "uint8", (None, None, None)),
    ]
    assert session.document is not None
    assert session.document.labels == ["red", "green", "blue"]
    assert session.batched
    assert session.provider == CPU


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_loaded_file_runs(tmp_path: Path, provider: str) -> None:
    session = load(networks.save(networks.doubler(), tmp_path, "doubler"), provider, 0, 0)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    y, total = session.run([x])
    assert (y == 2 * x).all()
    assert (total == x.sum(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_tensors_of_every_dtype_go_through(tmp_path: Path, dtype: np.dtype) -> None:
    session = load(put(tmp_path, identity(ONNX_TYPES[dtype], ["N", 3])), "cpu", 0, 1)
    assert session.inputs[0].dtype == dtype.name
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    (found,) = session.run([values])
    assert found.dtype == dtype
    assert (found == values).all()


@pytest.mark.parametrize(
    ("shape", "output_shape", "batched"),
    [
        (["N", 4], ["N", 4], True),
        (["rows"], ["rows"], True),
        ([3, 4], [3, 4], False),
        ([], [], False),
        ([None, 4], [None, 4], False),
        (["N", 4], ["M", 4], False),
        ([4, "N"], [4, "N"], False),
    ],
)
def test_requests_ride_side_by_side_only_where_the_file_says_so(
    tmp_path: Path, shape: list[str | int], output_shape: list[str | int], batched: bool
) -> None:
    file = put(tmp_path, identity(TensorProto.FLOAT, shape, output_shape))
    assert load(file, "cpu", 0, 1).batched is batched


@pytest.mark.parametrize(
    "data",
    [b"", b"once upon a time\n" * 20, b"\x00" * 4096, b"PK\x03\x04" + b"weights" * 99],
    ids=["empty", "text", "zeros", "archive"],
)
def test_file_that_is_no_network_is_refused(tmp_path: Path, data: bytes) -> None:
    # What follows are onnxruntime's own words.
    assert re.fullmatch("onnxruntime cannot load it: .+", refusal(put(tmp_path, data)))


def test_file_cut_anywhere_is_refused_or_still_whole_to_onnx(tmp_path: Path) -> None:
    data = networks.classifier().SerializeToString()
    load(put(tmp_path, data), "cpu", 0, 1)
    messages = []
    cuts = [*range(0, len(data), 41), *range(len(data) - 40, len(data))]
    for cut in cuts:
        file = put(tmp_path, data[:cut])
        try:
            session = load(file, "cpu", 0, 1)
        except (BadModelFile, BadMetadata) as error:
            messages.append(error.message)
        else:
            # The document stands last in the file: cut off as a whole, a sound network without one remains.
            assert session.document is None
            onnx.checker.check_model(onnx.load(file))
    assert len(messages) >= len(cuts) - 1
    assert not any(str(tmp_path) in message for message in messages)


def test_missing_file_is_refused_without_saying_where(tmp_path: Path) -> None:
    assert re.fullmatch("onnxruntime cannot load it: .+", refusal(tmp_path / "model.onnx"))


def test_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    refusal(tmp_path / "model.onnx")


def test_text_tensors_are_refused(tmp_path: Path) -> None:
    message = refusal(put(tmp_path, identity(TensorProto.STRING, ["N"])))
    assert "'x' is tensor(string), want one of tensor(bool)" in message


def test_tensor_of_too_many_dimensions_is_refused(tmp_path: Path) -> None:
    assert load(put(tmp_path, identity(TensorProto.FLOAT, [1] * 8)), "cpu", 0, 1)
    assert "rank 9, want at most 8" in refusal(put(tmp_path, identity(TensorProto.FLOAT, [1] * 9)))


def star(inputs: int, outputs: int) -> bytes:
    """A file with so many inputs, of which the first goes to so many outputs; without inputs, a constant does."""
    constants = [] if inputs else [numpy_helper.from_array(np.zeros(1, np.float32), "x0")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x0"], [f"y{number}"]) for number in range(outputs)],
        "network",
        [helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, ["N"]) for number in range(inputs)],
        [helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, ["N"]) for number in range(outputs)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("inputs", "outputs", "why"),
    [
        (0, 1, "0 inputs, want 1 to 64"),
        (65, 1, "65 inputs, want 1 to 64"),
        (1, 65, "65 outputs, want 1 to 64"),
        (1, 300, "300 outputs, want 1 to 64"),
    ],
)
def test_tensors_are_at_least_one_and_as_many_as_a_message_carries(
    tmp_path: Path, inputs: int, outputs: int, why: str
) -> None:
    widest = load(put(tmp_path, star(64, 64)), "cpu", 0, 1)
    assert (len(widest.inputs), len(widest.outputs)) == (64, 64)
    assert refusal(put(tmp_path, star(inputs, outputs))) == why


def test_weights_missing_beside_the_file_are_refused_without_saying_where(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(networks.classifier(), file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    load(file, "cpu", 0, 1)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in refusal(file)  # also: not where it lies


def test_document_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    model = networks.classifier()
    helper.set_model_props(model, {metadata.KEY: '{"task": "juggling"}'})
    with pytest.raises(BadMetadata, match="juggling"):
        load(put(tmp_path, model.SerializeToString()), "cpu", 0, 1)


def labelled(count: int) -> onnx.ModelProto:
    return networks.classifier(labels=[f"label {number}" for number in range(count)])


def documented(document: Document) -> onnx.ModelProto:
    return with_document(networks.classifier(), document)


def classes(spec: InputSpec) -> Document:
    return Document(task="classification", labels=list("abcdefghij"), input=spec)


def float_input() -> onnx.ModelProto:
    model = networks.classifier()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def fixed_batch() -> onnx.ModelProto:
    model = networks.classifier()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    return model


def pixels_of_a_row() -> onnx.ModelProto:
    """The image as a row of 64 pixels, three dimensions in all."""
    model = networks.classifier()
    del model.graph.input[0].type.tensor_type.shape.dim[1:]
    for side in (64, 1):
        model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = side
    return model


def flat_confidence() -> onnx.ModelProto:
    """A segmenter whose confidence is one number an image, not one a pixel."""
    model = networks.segmenter()
    (axis,) = (constant for constant in model.graph.initializer if constant.name == "axis")
    axis.CopyFrom(numpy_helper.from_array(np.array([1, 2, 3]), "axis"))
    del model.graph.output[1].type.tensor_type.shape.dim[1:]
    return model


SOUND = InputSpec(colour="L", height=8, width=8)
TIMELESS = (Axis(name="channel", size=4), Axis(name="time", size=9), Axis(name="depth"))
WIDE = msgspec.structs.replace(networks.WAVES, axes=(Axis(name="channel", size=4), Axis(name="time")))


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: labelled(9), r"'probabilities' has shape \[2, 10\], the document requires \[2, 9\]"),
        (lambda: labelled(11), r"has shape \[2, 10\], the document requires \[2, 11\]"),
        (lambda: renamed(networks.classifier(), "image", "picture"), "inputs are uint8 'picture', want one uint8"),
        (lambda: renamed(networks.classifier(), "probabilities", "scores"), "wants 'probabilities' as float32"),
        (float_input, "want one uint8 tensor 'image'"),
        (fixed_batch, "first dimension"),
        (pixels_of_a_row, r"has shape \[None, 64, 1\]"),
        (lambda: documented(classes(InputSpec(colour="RGB", height=8, width=8))), r"requires \[None, 8, 8, 3\]"),
        (lambda: documented(classes(InputSpec(colour="L", height=9, width=8))), r"requires \[None, 9, 8, 1\]"),
        (lambda: documented(classes(InputSpec(colour="L", fit="pad", multiple=4))), "first run failed"),
        (lambda: networks.waves(WIDE), r"has shape \[None, 3, None\], the document requires \[None, 4, None\]"),
        (lambda: networks.waves(msgspec.structs.replace(networks.WAVES, dtype="uint8")), "want one uint8 tensor 'wave"),
        (lambda: networks.waves(msgspec.structs.replace(networks.WAVES, axes=TIMELESS)), r"\[None, 4, 9, None\]"),
        (flat_confidence, r"'confidence' has shape \[2\], the document requires \[2, 64, 64\]"),
        (lambda: documented(Document(task="segmentation", labels=["a"], input=SOUND)), "wants 'mask' as uint8"),
        (
            lambda: with_document(
                networks.segmenter(),
                Document(task="classification", labels=["a"], input=InputSpec(colour="RGB", fit="pad")),
            ),
            "wants 'probabilities' as float32",
        ),
    ],
)
def test_document_that_does_not_fit_the_tensors_is_refused(
    tmp_path: Path, build: Callable[[], onnx.ModelProto], why: str
) -> None:
    message = refusal(put(tmp_path, build().SerializeToString()))
    assert re.search(why, message)


def test_network_that_answers_logits_where_probabilities_are_declared_is_refused(tmp_path: Path) -> None:
    text = refusal(networks.save(networks.logits(), tmp_path, "letters"))
    assert text == "output 'probabilities': the network answered values outside 0..1 as probabilities"


def test_network_that_answers_classes_without_labels_is_refused(tmp_path: Path) -> None:
    model = networks.segmenter()
    document = metadata.decode({entry.key: entry.value for entry in model.metadata_props})
    assert document is not None
    few = msgspec.structs.replace(document, labels=["red", "green"], palette=None)
    text = refusal(networks.save(with_document(model, few), tmp_path, "colours"))
    assert text == "output 'mask': the network answered class 2, its metadata name 2 classes"


def test_document_that_fits_is_taken(tmp_path: Path) -> None:
    assert load(put(tmp_path, documented(classes(SOUND)).SerializeToString()), "cpu", 0, 1).document == classes(SOUND)
    assert load(put(tmp_path, labelled(10).SerializeToString()), "cpu", 0, 1).document is not None


def test_first_run_that_fails_names_the_node_as_the_file_does(tmp_path: Path) -> None:
    model = documented(classes(InputSpec(colour="L", fit="pad")))
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
        dimension.dim_param = "side"
    (matmul,) = (node for node in model.graph.node if node.op_type == "MatMul")
    matmul.name = "/features/MatMul"
    message = refusal(put(tmp_path, model.SerializeToString()))
    assert "first run failed" in message
    assert "/features/MatMul" in message


class FailingDevice:
    """onnxruntime's session of a sound file, on a device that fails every run in the words of `fault`."""

    def __init__(self, file: Path, provider: str, fault: str) -> None:
        self._sound = onnxruntime.InferenceSession(str(file), providers=[CPU])
        self._provider = provider
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sound, name)

    def get_providers(self) -> list[str]:
        return [self._provider, CPU]

    def run(self, names: object, arrays: object, options: object) -> None:
        raise RuntimeError(self._fault)

    def run_with_iobinding(self, binding: object) -> None:
        raise RuntimeError(self._fault)


ILLEGAL_ACCESS = "Non-zero status code: CUDA failure 700: an illegal memory access was encountered ; GPU=0"
BAD_SHAPE = "Non-zero status code returned while running MatMul node: dimension mismatch"


@pytest.mark.parametrize(
    ("provider", "fault", "error"),
    [
        (CUDA, ILLEGAL_ACCESS, DeviceLost),
        (CUDA, BAD_SHAPE, RuntimeError),
        (CPU, ILLEGAL_ACCESS, RuntimeError),  # words in a name, say: there is no device to lose
    ],
)
def test_device_is_lost_only_where_cuda_says_so(
    tmp_path: Path, provider: str, fault: str, error: type[Exception]
) -> None:
    session = Session(FailingDevice(networks.save(networks.doubler(), tmp_path, "doubler"), provider, fault))
    with pytest.raises(error, match=re.escape(fault)):
        session.run([np.ones((1, 4), np.float32)])


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there")
def test_cuda_never_becomes_the_cpu_in_silence(tmp_path: Path) -> None:
    file = networks.save(networks.classifier(), tmp_path, "digits")
    message = refusal(file, provider="cuda")
    assert "provider cuda was requested" in message
    assert "CPUExecutionProvider" in message  # what there is instead
    assert "install onnxruntime-gpu" in message  # what to do
    assert load(file, "auto", 0, 1).provider == CPU


@pytest.mark.parametrize(("multiple", "side"), [(1, 64), (8, 64), (48, 96), (100, 100)])
def test_first_run_is_of_a_size_that_the_network_takes(multiple: int, side: int) -> None:
    free = Document(task="segmentation", labels=["a"], input=InputSpec(colour="L", fit="pad", multiple=multiple))
    assert input_shape(free) == (side, side, 1)
    fixed = Document(task="classification", labels=["a"], input=InputSpec(colour="L", height=20, width=30))
    assert input_shape(fixed) == (20, 30, 1)


def test_first_run_of_a_tensor_has_the_sizes_of_its_axes(tmp_path: Path) -> None:
    document = load(networks.save(networks.waves(), tmp_path, "waves"), "cpu", 0, 1).document
    assert document is not None
    assert input_shape(document) == (3, 64)


def test_first_run_is_not_smaller_than_the_least_that_the_network_takes() -> None:
    least = InputSpec(colour="L", fit="pad", min_height=20, min_width=65)
    assert input_shape(Document(task="matching", labels=["a"], input=least)) == (64, 65, 1)


def _with_data(folder: Path, value: float) -> Path:
    """A file that picks rows of a table of one value, which lies beside it and which onnxruntime would map."""
    table = np.full((4096, 4), value, np.float32)
    model = networks.table_lookup(table)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="table.data", size_threshold=0)
    return folder / "model.onnx"


@pytest.mark.parametrize("harm", ["overwritten", "shortened", "removed"])
def test_answers_stay_those_of_what_was_loaded_whatever_happens_to_its_data(tmp_path: Path, harm: str) -> None:
    session = load(_with_data(tmp_path / "model" / "1", 3.0), "cpu", 0, 1)
    data = tmp_path / "model" / "1" / "table.data"
    if harm == "overwritten":
        with data.open("r+b") as opened:
            opened.write(np.full((4096, 4), 7, np.float32).tobytes())
    elif harm == "shortened":
        os.truncate(data, 0)
    else:
        data.unlink()
    (found,) = session.run([np.array([0, 4095])])
    assert (found == 3).all()


def test_data_too_short_for_the_file_are_refused(tmp_path: Path) -> None:
    file = _with_data(tmp_path / "model" / "1", 3.0)
    os.truncate(file.with_name("table.data"), 100)
    with pytest.raises(BadModelFile) as refused:
        load(file, "cpu", 0, 1)
    assert str(tmp_path) not in refused.value.message


def test_missing_data_are_named_without_the_servers_path(tmp_path: Path) -> None:
    file = _with_data(tmp_path / "model" / "1", 3.0)
    file.with_name("table.data").unlink()
    with pytest.raises(BadModelFile, match=r"table\.data") as refused:
        load(file, "cpu", 0, 1)
    assert str(tmp_path) not in refused.value.message


def test_data_behind_a_link_are_read(tmp_path: Path) -> None:
    file = _with_data(tmp_path / "model" / "1", 3.0)
    data = file.with_name("table.data")
    blob = data.rename(tmp_path / "blob")
    data.symlink_to(blob)
    (found,) = load(file, "cpu", 0, 1).run([np.array([1])])
    assert (found == 3).all()


@pytest.mark.parametrize("name", ["x" * 257, "x" * 1_000_000])
def test_long_name_is_refused_with_the_limit(tmp_path: Path, name: str) -> None:
    words = f"has {len(name)} characters, want at most 256"
    assert words in refusal(put(tmp_path, identity(TensorProto.FLOAT, [name, 4])))
    model = renamed(onnx.load_from_string(identity(TensorProto.FLOAT, ["N", 4])), "x", name)
    assert words in (told := refusal(put(tmp_path, model.SerializeToString())))
    assert len(told) < 200
