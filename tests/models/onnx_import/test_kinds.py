"""Files of many makes: what they answer, how they are written, and what about them cannot be served."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from convoy.models.onnx_import import adopt as adoption
from convoy.service import cli
from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests.models.onnx_import.adopting import adopt, pictures, refused, run, softmax
from tests.models.onnx_import.networks import CLASSES, SIDE, from_helper, from_torch
from tests.service.running import Server

INPUT = ("input", TensorProto.FLOAT, (1, 3, SIDE, SIDE))
Value = tuple[str, int, Sequence[int | str]]


def written(
    path: Path,
    nodes: Sequence[NodeProto],
    outputs: Sequence[Value],
    given: Value = INPUT,
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 13,
) -> Path:
    """A file of those nodes."""
    graph = helper.make_graph(
        nodes,
        "elsewhere",
        [helper.make_tensor_value_info(*given)],
        [helper.make_tensor_value_info(*output) for output in outputs],
        [numpy_helper.from_array(values, name) for name, values in {"kernel": kernel(), **(weights or {})}.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def kernel(classes: int = CLASSES) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (classes, 3, 1, 1)).astype(np.float32)


def logits(images: np.ndarray, classes: int = CLASSES) -> np.ndarray:
    """What a 1x1 convolution by `kernel` makes of pixels in 0..1: (N, H, W, classes)."""
    return images / 255 @ kernel(classes)[:, :, 0, 0].T.astype(np.float64)


@pytest.fixture
def labels(tmp_path: Path) -> str:
    path = tmp_path / "labels.txt"
    path.write_text("ground\nroad\ncar\ntree\nsky\n")
    return str(path)


def masks(path: Path, dtype: int, keep: bool, last: bool = False, batch: int | str = 1) -> Path:
    """A network that ends in its argmax over 5 classes: [N, H, W], or with an axis of one class."""
    moved = [helper.make_node("Transpose", ["maps"], ["scores"], perm=[0, 2, 3, 1] if last else [0, 1, 2, 3])]
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["maps"]),
        *moved,
        helper.make_node("ArgMax", ["scores"], ["index"], axis=3 if last else 1, keepdims=int(keep)),
        helper.make_node("Cast", ["index"], ["classes"], to=dtype),
    ]
    sides = [batch, SIDE, SIDE]
    if keep:
        sides.insert(3 if last else 1, 1)
    return written(path, nodes, [("classes", dtype, sides)], ("input", TensorProto.FLOAT, (batch, 3, SIDE, SIDE)))


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8])
@pytest.mark.parametrize(("keep", "last"), [(False, False), (True, False), (True, True)])
def test_class_of_each_pixel_is_taken_as_a_mask_without_confidence(
    tmp_path: Path, labels: str, dtype: int, keep: bool, last: bool
) -> None:
    model, document = adopt(masks(tmp_path / "net.onnx", dtype, keep, last), "--uint8-front", "--labels", labels)
    assert (document.task, document.labels[2], document.parity is not None) == ("segmentation", "car", True)
    assert [value.name for value in model.graph.output] == ["mask"]
    (mask,) = run(model, pictures(3))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, logits(pictures(3)).argmax(axis=3))


def test_mask_without_confidence_is_served(tmp_path: Path, labels: str, capsys: pytest.CaptureFixture[str]) -> None:
    adopt(masks(tmp_path / "net.onnx", TensorProto.INT64, keep=False), "--uint8-front", "--labels", labels)
    assert "masks only: a network that ends with argmax has no confidence" in capsys.readouterr().out
    (image,) = pictures(1)
    options = ["server.lame_duck_seconds=0"]
    with Server(tmp_path / "repository", options) as server, Client(server.grpc) as client:
        answer = client.segment(image, model="it")
        np.testing.assert_array_equal(answer.mask, logits(image).argmax(axis=2))
        assert answer.class_pixels[2].name == "car"
        with pytest.raises(ServerError, match="answers masks alone"):
            client.segment(image, model="it", with_confidence=True)


def test_class_of_each_pixel_wants_as_many_labels_as_it_has_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, few = masks(tmp_path / "net.onnx", TensorProto.INT64, keep=False), tmp_path / "few.txt"
    few.write_text("ground\n")
    assert "of how many? want --labels FILE" in refused(capsys, file, "--uint8-front")
    line = refused(capsys, file, "--uint8-front", "--labels", str(few))
    assert "contains classes 0 to 2, there are 1 labels" in line


@pytest.mark.parametrize("sure", [False, True])
def test_one_number_for_a_pixel_stands_for_two_classes(
    tmp_path: Path, sure: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("Conv", ["input", "one"], ["maps"]),
        helper.make_node("Sigmoid" if sure else "Identity", ["maps"], ["answer"]),
    ]
    output = ("answer", TensorProto.FLOAT, (1, 1, SIDE, SIDE))
    weights = {"one": np.array([4, -9, 5], np.float32).reshape(1, 3, 1, 1)}
    file = written(tmp_path / "net.onnx", nodes, [output], weights=weights)
    tail = ["--tail", "argmax" if sure else "sigmoid"]
    if not sure:
        assert "want --tail sigmoid" in refused(capsys, file, "--uint8-front", "--tail", "argmax")
    model, document = adopt(file, "--uint8-front", *tail)
    assert document.labels == ["class 0", "class 1"]
    images = pictures(2)
    second = 1 / (1 + np.exp(-(images / 255 @ np.array([4.0, -9, 5]))))
    mask, confidence = run(model, images)
    np.testing.assert_array_equal(mask, second > 0.5)
    assert 0.2 < mask.mean() < 0.8
    assert np.abs(confidence - 255 * np.maximum(second, 1 - second)).max() <= 0.51


@pytest.mark.parametrize("sure", [False, True])
def test_one_number_for_an_image_stands_for_two_classes(tmp_path: Path, sure: bool) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["logit"]),
        helper.make_node("Sigmoid" if sure else "Identity", ["logit"], ["answer"]),
    ]
    dense = np.array([[40], [-30], [-17]], np.float32)
    file = written(tmp_path / "net.onnx", nodes, [("answer", TensorProto.FLOAT, (1, 1))], weights={"dense": dense})
    model, document = adopt(file, "--uint8-front", "--tail", "none" if sure else "sigmoid")
    images = pictures(4)
    second = 1 / (1 + np.exp(-(images / 255).mean(axis=(1, 2)) @ dense))
    np.testing.assert_allclose(run(model, images)[0], np.concatenate([1 - second, second], axis=1), atol=1e-5)
    assert len(document.labels) == 2


def test_output_is_chosen_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
        helper.make_node("SequenceConstruct", ["logits"], ["list"]),
    ]
    outputs = [("maps", TensorProto.FLOAT, (1, CLASSES, SIDE, SIDE)), ("logits", TensorProto.FLOAT, (1, CLASSES))]
    file = written(tmp_path / "net.onnx", nodes, outputs)
    model = onnx.load(file)
    model.graph.output.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, [1, CLASSES]))
    onnx.save(model, file)
    _, document = adopt(file, "--uint8-front", "--output", "logits", "--tail", "softmax")
    assert document.task == "classification"
    assert "left out: 'maps' float32" in capsys.readouterr().out
    _, document = adopt(file, "--uint8-front", "--tail", "argmax")
    assert document.task == "segmentation"
    capsys.readouterr()
    assert "--output 'map', want one of maps, logits, list" in refused(capsys, file, "--output", "map")
    assert "'list' sequence [] is not a tensor of numbers" in refused(capsys, file, "--uint8-front", "--output", "list")


def test_weights_that_an_old_file_lists_as_inputs_are_weights(tmp_path: Path) -> None:
    file = from_helper(tmp_path / "net.onnx", opset=9)
    model = onnx.load(file)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(weights.name, weights.data_type, weights.dims)
        for weights in model.graph.initializer
    )
    onnx.save(model, file)
    adopted, _ = adopt(file, "--uint8-front", "--tail", "softmax")
    assert [value.name for value in adopted.graph.input] == ["image"]


def test_branches_keep_the_weights_around_them(tmp_path: Path) -> None:
    """The branches of an If take a weight, and the image, from the graph that they are in."""
    nothing: list[onnx.ValueInfoProto] = []
    branches = {
        side: helper.make_graph(
            [helper.make_node("Mul", ["flat", weight], [side])],
            side,
            nothing,
            [helper.make_tensor_value_info(side, TensorProto.FLOAT, None)],
        )
        for side, weight in (("then_branch", "much"), ("else_branch", "little"))
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("If", ["always"], ["logits"], **branches),
    ]
    weights = {"much": np.float32(2), "little": np.float32(1), "always": np.array(True)}
    file = written(
        tmp_path / "net.onnx",
        nodes,
        [("logits", TensorProto.FLOAT, (1, CLASSES))],
        weights={name: np.asarray(value) for name, value in weights.items()},
    )
    model, _ = adopt(file, "--uint8-front", "--tail", "softmax")
    images = pictures(3)
    wanted = softmax(2 * logits(images).mean(axis=(1, 2)))
    np.testing.assert_allclose(run(model, images)[0], wanted, atol=1e-5)


def test_what_is_joined_to_an_image_is_joined_to_each_of_a_batch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["maps"]),
        helper.make_node("Reshape", ["maps", "flat"], ["tokens"]),
        helper.make_node("Concat", ["token", "tokens"], ["joined"], axis=2),
        helper.make_node("ReduceMax", ["joined"], ["logits"], axes=[2], keepdims=0),
    ]
    weights = {
        "flat": np.array([1, CLASSES, SIDE * SIDE]),
        "token": np.linspace(-1, 4, CLASSES, dtype=np.float32).reshape(1, CLASSES, 1),
    }
    output = ("logits", TensorProto.FLOAT, (1, CLASSES))
    model, _ = adopt(
        written(tmp_path / "net.onnx", nodes, [output], weights=weights), "--uint8-front", "--tail", "softmax"
    )
    images = pictures(3)
    wanted = np.maximum(logits(images).max(axis=(1, 2)), weights["token"][0, :, 0])
    np.testing.assert_allclose(run(model, images)[0], softmax(wanted), atol=1e-5)


class Patches(nn.Module):
    """A class token before patches, as vision transformers have it: (N, 3, 12, 12) to logits (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.mix = nn.Linear(10, 10)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(image), -1, -1), patches], dim=1)
        logits: Tensor = self.head(self.mix(tokens.transpose(1, 2)).transpose(1, 2)[:, 0])
        return logits


def test_class_token_of_a_network_that_was_exported_for_one_image_goes_to_each(tmp_path: Path) -> None:
    file = from_torch(tmp_path / "net.onnx", Patches(), (1, 3, SIDE, SIDE))
    model, _ = adopt(file, "--uint8-front", "--tail", "softmax")
    (together,), images = run(model, pictures(4)), pictures(4)
    apart = np.concatenate([run(model, image[None])[0] for image in images])
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_answer_that_depends_on_the_others_of_a_batch_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[0, 2, 3], keepdims=1),
        helper.make_node("Sub", ["input", "mean"], ["rest"]),
        helper.make_node("Conv", ["rest", "kernel"], ["maps"]),
        helper.make_node("GlobalMaxPool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    free = ("input", TensorProto.FLOAT, ("N", 3, SIDE, SIDE))
    file = written(tmp_path / "net.onnx", nodes, [("logits", TensorProto.FLOAT, ("N", CLASSES))], free)
    line = refused(capsys, file, "--uint8-front", "--tail", "softmax")
    assert "the result differs from the file" in line


def training(node: NodeProto, *others: NodeProto) -> list[NodeProto]:
    return [
        *others,
        node,
        helper.make_node("GlobalAveragePool", ["changed"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]


def test_network_that_was_exported_for_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = [("logits", TensorProto.FLOAT, (1, 3))]
    names = ["input", "one", "zero", "zero", "one"]
    statistics = {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
    normalise = helper.make_node("BatchNormalization", names, ["changed", "m", "v"], training_mode=1, name="norm")
    file = written(tmp_path / "norm.onnx", training(normalise), output, weights=statistics, opset=15)
    assert "node 'norm' (BatchNormalization) depends on the other images of a batch" in refused(capsys, file)
    drop = helper.make_node("Dropout", ["input", "share", "on"], ["changed"])
    switches = {"share": np.array(0.5, np.float32), "on": np.array(True)}
    file = written(tmp_path / "drop.onnx", training(drop), output, weights=switches)
    line = refused(capsys, file, "--uint8-front", "--tail", "softmax")
    assert "the outputs for the same image differ between runs" in line


@pytest.mark.parametrize(
    ("size", "options", "words"),
    [
        ((SIDE, "W"), (), "one side fixed, the other free: want --size 12xW"),
        ((SIDE, "W"), ("--size", "20x20"), "want --size 12xW"),
        (("H", "W"), ("--size", "9000x9000"), "are too large to try, want at most 50,000,000 pixels"),
        ((99_999, 99_999), (), "are too large to try"),
    ],
)
def test_size_that_cannot_be_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: tuple[int | str, int | str],
    options: list[str],
    words: str,
) -> None:
    given = ("input", TensorProto.FLOAT, ("N", 3, *size))
    output = ("maps", TensorProto.FLOAT, ("N", CLASSES, *size))
    nodes = [helper.make_node("Conv", ["input", "kernel"], ["maps"])]
    line = refused(capsys, written(tmp_path / "net.onnx", nodes, [output], given), "--uint8-front", *options)
    assert words in line


def test_one_free_side_is_fixed_by_the_size(tmp_path: Path) -> None:
    given = ("input", TensorProto.FLOAT, ("N", 3, SIDE, "W"))
    output = ("maps", TensorProto.FLOAT, ("N", CLASSES, SIDE, "W"))
    nodes = [helper.make_node("Conv", ["input", "kernel"], ["maps"])]
    file = written(tmp_path / "net.onnx", nodes, [output], given)
    _, document = adopt(file, "--uint8-front", "--tail", "argmax", "--size", "12x20")
    assert (document.image.height, document.image.width) == (12, 20)


@pytest.mark.parametrize("count", [0, 2])
def test_file_must_take_one_image_and_answer_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    file = from_helper(tmp_path / "net.onnx")
    model = onnx.load(file)
    (image,) = model.graph.input
    if count:
        image = helper.make_tensor_value_info("other", TensorProto.FLOAT, [1])
        model.graph.input.append(image)
    else:
        del model.graph.input[:]
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 3, SIDE, SIDE), np.float32), "input"))
    onnx.save(model, file)
    assert f"has {count} inputs" in refused(capsys, file)
    model = onnx.load(from_helper(file))
    del model.graph.output[:]
    onnx.save(model, file)
    assert "has no output, want one for an image" in refused(capsys, file)


def test_names_of_ours_inside_a_file_are_no_trouble(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["answer"]),
        helper.make_node("GlobalAveragePool", ["answer"], ["floats"]),
        helper.make_node("Flatten", ["floats"], ["probabilities"]),
    ]
    given, output = ("image", *INPUT[1:]), ("probabilities", TensorProto.FLOAT, (1, CLASSES))
    model, _ = adopt(written(tmp_path / "net.onnx", nodes, [output], given), "--uint8-front", "--tail", "softmax")
    wanted = softmax(logits(pictures(2)).mean(axis=(1, 2)))
    np.testing.assert_allclose(run(model, pictures(2))[0], wanted, atol=1e-5)


def test_half_precision_that_adds_up_to_more_than_one_is_sure_and_not_unsure(tmp_path: Path) -> None:
    """A share of 1.004 is 256 steps of confidence, which in a byte would be 0."""
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["maps"]),
        helper.make_node("Mul", ["maps", "many"], ["sharp"]),
        helper.make_node("Softmax", ["sharp"], ["shares"], axis=1),
        helper.make_node("Mul", ["shares", "more"], ["answer"]),
    ]
    weights = {"many": np.array(1000, np.float32), "more": np.array(1.004, np.float32)}
    output = ("answer", TensorProto.FLOAT, (1, CLASSES, SIDE, SIDE))
    model, _ = adopt(
        written(tmp_path / "net.onnx", nodes, [output], weights=weights), "--uint8-front", "--tail", "argmax"
    )
    assert np.median(run(model, pictures(1))[1]) == 255


def test_model_is_named_for_a_file_whatever_its_name_is(tmp_path: Path) -> None:
    file = from_helper(tmp_path / "My Animals v1.2.onnx")
    repository = tmp_path / "repository"
    options = ["--uint8-front", "--tail", "softmax", "--repository", str(repository)]
    assert cli.run(["adopt", str(file), *options]) == 0
    assert [path.name for path in repository.iterdir()] == ["my-animals-v1-2"]


def test_result_that_no_server_takes_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption.publish, "publish", lambda *_: pytest.fail("it was written"))
    nodes = [helper.make_node("Conv", ["input", "wide"], ["maps"])]
    output = ("maps", TensorProto.FLOAT, (1, 300, SIDE, SIDE))
    weights = {"wide": kernel(300)}
    file = written(tmp_path / "net.onnx", nodes, [output], weights=weights)
    assert "300 labels, want at most 256" in refused(capsys, file, "--uint8-front", "--tail", "argmax")
