"""`convoy inspect` as a user types it, and figures of known networks."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from convoy.models import zoo
from convoy.models.analysis import torch_reader
from convoy.models.analysis.rows import Anatomy, Row
from convoy.models.analysis.summary import Totals, inspect_architecture, inspect_file, totals
from convoy.models.errors import BadTraining
from convoy.service import cli


def rows(name: str, **options: object) -> dict[str, Row]:
    whole = inspect_architecture(name, **options)  # type: ignore[arg-type]
    return {row.layer: row for row in whole.rows}


def test_vgg16_costs_what_its_table_says() -> None:
    # Column D: 3x3 convolutions by the side of their maps, then the dense layers.
    stacks = {224: [(3, 64), (64, 64)], 112: [(64, 128), (128, 128)], 56: [(128, 256), (256, 256), (256, 256)]}
    stacks |= {28: [(256, 512), (512, 512), (512, 512)], 14: [(512, 512)] * 3}
    convolutions = sum(side * side * 9 * before * after for side, pairs in stacks.items() for before, after in pairs)
    dense = 7 * 7 * 512 * 4096 + 4096 * 4096 + 4096 * 1000
    assert convolutions + dense == 15_470_264_320
    assert totals("vgg16") == Totals(parameters=138_357_544, multiply_adds=15_470_264_320)


def test_vgg16_sees_212_pixels_in_steps_of_32_behind_its_last_pooling() -> None:
    (row, *_) = [row for row in inspect_architecture("vgg16").rows if row.shape == (512, 7, 7)]
    assert row.kind == "max pooling 2x2 / 2"
    assert [(field.size, field.stride, field.offset) for field in row.fields] == [(212, 32, Fraction(31, 2))] * 2


def test_alexnet_sees_what_distill_says() -> None:
    # Araujo et al. 2019, table: 195 pixels of the version of 2014, whose layers are those from pool1 to pool5.
    table = rows("alexnet")
    fields = {layer.partition(".")[2]: row.fields[0].size for layer, row in table.items() if "features" in layer}
    expected = {
        "conv1": 11,
        "pool1": 19,
        "conv2": 51,
        "pool2": 67,
        "conv3": 99,
        "conv4": 131,
        "conv5": 163,
        "pool5": 195,
    }
    assert expected.items() <= fields.items()
    assert [table[f"features.{layer}"].fields[0].stride for layer in ("conv1", "pool1", "pool2", "pool5")] == [
        4,
        8,
        16,
        32,
    ]


def test_resnet50_costs_what_its_paper_says() -> None:
    # Table 1 of the paper prints 3.8e9; the stride on the 3x3 convolution makes it 4.1e9.
    assert totals("resnet50").multiply_adds == 3_857_973_248
    assert totals("resnet50", arguments={"form": "v1.5"}).multiply_adds == 4_089_184_256


def test_lenet5_has_the_connections_of_its_paper() -> None:
    table = rows("lenet5")
    # Each trainable number is used once a position (section II.B): C1, C3, C5, F6.
    positions = {layer: row.shape[1] * row.shape[2] if len(row.shape) > 1 else 1 for layer, row in table.items()}
    connections = {layer: row.parameters * positions[layer] for layer, row in table.items()}
    assert (connections["c1"], connections["c3"], connections["c5"]) == (122_304, 151_600, 48_120)
    assert table["f6"].parameters == 10_164
    # What runs: a dense convolution in place of C3's table, and no sums with the biases.
    assert [table[layer].multiply_adds for layer in ("c1", "c3", "c5")] == [117_600, 240_000, 48_000]


def test_field_of_fcn_is_404_pixels() -> None:
    row = rows("fcn32s", size=(64, 64), arguments={"width": 1})["score"]
    assert [(field.size, field.stride) for field in row.fields] == [(404, 32)] * 2


def test_size_classes_channels_and_arguments_reach_the_network() -> None:
    whole = inspect_architecture("mobilenet", (64, 96), classes=5, channels=1, arguments={"alpha": 0.5})
    assert whole.image == (1, 1, 64, 96)
    assert whole.rows[0].shape == (16, 32, 48)
    assert whole.rows[-1].shape == (5, 1, 1)
    assert whole.parameters == totals("mobilenet", (32, 32), 5, 1, {"alpha": 0.5}).parameters


def test_nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read = torch_reader.read

    def watched(network: torch.nn.Module, shape: tuple[int, ...]) -> object:
        seen.extend(network.state_dict().values())
        return read(network, shape)

    monkeypatch.setattr(torch_reader, "read", watched)
    inspect_architecture("vgg19")
    assert len(seen) == 38
    assert all(tensor.is_meta for tensor in seen)


def test_wrong_arguments_are_told_as_the_registry_does() -> None:
    with pytest.raises(BadTraining, match="no argument of vgg16"):
        inspect_architecture("vgg16", (16, 16), arguments={"depth": 3})
    with pytest.raises(BadTraining, match="unet: image is 30x32, want sides that are multiples of 8"):
        inspect_architecture("unet", (30, 32))
    with pytest.raises(BadTraining, match="locally_connected: l5: a 3x3 kernel without shared weights gets 2x2 pixels"):
        inspect_architecture("locally_connected", size=(20, 20))
    with pytest.raises(BadTraining, match="accepts an input of 2 sides"):
        inspect_architecture("unet", (30, 32, 3))


def test_table_of_an_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "lenet5"]) == 0
    title, header, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert title == ["lenet5,", "input", "1x32x32"]
    assert header == ["layer", "kind", "output", "parameters", "multiply-adds", "field", "stride", "offset"]
    assert lines[0] == ["c1", "convolution", "5x5", "6x28x28", "156", "117,600", "5", "1", "2"]
    assert lines[1] == ["s2", "mean", "pooling", "2x2", "/", "2", "6x14x14", "6", "2", "2.5"]
    assert ["f6", "dense", "84", "10,164", "10,080", "all", "-", "-"] in lines
    assert lines[-2] == ["total", "60,850", "416,520"]
    assert " ".join(lines[-1]) == "not shown: mul x12, tanh x6"


def test_axes_that_differ_are_both_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "inception_v3"]) == 0
    out = capsys.readouterr().out
    (line,) = [line.split() for line in out.splitlines() if "mixed.4.1.1.conv " in line]
    assert line[:4] == ["mixed.4.1.1.conv", "convolution", "1x7", "128x17x17"]
    height, width = line[-3].split("x")
    assert int(width) == int(height) + 6 * 16
    assert line[-2] == "16"


def test_branches_with_other_centres_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "xception", "--size", "96x96"]) == 0
    assert "* branches that merge here have different centres" in capsys.readouterr().out
    assert cli.run(["inspect", "resnet18", "--size", "96x96"]) == 0
    assert "*" not in capsys.readouterr().out


def test_heads_for_training_have_their_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "googlenet"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "heads in training only 6,379,728" in lines
    assert any(line.startswith("total 13,378,280 ") for line in lines)


def test_checkpoint_is_shown_as_its_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.ckpt"
    zoo.untrained("unet", path, 3, arguments={"width": 2, "depth": 2})
    given = {"arguments": {"width": 2, "depth": 2}, "classes": 3, "size": (32, 48)}
    expected: Anatomy = inspect_architecture("unet", **given)  # type: ignore[arg-type]
    assert inspect_file(path, (32, 48)) == expected
    assert cli.run(["inspect", str(path), "--size", "32x48"]) == 0
    assert f"{path}, input 3x32x48" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["vgg16", "--size", "16x16"],
            "vgg16 at 16x16: features.4.6: nothing is left by max pooling of 512x1x1 "
            "with kernel 2x2, stride 2, padding 0",
        ),
        (
            ["inception_v3", "--size", "40x40"],
            "inception_v3 at 40x40: mixed.3.0.0.conv: nothing is left by a convolution of 288x2x2 "
            "with kernel 3x3, stride 2, padding 0",
        ),
        (["lenet5", "--size", "40x40"], "lenet5 at 40x40: f6: a dense layer for 120 numbers gets 1,080"),
        (["lenet6"], "architecture 'lenet6', want one of: lenet5, "),
        (["unet", "--set", "with=8"], "with = '8' is no argument of unet"),
        (["lenet5", "--size", "40x"], "--size '40x', want HEIGHTxWIDTH"),
        (["none.onnx"], "'none.onnx': No such file or directory"),
        (["none.ckpt"], "there is no checkpoint none.ckpt"),
        (["picture.png"], "picture.png is neither a checkpoint (.ckpt) nor an ONNX file (.onnx)"),
        (["picture.png", "--classes", "3"], "picture.png is a file: --set, --classes and --channels apply to arch"),
        (["text.onnx"], "text.onnx is not an ONNX file"),
        (["text.ckpt"], "text.ckpt is not a checkpoint"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("picture.png", "text.onnx", "text.ckpt"):
        Path(name).write_bytes(b"neither this nor that")
    assert cli.run(["inspect", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"convoy inspect: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
