"""An exported file takes pixels, answers as the network does, and says what it is; else there is none."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from convoy.models import checkpoint
from convoy.models.data.registry import data_set
from convoy.models.errors import BadCheckpoint, BadModelName, ParityRefused
from convoy.models.export import export as exporting
from convoy.models.export import parity
from convoy.models.export.export import Exported, export, exported_from, onnx_graph
from convoy.models.graph import Pixels, Segmenter
from convoy.service import cli, metadata
from tests.models.conftest import untrained

NETWORKS = [("lenet5", "tiny-digits"), ("unet", "tiny-scenes")]
UINT8, FLOAT = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture
def exported(request: pytest.FixtureRequest, folder: Path) -> Exported:
    architecture, data = request.param
    name = f"{architecture}-form"
    if exporting.publish.versions(folder / "repository", name):
        path = folder / "repository" / name / "1" / "model.onnx"
        document = metadata.decode(properties(path))
        assert document is not None
        return Exported(path, document)
    return export(untrained(folder, architecture, data), folder / "repository", name)


def properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def form(values: object) -> dict[str, tuple[int, list[str | int]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@pytest.mark.parametrize("exported", NETWORKS, indirect=True)
def test_two_held_out_pictures_are_copied_beside_the_file(exported: Exported) -> None:
    folder = exported.path.parent / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "2.png"]
    colours = {Image.open(path).mode for path in folder.iterdir()}
    assert colours == {"L" if exported.document.image.colour == "L" else "RGB"}
    assert (folder.stat().st_mode | (folder / "1.png").stat().st_mode) & 0o044 == 0o044


def test_samples_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = untrained(tmp_path, "lenet5", "tiny-digits")
    command = ["export", str(checkpoint), "--repository", str(tmp_path / "repository")]
    for options, words in (([], "2 held-out pictures are copied"), (["--no-samples"], "")):
        assert cli.run([*command, *options]) == 0
        assert (words in capsys.readouterr().out) is True
    found = sorted(path.parent.parent.name for path in tmp_path.rglob("samples/*.png"))
    assert found == ["1", "1"]


@pytest.mark.parametrize("exported", NETWORKS[1:], indirect=True)
def test_segmenter_says_how_far_its_mask_depends_on_the_image(exported: Exported) -> None:
    document = metadata.decode(properties(exported.path))
    assert document is not None
    assert document.receptive_field is not None
    context = document.receptive_field.height
    assert context is not None
    assert context == document.receptive_field.width
    assert context.stride == document.image.multiple
    assert context.before == context.after > context.stride


@pytest.mark.parametrize("exported", NETWORKS[:1], indirect=True)
def test_classifier_takes_pixels_and_answers_probabilities(exported: Exported) -> None:
    graph = onnx.load(exported.path)
    onnx.checker.check_model(graph, full_check=True)
    assert form(graph.graph.input) == {"image": (UINT8, ["N", 32, 32, 1])}
    assert form(graph.graph.output) == {"probabilities": (FLOAT, ["N", 10])}


@pytest.mark.parametrize("exported", NETWORKS[1:], indirect=True)
def test_segmenter_takes_any_size_and_answers_mask_and_confidence(exported: Exported) -> None:
    graph = onnx.load(exported.path)
    onnx.checker.check_model(graph, full_check=True)
    assert form(graph.graph.input) == {"image": (UINT8, ["N", "H", "W", 3])}
    assert form(graph.graph.output) == {"mask": (UINT8, ["N", "H", "W"]), "confidence": (UINT8, ["N", "H", "W"])}
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    for shape in ((1, 4, 4), (5, 12, 40), (2, 128, 64)):
        mask, confidence = session.run(["mask", "confidence"], {"image": np.zeros((*shape, 3), np.uint8)})
        assert mask.shape == confidence.shape == shape


@pytest.mark.parametrize("exported", NETWORKS, indirect=True)
def test_bytes_are_moved_before_they_are_cast(exported: Exported) -> None:
    kinds = [node.op_type for node in onnx.load(exported.path).graph.node]
    assert kinds[:2] == ["Transpose", "Cast"]


@pytest.mark.parametrize("exported", NETWORKS[:1], indirect=True)
def test_partial_connections_are_one_convolution_with_a_constant_weight(exported: Exported) -> None:
    graph = onnx.load(exported.path).graph
    assert [node.op_type for node in graph.node].count("Conv") == 3
    assert {"Gather", "Pad", "ScatterND", "Concat"}.isdisjoint(node.op_type for node in graph.node)
    dense = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if list(tensor.dims) == [16, 6, 5, 5]]
    assert len(dense) == 1
    assert np.count_nonzero(np.abs(dense[0]).sum(axis=(2, 3))) == 60


@pytest.mark.parametrize("exported", NETWORKS, indirect=True)
def test_normalisation_is_folded_into_the_convolutions(exported: Exported) -> None:
    assert "BatchNormalization" not in [node.op_type for node in onnx.load(exported.path).graph.node]


@pytest.mark.parametrize("exported", NETWORKS, indirect=True)
def test_document_in_the_file_says_what_it_is(exported: Exported) -> None:
    document = metadata.decode(properties(exported.path))
    assert document == exported.document
    assert document is not None
    assert document.provenance is not None
    assert document.parity is not None
    data = data_set(document.provenance.data)
    assert (document.task, document.labels, document.palette) == (data.task, data.labels, data.palette)
    assert document.parity.images == 72
    assert document.parity.max_abs_difference <= 1e-4
    if document.task == "classification":
        assert document.provenance.architecture == "lenet5"
        assert document.parity.top1_agreement == 1
        assert document.provenance.metrics.keys() == {"top1", "top5", "calibration_error"}
        assert (document.input.colour, document.input.height, document.input.width) == ("L", 32, 32)
        assert document.input.fit == "stretch"
    else:
        assert document.parity.mask_agreement is not None
        assert document.parity.mask_agreement >= 0.9999
        assert document.provenance.metrics.keys() == {"pixel_accuracy", "mean_iou", "boundary_f1", "calibration_error"}
        assert (document.input.colour, document.input.fit, document.input.multiple) == ("RGB", "pad", 4)


@pytest.mark.parametrize("exported", NETWORKS, indirect=True)
def test_file_holds_no_path_of_this_machine(exported: Exported) -> None:
    content = exported.path.read_bytes()
    for trace in (str(Path(exporting.__file__).parent).encode(), b".py", b"site-packages"):
        assert trace not in content


def test_model_is_named_for_its_architecture_unless_told_otherwise(tmp_path: Path) -> None:
    path, repository = untrained(tmp_path), tmp_path / "repository"
    assert not exported_from(path, repository, "lenet5")
    assert export(path, repository).path == repository / "lenet5" / "1" / "model.onnx"
    assert export(path, repository, "my_digits-2").path == repository / "my_digits-2" / "1" / "model.onnx"
    assert exported_from(path, repository, "lenet5")
    untrained(tmp_path, seed=1)  # the same file name, other weights
    assert not exported_from(path, repository, "lenet5")


def test_command_counts_tensors_where_there_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = untrained(tmp_path, "conv1d", "gait")
    assert cli.run(["export", str(path), "--repository", str(tmp_path / "repository")]) == 0
    assert "parity    onnxruntime against PyTorch on 250 tensors: " in capsys.readouterr().out


@pytest.mark.parametrize(("architecture", "data"), NETWORKS)
def test_graph_with_other_weights_is_refused_by_how_much_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, data: str
) -> None:
    path = untrained(tmp_path, architecture, data)

    def perturbed(*arguments: object) -> onnx.ModelProto:
        graph = onnx_graph(*arguments)
        for tensor in graph.graph.initializer:
            if tensor.dims and tensor.data_type == FLOAT:
                changed = onnx.numpy_helper.to_array(tensor) * np.float32(1.1)
                tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
        return graph

    monkeypatch.setattr(exporting, "onnx_graph", perturbed)
    with pytest.raises(ParityRefused, match=r"probabilities differ by up to \d.*, want at most 0\.0001"):
        export(path, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_graph_of_another_network_is_refused_for_its_answers(tmp_path: Path) -> None:
    description, network = checkpoint.load(untrained(tmp_path, "unet", "tiny-scenes"))
    _, other = checkpoint.load(untrained(tmp_path, "unet", "tiny-scenes", seed=1))
    with pytest.raises(ParityRefused, match=r"masks are the same on \d+\.\d+% of pixels, want 99\.99%"):
        parity.check(onnx_graph(description, other), description, network)


def test_wrong_confidence_is_refused(tmp_path: Path) -> None:
    description, network = checkpoint.load(untrained(tmp_path, "unet", "tiny-scenes"))
    graph = onnx_graph(description, network)
    (scale,) = (tensor for tensor in graph.graph.initializer if as_number(tensor) == 255)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.array(100, np.float32), scale.name))
    with pytest.raises(ParityRefused, match=r"confidences differ by up to \d+ of 255"):
        parity.check(graph, description, network)


def as_number(tensor: onnx.TensorProto) -> float | None:
    values = onnx.numpy_helper.to_array(tensor)
    return float(values) if values.ndim == 0 else None


def test_network_that_answers_nan_is_refused(tmp_path: Path) -> None:
    description, network = checkpoint.load(untrained(tmp_path))
    with torch.no_grad():
        network.get_parameter("output.bias")[0] = float("nan")
    with pytest.raises(ParityRefused, match="differ by up to nan"):
        parity.check(onnx_graph(description, network), description, network)


@pytest.mark.parametrize(("fewest", "images"), [(72, 72), (73, 72 + 64)])
def test_too_few_held_out_images_get_generated_ones_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewest: int, images: int
) -> None:
    monkeypatch.setattr(parity, "MIN_IMAGES", fewest)
    description, network = checkpoint.load(untrained(tmp_path))
    assert parity.check(onnx_graph(description, network), description, network).images == images


def test_bad_name_or_checkpoint_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadModelName):
        export(untrained(tmp_path), tmp_path / "repository", "Le Net")
    with pytest.raises(BadCheckpoint):
        export(tmp_path / "none.ckpt", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_pixels_are_normalised_by_channel() -> None:
    image = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)  # one pixel, three channels
    values = Pixels([0.5, 0.5, 0.0], [0.5, 0.25, 0.1])(image)
    assert values.shape == (1, 3, 1, 1)
    torch.testing.assert_close(values.flatten(), torch.tensor([-1.0, 2.0, 2.0]))


class Fixed(torch.nn.Module):
    """Answers these logits whatever comes."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_confidence_is_the_winning_probability_times_255_rounded() -> None:
    logits = torch.randn(1, 4, 6, 5) * 3
    mask, confidence = Segmenter(Pixels([0], [1]), Fixed(logits))(torch.zeros(1, 6, 5, 1, dtype=torch.uint8))
    best = torch.softmax(logits, dim=1).max(dim=1)
    assert torch.equal(mask, best.indices.to(torch.uint8))
    assert torch.equal(confidence, (best.values * 255).round().to(torch.uint8))
    assert mask.dtype == confidence.dtype == torch.uint8
