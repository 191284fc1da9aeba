"""A network in fewer bits: what is in the file, what is measured beside fp32, and when it is refused."""

import shlex
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from convoy.models.data.registry import DATA
from convoy.models.errors import VariantRefused
from convoy.models.export import comparison, variants
from convoy.models.export.export import Traced, export, trace
from convoy.models.export.precision import CALIBRATION_METHODS, ends, half_precision, quantised
from convoy.models.export.variants import calibration_batches, make, refusal
from convoy.models.settings import Plan
from convoy.service import cli, metadata
from convoy.service.client.client import Client
from convoy.service.metadata import Precision, Variant
from tests.models.conftest import untrained
from tests.service.running import Server

NETWORKS = [("lenet5", "tiny-digits"), ("unet", "tiny-scenes"), ("conv1d", "gait")]
FEW = Plan(calibration_images=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


TRACED: dict[str, Traced] = {}


@pytest.fixture
def traced(request: pytest.FixtureRequest, folder: Path) -> Traced:
    architecture, data = request.param
    if architecture not in TRACED:
        TRACED[architecture] = trace(untrained(folder, architecture, data))
    return TRACED[architecture]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SIZE_SECONDS", 0.0)


def kinds(graph: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if node.op_type == op_type]


def casts_to(node: onnx.NodeProto) -> int:
    return helper.get_node_attr_value(node, "to")


def run(graph: onnx.ModelProto, values: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: values})


@pytest.mark.parametrize("traced", NETWORKS[:2], indirect=True)
def test_ends_are_what_stands_before_and_behind_every_layer_of_weights(traced: Traced) -> None:
    types = {node.name: node.op_type for node in traced.graph.graph.node}
    front, tail = ends(traced.graph.graph)
    assert [types[name] for name in front] == ["Transpose", "Cast", "Mul", "Add"]
    assert {types[name] for name in tail} & {"Conv", "Gemm", "Relu", "MaxPool"} == set()
    assert types[tail[-1]] in ("Softmax", "Cast")


@pytest.mark.parametrize("traced", NETWORKS, indirect=True)
def test_half_computes_in_half_between_ends_in_single_precision(traced: Traced) -> None:
    half = make("fp16", traced.graph, traced.description, FEW)
    onnx.checker.check_model(half, full_check=True)
    for ours, theirs in zip(
        (*half.graph.input, *half.graph.output), (*traced.graph.graph.input, *traced.graph.graph.output), strict=True
    ):
        assert ours.type.tensor_type.elem_type == theirs.type.tensor_type.elem_type
    weights = {tensor.name: tensor for tensor in half.graph.initializer}
    for node in kinds(half, "Conv"):
        assert weights[node.input[1]].data_type == TensorProto.FLOAT16
    inferred = onnx.shape_inference.infer_shapes(half)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    for name in ends(traced.graph.graph).front:
        (node,) = (node for node in half.graph.node if node.name == name)
        assert types[node.output[0]] != TensorProto.FLOAT16
    assert half.ByteSize() < 0.7 * traced.graph.ByteSize()


def test_half_precision_goes_straight_from_one_single_precision_node_to_the_next() -> None:
    graph = classifier(scale=1.0)
    half = half_precision(graph, [{"image": np.zeros((1, 8, 8, 1), np.uint8)}])
    narrowed = {node.output[0] for node in kinds(half, "Cast") if casts_to(node) == TensorProto.FLOAT16}
    assert len(narrowed) == 1
    assert not [node for node in kinds(half, "Cast") if node.input[0] in narrowed]


@pytest.mark.parametrize("traced", NETWORKS, indirect=True)
def test_integers_are_inside_and_the_ends_are_as_they_were(traced: Traced) -> None:
    integers = make("int8", traced.graph, traced.description, FEW)
    onnx.checker.check_model(integers, full_check=True)
    makers = {output: node for node in integers.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in integers.graph.initializer}
    for node in kinds(integers, "Conv"):
        dequantised = makers[node.input[1]]
        assert dequantised.op_type == "DequantizeLinear"
        assert weights[dequantised.input[0]].data_type == TensorProto.INT8
        (scales,) = weights[dequantised.input[1]].dims  # one for each output channel
        assert scales == weights[dequantised.input[0]].dims[0]
    front, tail = ends(traced.graph.graph)
    kept = {*front, *tail}
    rounded = {node.input[0] for node in kinds(integers, "QuantizeLinear")}
    made = {node.name for node in integers.graph.node if rounded.intersection(node.output)}
    assert made & kept == {front[-1]}


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
@pytest.mark.parametrize("traced", NETWORKS[:1], indirect=True)
def test_every_way_to_choose_ranges_answers_nearly_the_same(
    traced: Traced, method: metadata.Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(calibration=method, calibration_images=8)
    integers = make("int8", traced.graph, traced.description, plan)
    images = next(calibration_batches(traced.description, plan))["image"]
    (wanted,), (found,) = run(traced.graph, images), run(integers, images)
    assert 0 < np.abs(wanted - found).max() < 0.1
    assert capsys.readouterr().out == ""  # stdout is for results


def test_ranges_that_are_far_too_small_are_noticed() -> None:
    graph, images = classifier(scale=1.0), np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    dark = quantised(graph, [{"image": images[:1] // 64}], "minmax")
    right = quantised(graph, [{"image": images}], "minmax")
    (wanted,) = run(graph, images)
    differences = [np.abs(run(model, images)[0] - wanted).max() for model in (dark, right)]
    assert differences[0] > 5 * differences[1]


def test_ranges_come_from_training_images_as_serving_brings_them_to_the_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = trace(untrained(folder)).description
    asked = []
    split = DATA["tiny-digits"]().split

    def watching(self: object, name: str) -> object:
        asked.append(name)
        return split(name)

    monkeypatch.setattr(type(description), "split", watching)
    batches = [batch["image"] for batch in calibration_batches(description, Plan(calibration_images=5))]
    assert asked == ["train"]
    assert [batch.shape for batch in batches] == [(1, 32, 32, 1)] * 5
    first, last = split("train")[0][0], split("train")[95][0]
    assert not np.array_equal(batches[0], batches[-1])
    assert abs(float(batches[0].mean()) - float(first.mean())) < 3
    assert abs(float(batches[-1].mean()) - float(last.mean())) < 3


@pytest.mark.parametrize("traced", NETWORKS[:1], indirect=True)
def test_constants_of_the_pixels_are_as_wide_as_the_image(traced: Traced) -> None:
    integers = make("int8", traced.graph, traced.description, FEW)
    read = {name for node in (*kinds(integers, "Mul"), *kinds(integers, "Add")) for name in node.input}
    shapes = [list(tensor.dims)[-2:] for tensor in integers.graph.initializer if tensor.name in read]
    assert shapes == [[1, 32], [1, 32]]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(("architecture", "data"), NETWORKS[:2])
def test_file_says_what_the_variant_lost_and_gained(
    precision: Precision, architecture: str, data: str, tmp_path: Path
) -> None:
    plan = Plan(max_drop=1.0, calibration_images=8, calibration="minmax")
    exported = export(untrained(tmp_path, architecture, data), tmp_path / "repository", None, None, precision, plan)
    properties = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    document = metadata.decode(properties)
    assert document == exported.document
    assert document is not None
    variant, provenance = document.variant, document.provenance
    assert variant is not None
    assert provenance is not None
    assert document.parity is None  # it is not what PyTorch computes
    assert (variant.precision, variant.images) == (precision, 72)
    assert variant.score == ("top1" if architecture == "lenet5" else "mean_iou")
    assert variant.score in provenance.metrics
    assert variant.drop is not None
    assert variant.speed_up > 0
    assert variant.provider == "CPUExecutionProvider"
    assert variant.processor.endswith("threads")
    expected = ("minmax", 8) if precision == "int8" else (None, None)
    assert (variant.calibration, variant.calibration_images) == expected


def test_variant_is_another_version_or_another_model_as_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, repository = untrained(tmp_path), tmp_path / "repository"
    command = ["export", str(path), "--repository", str(repository), "--max-drop", "1"]
    assert cli.run(command) == 0
    assert cli.run([*command, "--variant", "int8", "--calibration-images", "8"]) == 0
    out = capsys.readouterr().out
    assert "int8      against fp32 on 72 images: top1 is" in out
    assert "ranges    percentile of 8 training images" in out
    assert cli.run([*command, "--variant", "fp16", "--name", "digits-half"]) == 0
    found = sorted(str(file.parent.relative_to(repository)) for file in repository.rglob("model.onnx"))
    assert found == ["digits-half/1", "lenet5/1", "lenet5/2"]


def test_too_large_a_drop_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test = DATA["tiny-digits"]().split("test")
    rarest = int(np.argmin(np.bincount([test[index][1] for index in range(len(test))], minlength=10)))

    def always_the_rarest(graph: onnx.ModelProto, *_: object) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        (bias,) = (tensor for tensor in copy.graph.initializer if tensor.name == kinds(copy, "Gemm")[-1].input[2])
        bias.CopyFrom(numpy_helper.from_array(100 * np.eye(10, dtype=np.float32)[rarest], bias.name))
        return copy

    monkeypatch.setattr(variants, "quantised", always_the_rarest)
    command = ["export", str(untrained(tmp_path)), "--repository", str(tmp_path / "repository")]
    assert cli.run([*command, "--variant", "int8", "--max-drop", "0"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ..."))
    assert line.startswith("convoy export: int8 loses 0.0")
    assert "want at most 0: see --max-drop" in line
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("drop", "agreement", "refused"),
    [(0, 0.5, False), (-0.2, 0.5, False), (0.01, 1, False), (0.011, 1, True), (None, 0.99, False), (None, 0.98, True)],
)
def test_one_point_of_the_score_may_be_lost_or_of_the_answers_without_data(
    drop: float | None, agreement: float, refused: bool
) -> None:
    assert bool(refusal(variant(drop=drop, agreement=agreement), 0.01)) == refused


def variant(drop: float | None, agreement: float, difference: float = 0.1) -> Variant:
    return Variant(
        precision="fp16",
        images=100,
        score="" if drop is None else "top1",
        drop=drop,
        agreement=agreement,
        max_abs_difference=difference,
        speed_up=1.0,
        batched_speed_up=1.0,
        provider="CPUExecutionProvider",
    )


def test_what_is_too_large_for_half_precision_stays_in_single() -> None:
    images = [{"image": np.full((1, 8, 8, 1), 255, np.uint8)}]
    for scale, kept in ((1.0, TensorProto.FLOAT16), (3000.0, TensorProto.FLOAT)):
        half = half_precision(classifier(scale), images)
        (kernel,) = (tensor for tensor in half.graph.initializer if tensor.name == "kernel")
        assert kernel.data_type == kept
        run(half, images[0]["image"])


def test_answers_that_are_no_numbers_are_refused() -> None:
    assert "outputs values that are not finite" in refusal(
        variant(drop=0.0, agreement=1.0, difference=float("nan")), 1.0
    )


def test_integers_without_data_are_refused_and_say_what_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(untrained(tmp_path)), "--repository", str(tmp_path / "repository"), "--without-data"]
    assert cli.run([*command, "--variant", "int8"]) == 2
    assert "int8 is calibrated on training images, but there are none: want --data DATA" in capsys.readouterr().err
    assert cli.run([*command, "--variant", "fp16"]) == 0
    assert "against fp32 on 64 generated images" in capsys.readouterr().out


def test_graph_that_the_library_cannot_do_is_refused_in_its_words() -> None:
    with pytest.raises(VariantRefused, match="cannot be quantised: ValueError: No data is collected"):
        quantised(classifier(scale=1.0), [{}], "percentile")


def test_served_variant_tells_its_precision(tmp_path: Path) -> None:
    path, repository = untrained(tmp_path), tmp_path / "repository"
    export(path, repository, "whole")
    integers = export(path, repository, "bytes", None, "int8", Plan(max_drop=1.0, calibration_images=8))
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    (wanted,) = run(onnx.load(integers.path), image[None, :, :, None])
    with Server(repository, ["server.lame_duck_seconds=0"]) as server, Client(server.grpc) as client:
        assert {model.model: model.precision for model in client.models()} == {"whole": "", "bytes": "int8"}
        labels = client.classify(image, model="bytes", top_k=10).labels
        assert [label.probability for label in labels] == pytest.approx(sorted(wanted[0], reverse=True), abs=1e-5)


def test_table_shows_every_variant_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(untrained(tmp_path)), "--repository", str(tmp_path / "repository"), "--all-variants"]
    assert cli.run([*command, "--calibration-images", "8", "--max-drop", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["variant", "file", "KiB"]
    assert [line.split()[0] for line in lines[1:4]] == ["fp32", "fp16", "int8"]
    assert sum(line.startswith("next  convoy export ") for line in lines) == 3
    assert lines[-1].endswith("repository --max-drop 1.0 --calibration-images 8 --variant int8")
    assert not (tmp_path / "repository").exists()
    assert cli.run([*command, "--variant", "int8"]) == 2
    assert "want it without --variant int8" in capsys.readouterr().err


def test_next_command_repeats_what_was_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "a repository"
    command = ["export", str(untrained(tmp_path)), "--repository", str(repository), "--name", "small", "--without-data"]
    assert cli.run([*command, "--all-variants", "--max-drop", "1"]) == 0
    (line, *_) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next  convoy ")]
    assert shlex.split(line)[2:] == [*command, "--max-drop", "1.0", "--variant", "fp32"]
    assert cli.run(shlex.split(line)[2:]) == 0
    assert (repository / "small" / "1" / "model.onnx").is_file()
    assert cli.run([*command, "--data", "tiny-digits"]) == 2
    assert "--without-data and --data tiny-digits: want one of the two" in capsys.readouterr().err


def test_slow_moments_are_shared_by_what_is_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Watched:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, _: object, inputs: dict[str, np.ndarray]) -> None:
            order.append(f"{self.name}{len(inputs['image'])}")

    monkeypatch.setattr(comparison, "BATCHES", (1, 2))
    description = trace(untrained(folder)).description
    times = comparison.image_times({"fp32": Watched("a"), "int8": Watched("b")}, description)
    assert order == ["a1", "b1"] * 4 + ["a2", "b2"] * 4
    assert list(times["int8"]) == [1, 2]


def classifier(scale: float) -> onnx.ModelProto:
    """8x8 grey images: cast, a factor, a convolution, a dense layer, softmax."""
    random = np.random.default_rng(0)
    weights = {
        "factor": np.array([[[[1.0]]]], np.float32),
        "kernel": (scale * np.abs(random.normal(0, 0.1, (4, 1, 3, 3)))).astype(np.float32),
        "dense": random.normal(0, 1e-3, (4, 3)).astype(np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["moved"], perm=[0, 3, 1, 2], name="move"),
        helper.make_node("Cast", ["moved"], ["floats"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Mul", ["floats", "factor"], ["scaled"], name="scale"),
        helper.make_node("Conv", ["scaled", "kernel"], ["maps"], name="convolution"),
        helper.make_node("ReduceMean", ["maps", "axes"], ["means"], keepdims=0, name="mean"),
        helper.make_node("MatMul", ["means", "dense"], ["logits"], name="dense"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1, name="softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
