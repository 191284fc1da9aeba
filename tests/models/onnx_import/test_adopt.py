"""`convoy adopt`: files made elsewhere take images, describe themselves, and answer as they did, or are refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from convoy.models.onnx_import import onnx_file
from convoy.service import cli
from convoy.service.client.client import Client
from tests.models.onnx_import.adopting import adopt, pictures, refused, run, softmax
from tests.models.onnx_import.networks import CLASSES, SIDE, Net, Pixelwise, from_helper, from_torch, per_pixel
from tests.service.running import Server

LABELS = ["ant", "bee", "cat", "dog", "elk"]
IMAGENET = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return from_torch(tmp_path_factory.mktemp("torch") / "net.onnx", Net(), (1, 3, SIDE, SIDE))


def test_file_of_torch_takes_images_of_any_number_and_answers_probabilities(torch_file: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS))
    model, document = adopt(torch_file, "--uint8-front", *IMAGENET, "--tail", "softmax", "--labels", str(labels))
    assert (document.task, document.labels) == ("classification", LABELS)
    assert (document.image.colour, document.image.height, document.image.fit) == ("RGB", SIDE, "stretch")
    assert document.parity is not None
    images = pictures(4)
    values = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    original = onnx.load(torch_file)
    wanted = [run(original, value.transpose(2, 0, 1)[None].astype(np.float32))[0][0] for value in values]
    (found,) = run(model, images)
    np.testing.assert_allclose(found, softmax(np.array(wanted)), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01  # the answers depend on the image


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("imagenet", ["--scale", "1", "--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"]),
        ("symmetric", ["--scale", "1/127.5", "--mean", "1"]),
        ("caffe", ["--scale", "1", "--mean", "123.68,116.779,103.939", "--colour", "BGR"]),
    ],
)
def test_preprocessing_by_name_is_that_of_the_numbers(torch_file: Path, name: str, same: list[str]) -> None:
    by_name, _ = adopt(torch_file, "--preprocessing", name, "--tail", "softmax")
    by_numbers, _ = adopt(torch_file, "--uint8-front", *same, "--tail", "softmax")
    images = pictures(3)
    np.testing.assert_allclose(run(by_name, images)[0], run(by_numbers, images)[0], atol=1e-5)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
def test_every_layout_and_type_of_input_is_taken(tmp_path: Path, dtype: int, layout: str, opset: int) -> None:
    file = from_helper(tmp_path / "net.onnx", layout=layout, dtype=dtype, opset=opset)
    served = dtype == TensorProto.UINT8 and layout == "NHWC"
    model, _ = adopt(file, *([] if served else ["--uint8-front"]), "--tail", "softmax")
    images = pictures(3)
    values = images if dtype == TensorProto.UINT8 else images / 255
    values = values.astype(helper.tensor_dtype_to_np_dtype(dtype))
    values = values.transpose(0, 3, 1, 2) if layout == "NCHW" else values
    original = onnx.load(file)
    wanted = np.concatenate([run(original, value[None])[0] for value in values]).astype(np.float32)
    tolerance = 1e-2 if dtype == TensorProto.FLOAT16 else 1e-5
    np.testing.assert_allclose(run(model, images)[0], softmax(wanted), atol=tolerance)


def test_channels_are_turned_round_for_a_network_that_takes_blue_first(tmp_path: Path) -> None:
    file = from_helper(tmp_path / "net.onnx")
    options = ["--uint8-front", "--tail", "softmax", "--scale", "1/127.5", "--mean", "1,1.1,1.2"]
    (plain, _), (turned, _) = (adopt(file, *options, "--colour", colour) for colour in ("RGB", "BGR"))
    images = pictures(2)
    values = (images / 127.5 - [1, 1.1, 1.2])[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
    wanted = softmax(np.concatenate([run(onnx.load(file), value[None])[0] for value in values]))
    np.testing.assert_allclose(run(turned, images)[0], wanted, atol=1e-5)
    assert np.abs(run(plain, images)[0] - wanted).max() > 1e-2


def test_probabilities_stay_and_logits_are_not_taken_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, logits = from_helper(tmp_path / "a.onnx", tail="Softmax"), from_helper(tmp_path / "b.onnx")
    model, _ = adopt(answers, "--uint8-front")
    assert run(model, pictures(3))[0].sum(axis=1) == pytest.approx(1)
    capsys.readouterr()
    assert "contains no probabilities for classification: want --tail softmax" in refused(
        capsys, logits, "--uint8-front"
    )
    line = refused(capsys, answers, "--uint8-front", "--tail", "softmax")
    assert "contains probabilities for classification: want --tail none" in line


@pytest.mark.parametrize("flatten", [(1, -1), (1, 4), (-1, 4), (0, -1)])
def test_batch_of_one_is_made_free_whatever_the_reshape_is_told(tmp_path: Path, flatten: tuple[int, int]) -> None:
    model, _ = adopt(from_helper(tmp_path / "net.onnx", flatten=flatten), "--uint8-front", "--tail", "softmax")
    images = pictures(5)
    (together,) = run(model, images)
    apart = np.concatenate([run(model, image[None])[0] for image in images])
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_batch_that_cannot_be_made_free_is_refused_with_the_node_that_forbids_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The batch is counted among the channels, and one row of 4 numbers is wanted of them.
    prelude = [
        helper.make_node("Transpose", ["pooled"], ["turned"], perm=[1, 0, 2, 3]),
        helper.make_node("Constant", [], ["four"], value_ints=[4, 1]),
        helper.make_node("Reshape", ["turned", "four"], ["before"], name="stuck"),
    ]
    file = from_helper(tmp_path / "net.onnx", prelude=prelude, flatten=(1, 4))
    line = refused(capsys, file, "--uint8-front", "--tail", "softmax")
    assert "batch size 1 cannot be made dynamic: node 'stuck' (Reshape) prevents it" in line


def test_node_that_answers_the_same_number_for_any_batch_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prelude = [
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("ReduceSum", ["pooled", "axes"], ["before"], keepdims=1, name="sums-up"),
    ]
    file = from_helper(tmp_path / "net.onnx", prelude=prelude, flatten=(-1, 4))
    line = refused(capsys, file, "--uint8-front", "--tail", "softmax")
    assert "node 'sums-up' (ReduceSum) outputs 1 for 3 images" in line


def test_segmenter_gets_a_mask_with_confidences_and_finds_out_its_multiple(tmp_path: Path) -> None:
    file = from_torch(tmp_path / "pixels.onnx", Pixelwise(), (2, 3, 32, 48), {0: "N", 2: "H", 3: "W"})
    colours = tmp_path / "palette.txt"
    colours.write_text("#000000\nff8000\n0 128 255\n1,2,3\n#FFFFFF\n")
    model, document = adopt(file, "--uint8-front", "--tail", "argmax", "--palette", str(colours))
    assert (document.task, len(document.labels)) == ("segmentation", CLASSES)
    assert document.palette == [(0, 0, 0), (255, 128, 0), (0, 128, 255), (1, 2, 3), (255, 255, 255)]
    assert (document.image.fit, document.image.multiple, document.image.height) == ("pad", 4, None)
    images = pictures(2, 20, 36)
    shares = softmax(run(onnx.load(file), (images / 255).transpose(0, 3, 1, 2).astype(np.float32))[0])
    mask, confidence = run(model, images)
    assert mask.dtype == confidence.dtype == np.uint8
    np.testing.assert_array_equal(mask, shares.argmax(axis=1))
    assert np.abs(confidence - 255 * shares.max(axis=1)).max() <= 0.51


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("axis", [1, 3])
def test_pixels_are_told_apart_wherever_their_classes_stand(
    tmp_path: Path, axis: int, probabilities: bool, opset: int
) -> None:
    file = per_pixel(tmp_path / "net.onnx", axis, probabilities, opset)
    model, document = adopt(file, "--uint8-front", "--tail", "argmax")
    assert (len(document.labels), document.image.height, document.image.fit) == (CLASSES, SIDE, "stretch")
    images = pictures(2)
    values = (images / 255).transpose(0, 3, 1, 2).astype(np.float32)
    given = np.concatenate([run(onnx.load(file), value[None])[0] for value in values])
    shares = given if probabilities else softmax(given, axis)
    mask, confidence = run(model, images)
    np.testing.assert_array_equal(mask, shares.argmax(axis))
    assert np.abs(confidence - 255 * shares.max(axis)).max() <= 0.51


def test_way_to_the_input_that_cuts_off_pixels_is_refused_for_a_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = per_pixel(tmp_path / "net.onnx", axis=1, probabilities=False, opset=18)
    line = refused(capsys, file, "--uint8-front", "--tail", "argmax", "--fit", "crop")
    assert "a class map must cover the whole image" in line


def test_external_data_is_folded_in_and_too_much_of_it_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.onnx"
    onnx.save(
        onnx.load(from_helper(tmp_path / "inside.onnx")),
        file,
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    assert (tmp_path / "weights").is_file()
    model, _ = adopt(file, "--uint8-front", "--tail", "softmax")
    assert "external data, folded in" in capsys.readouterr().out
    (tmp_path / "weights").rename(tmp_path / "gone")
    run(model, pictures(2))
    assert "is not a valid ONNX file" in refused(capsys, file, "--uint8-front", "--tail", "softmax")
    monkeypatch.setattr(onnx_file, "MAX_EXTERNAL_BYTES", 10)
    assert "MiB of external data, want at most" in refused(capsys, file, "--uint8-front", "--tail", "softmax")


def test_file_is_shown_and_nothing_else_without_a_repository(
    torch_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["adopt", str(torch_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"input     'input' float32 [1, 3, {SIDE}, {SIDE}], NCHW"
    assert lines[1] == f"output    'output' float32 [1, {CLASSES}]"
    assert lines[2] == "opset     18, made by pytorch"
    assert lines[3] == "likely    classification"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "images arrive as uint8 [N, H, W, C]: want --uint8-front"),
        (["--uint8-front", "--tail", "argmax"], "want --tail softmax"),
        (["--uint8-front", "--tail", "softmax", "--size", "20x20"], "want --size 12x12 or none"),
        (["--uint8-front", "--tail", "softmax", "--mean", "1,2"], "--mean has 2 numbers for 3 channels"),
        (["--uint8-front", "--tail", "softmax", "--std", "0"], "--std has a 0"),
        (
            ["--uint8-front", "--tail", "softmax", "--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"],
            "--mean 123.675,116.28,103.53 is beyond the range of pixels, 0..1 with --scale 1/255: want --scale 1, or "
            "--mean 0.485,0.456,0.406",
        ),
        (["--uint8-front", "--tail", "softmax", "--std", "255"], "--std 255 is beyond the range of pixels, 0..1 with"),
        (
            ["--preprocessing", "imagenet", "--tail", "softmax", "--mean", "0.5"],
            "--preprocessing imagenet and --mean 0.5: want one of the two",
        ),
        (
            ["--uint8-front", "--tail", "softmax", "--scale", "much"],
            "--scale 'much', want numbers such as 0.485 or 1/255",
        ),
        (["--uint8-front", "--tail", "softmax", "--std", "1,inf,1"], "--std 'inf', want numbers such as"),
        (["--uint8-front", "--tail", "softmax", "--colour", "L"], "3 channels as NCHW, want 1 for L"),
        (["--uint8-front", "--tail", "softmax", "--layout", "NHWC"], "12 channels as NHWC"),
        (["--uint8-front", "--tail", "softmax", "--task", "segmentation"], "want a number for each class"),
        (["--uint8-front", "--tail", "softmax", "--name", "Not A Name"], "model name 'Not A Name'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_is_wanted(
    torch_file: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert words in refused(capsys, torch_file, *options)


def test_labels_and_palette_must_be_as_many_as_classes(
    torch_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("#112233\n#445566\n")
    options = ["--uint8-front", "--tail", "softmax"]
    assert f"has 2 labels for {CLASSES} classes" in refused(capsys, torch_file, *options, "--labels", str(few))
    assert f"has 2 colours for {CLASSES} classes" in refused(capsys, torch_file, *options, "--palette", str(few))
    few.write_text("bright red\n")
    line = refused(capsys, torch_file, *options, "--palette", str(few))
    assert "line 1 of" in line
    assert "'bright red', want a colour such as #ff8000 or 255 128 0" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty, want an ONNX file"),
        (b"# Not a network\n", "is not an ONNX file, or an incomplete one: want a complete .onnx file"),
        (b"\x08\x07", "is not a valid ONNX file"),
    ],
)
def test_file_that_is_no_network_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(content)
    assert words in refused(capsys, file)
    whole = from_helper(tmp_path / "whole.onnx").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "or an incomplete one" in refused(capsys, file)


def test_path_that_holds_no_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file" in refused(capsys, tmp_path / "none.onnx")
    assert cli.run(["adopt", str(tmp_path)]) == 2
    assert "is a folder, want an ONNX file" in capsys.readouterr().err


def test_file_that_describes_itself_is_not_adopted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = from_helper(tmp_path / "net.onnx")
    model, _ = adopt(file, "--uint8-front", "--tail", "softmax")
    again = tmp_path / "again.onnx"
    onnx.save(model, again)
    capsys.readouterr()
    assert "is already self-describing" in refused(capsys, again)


def test_result_that_does_not_answer_as_the_file_does_is_refused(
    torch_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convoy.models.onnx_import import wrap

    right = wrap.front_constants
    monkeypatch.setattr(wrap, "front_constants", lambda told: right(told._replace(scale=told.scale * 1.1)))
    line = refused(capsys, torch_file, "--uint8-front", "--tail", "softmax")
    assert "the result differs from the file" in line


def test_adopted_networks_are_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository, labels = tmp_path / "repository", tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS))
    classifier = from_helper(tmp_path / "animals.onnx")
    segmenter = from_torch(tmp_path / "pixels.onnx", Pixelwise(), (2, 3, 32, 48), {0: "N", 2: "H", 3: "W"})
    where = ["--repository", str(repository), "--uint8-front"]
    assert cli.run(["adopt", str(classifier), *where, "--tail", "softmax", "--labels", str(labels)]) == 0
    assert cli.run(["adopt", str(segmenter), *where, "--tail", "argmax"]) == 0
    assert "checked   against the file on" in capsys.readouterr().out
    picture = tmp_path / "picture.png"
    (image,) = pictures(1)
    Image.fromarray(image).save(picture)
    with Server(repository, ["server.lame_duck_seconds=0"]) as server, Client(server.grpc) as client:
        served = client.classify(picture, model="animals", top_k=CLASSES)
        values = (image / 255).transpose(2, 0, 1)[None].astype(np.float32)
        wanted = softmax(run(onnx.load(classifier), values)[0])[0]
        assert {label.name: label.probability for label in served.labels} == pytest.approx(
            dict(zip(LABELS, wanted.tolist(), strict=True)), abs=1e-5
        )
        (large,) = pictures(1, 21, 30)
        assert client.segment(large, model="pixels").mask.shape == (21, 30)
