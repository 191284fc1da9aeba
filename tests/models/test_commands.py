"""`convoy train` and `convoy export` as a user types them."""

import re
from pathlib import Path

import msgspec
import pytest

from convoy.models.training.run import RunFolder, default_settings
from convoy.service import cli
from tests.models.conftest import untrained


def test_train_then_export_with_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["train", "lenet5", "--data", "tiny-digits", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    folder = RunFolder(Path("runs/lenet5-tiny-digits"))
    assert "checkpoint  runs/lenet5-tiny-digits/best.ckpt  (the lowest validation loss" in out
    assert folder.chosen().is_file()

    next_command = out.splitlines()[-1].split()
    assert next_command[0] == "convoy"
    assert cli.run(next_command[1:]) == 0
    out = capsys.readouterr().out
    assert "repository/lenet5/1/model.onnx" in out
    assert "100.0000% of predictions are equal" in out
    assert Path("repository/lenet5/1/model.onnx").is_file()


def test_folder_of_a_run_stands_for_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["train", "lenet5", "--data", "tiny-digits"]
    assert cli.run([*train, "--epochs", "1", "-o", "run"]) == 0
    for command in (
        ["evaluate", "run"],
        ["export", "run", "--repository", "repository"],
        ["visualize", "filters", "run"],
        [*train, "--epochs", "1", "--from", "run", "--output", "other"],
        [*train, "--epochs", "2", "--resume", "run"],
    ):
        assert cli.run(command) == 0, command
    assert Path("repository/lenet5/1/model.onnx").is_file()
    assert "checkpoint run/best.ckpt (the lowest validation loss)" in capsys.readouterr().err
    assert Path("run/best-filters.png").is_file()
    note = RunFolder(Path("run")).read()
    assert note is not None
    assert note.epochs == 2

    Path("empty").mkdir()
    capsys.readouterr()
    assert cli.run(["export", "empty", "--repository", "repository"]) == 2
    assert "empty is not the folder of a run, want one that" in capsys.readouterr().err


def test_new_run_replaces_no_other_unless_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["train", "lenet5", "--data", "tiny-digits", "--epochs", "1", "--output", "my run"]
    assert cli.run(train) == 0
    before = {path: path.read_bytes() for path in Path("my run").rglob("*") if path.is_file()}
    capsys.readouterr()

    assert cli.run([*train, "--seed", "1"]) == 0
    captured = capsys.readouterr()
    assert "my run contains a run: this one is written to my run-2" in captured.err
    assert "convoy evaluate 'my run-2/best.ckpt'" in captured.out
    assert {path: path.read_bytes() for path in Path("my run").rglob("*") if path.is_file()} == before

    assert RunFolder(Path("my run")).unoccupied().root == Path("my run-3")
    assert cli.run([*train, "--seed", "2", "--overwrite"]) == 0
    assert "contains a run" not in capsys.readouterr().err
    note = RunFolder(Path("my run")).read()
    assert note is not None
    assert note.settings.seed == 2
    assert not Path("my run-3").exists()
    assert cli.run(["train", "--resume", "my run", "--overwrite"]) == 2
    assert "--overwrite applies to new runs" in capsys.readouterr().err


def test_help_after_an_architecture_shows_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "unet", "--help"]) == 0
    shown = capsys.readouterr().out
    plain, _, defaults = shown.partition("Defaults of unet:")
    assert "--learning-rate" not in shown
    assert "--lr" in plain
    recipe = default_settings("unet", "digit-scenes").recipe
    for wanted in (f"--epochs {recipe.epochs}", f"--lr {recipe.learning_rate:g}", "--flip none", "--scale 1:1"):
        assert wanted in defaults
    assert max(map(len, defaults.splitlines())) <= 80
    for arguments in (["train", "--help"], ["train", "nonsense", "--help"]):
        assert cli.run(arguments) == 0
        assert "Defaults of" not in capsys.readouterr().out
    for option in re.findall(r"--[a-z-]+", defaults):
        assert f"{option} " in plain, option


def test_long_steps_of_an_export_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["export", str(untrained(tmp_path)), "--repository", "repo sitory", "--strict"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "tracing lenet5 ...",
        "comparing onnxruntime with PyTorch ...",
        "measuring on held-out images of tiny-digits ...",
        "writing ...",
    ]
    assert "convoy serve --repository 'repo sitory'\n" in captured.out


LOSS = ["--loss", "focal", "--gamma", "1.5", "--class-weights", "balanced"]


def test_options_reach_the_run(tmp_path: Path) -> None:
    options = [
        "--set",
        "width=4",
        "--set",
        "depth=2",
        "--epochs",
        "1",
        "--optimizer",
        "sgd",
        "--lr",
        "0.01",
        "--seed",
        "5",
    ]
    more = ["--batch-size", "24", "--patience", "3", "--weight-decay", "0.5", *LOSS, "--output", str(tmp_path / "run")]
    assert cli.run(["train", "unet", "--data", "tiny-scenes", *options, *more]) == 0
    note = RunFolder(tmp_path / "run").read()
    assert note is not None
    recipe = note.settings.recipe
    assert note.settings.arguments == {"width": 4, "depth": 2}
    assert note.settings.seed == 5
    assert (recipe.epochs, recipe.optimizer, recipe.learning_rate, recipe.batch_size) == (1, "sgd", 0.01, 24)
    assert (recipe.patience, recipe.weight_decay) == (3, 0.5)
    assert (recipe.loss, recipe.gamma, recipe.class_weights) == ("focal", 1.5, "balanced")


def test_resumed_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    train = ["train", "lenet5", "--data", "tiny-digits"]
    assert cli.run([*train, "--epochs", "1", "--output", str(folder.root)]) == 0
    assert cli.run([*train, "--epochs", "2", "--resume", str(folder.last)]) == 0
    note = folder.read()
    assert note is not None
    assert note.epochs == 2


def test_resumed_run_keeps_the_options_it_was_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    train = ["train", "unet", "--data", "tiny-scenes"]
    told = ["--set", "width=4", "--set", "depth=2", "--seed", "5", "--lr", "0.01", "--epochs", "1"]
    assert cli.run([*train, *told, "--output", str(folder.root)]) == 0
    first = folder.read()
    assert cli.run([*train, "--epochs", "2", "--resume", str(folder.last)]) == 0
    second = folder.read()
    assert first is not None
    assert second is not None
    longer = msgspec.structs.replace(first.settings.recipe, epochs=2)
    assert second.settings == msgspec.structs.replace(first.settings, recipe=longer)


def test_finished_run_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "run")
    train = ["train", "lenet5", "--data", "tiny-digits", "--epochs", "1"]
    assert cli.run([*train, "--output", str(folder.root)]) == 0
    capsys.readouterr()
    new = tmp_path / "new"
    assert cli.run([*train, "--resume", str(folder.last), "--output", str(new)]) == 2
    assert "last.ckpt has 1 epochs of 1: nothing remains to train, want --epochs above 1" in capsys.readouterr().err
    assert not new.exists()


def test_size_of_the_input_reaches_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "unet", "--data", "tiny-scenes", "--epochs", "1", "--output", str(tmp_path / "run")]
    assert cli.run([*train, "--size", "64x96"]) == 2
    assert "size 64x96: unet accepts images of any size" in capsys.readouterr().err
    assert cli.run([*train, "--size", "64x"]) == 2
    assert "--size '64x', want HEIGHTxWIDTH" in capsys.readouterr().err


def test_defaults_are_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def run(settings: object, *_: object) -> None:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("convoy.models.training.train.train", run)
    assert cli.run(["train", "unet", "--data", "digit-scenes", "--output", str(tmp_path)]) == 130
    assert seen == [default_settings("unet", "digit-scenes")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet6", "--data", "digits"], "architecture 'lenet6', want one of: lenet5, "),
        (["lenet5", "--data", "mnist"], "data set 'mnist', want one of: digits, "),
        (["lenet5", "--data", "digits", "--set", "width=8"], "width = '8' is no argument of lenet5, it has none"),
        (["unet", "--data", "digit-scenes", "--set", "width"], "--set 'width', want NAME=VALUE"),
        (["unet", "--data", "digit-scenes", "--set", "width=x"], "width = 'x', want an integer"),
        (["unet", "--data", "digit-scenes", "--set", "with=8"], "want one of: width, depth"),
        (["lenet5", "--data", "digit-scenes"], "lenet5 is for classification"),
        (["lenet5", "--data", "digits", "--crop", "16"], "crop 16: lenet5 accepts whole images only"),
        (["lenet5", "--data", "digits", "--size", "8"], "lenet5 at 8x8: c3: nothing is left by a convolution of 6x2x2"),
        (["lenet5", "--data", "digits", "--ema", "2"], "--ema 2.0: expected `float` < 1.0"),
        (["lenet5", "--data", "digits", "--clip", "0"], "--clip 0.0: expected `float` > 0.0"),
        (["lenet5"], "want --data DATA"),
        (["lenet5", "--data", "digits", "--resume", "none.ckpt"], "there is no checkpoint none.ckpt"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
