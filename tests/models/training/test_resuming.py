"""A run that goes on is the same run: what cannot be told anew is refused before anything in its folder is touched."""

import shutil
from pathlib import Path

import msgspec
import pytest

from convoy.models.errors import BadTraining
from convoy.models.training.run import RunFolder
from convoy.models.training.train import train
from convoy.service import cli
from tests.models.conftest import settings
from tests.models.pictures import draw


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, in `run`, on `pictures` beside it."""
    root = tmp_path_factory.mktemp("whole")
    train(settings(data=str(draw(root / "pictures")), epochs=1), root / "run")
    return root


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "sgd"], "was trained with optimizer 'adamw', this run has 'sgd'"),
        (["--lr", "0.5"], "was trained with learning_rate 0.001, this run has 0.5"),
        (["--batch-size", "7"], "was trained with batch_size 32, this run has 7"),
        (["--ema", "0.9"], "was trained with ema None, this run has 0.9"),
        (["--seed", "5"], "was trained with seed 0, this run has 5"),
        (["--from", "last.ckpt"], "--from applies to new runs, and --resume continues one"),
        (["--find-lr"], "--find-lr applies to new runs"),
        (["--preview", "p.png"], "--preview applies to new runs"),
    ],
)
def test_what_a_run_that_goes_on_cannot_be_told_anew_is_refused_and_leaves_its_folder_alone(
    whole: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in (whole / "run").iterdir() if path.is_file()}
    assert cli.run(["train", "--resume", str(whole / "run" / "last.ckpt"), "--epochs", "2", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (whole / "run").iterdir() if path.is_file()} == before


def test_run_goes_on_where_its_pictures_lie_now_but_not_with_other_ones(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "pictures", tmp_path / "moved")
    told = settings(data=str(tmp_path / "moved"), epochs=2)
    resume = whole / "run" / "last.ckpt"
    assert train(told, tmp_path / "more", resume).epochs == 2
    next((tmp_path / "moved" / "train").glob("*/*.png")).unlink()
    with pytest.raises(
        BadTraining, match=r"with other pictures \(31 for training and 11 for .* now \(30 for training and 11 for"
    ):
        train(told, tmp_path / "other", resume)
    assert not (tmp_path / "other").exists()


def test_what_hangs_on_no_state_may_be_told_anew(whole: Path, tmp_path: Path) -> None:
    told = settings(data=str(whole / "pictures"), epochs=2, patience=3, clip=1.0, keep=2, loss="focal")
    note = train(told, tmp_path / "more", whole / "run" / "last.ckpt")
    assert (note.epochs, note.settings.recipe) == (2, told.recipe)


def test_config_keeps_its_recipe_for_other_data_and_another_architecture(whole: Path, tmp_path: Path) -> None:
    given = ["--config", str(whole / "run" / "config.toml"), "--lr", "0.002"]
    other = str(draw(tmp_path / "other", classes=("left", "right")))
    assert cli.run(["train", *given, "--data", other, "--output", str(tmp_path / "data")]) == 0
    assert cli.run(["train", "lenet1989", *given, "--output", str(tmp_path / "architecture")]) == 0
    first = RunFolder(whole / "run").read()
    assert first is not None
    for name in ("data", "architecture"):
        note = RunFolder(tmp_path / name).read()
        assert note is not None
        assert note.settings.recipe == msgspec.structs.replace(first.settings.recipe, learning_rate=0.002)


def test_run_whose_loss_is_no_number_ends_in_words_and_has_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = settings(epochs=20, optimizer="sgd", learning_rate=1000.0, batch_size=8)
    with pytest.raises(BadTraining, match=r"validation loss is (nan|inf) after epoch \d+: want a lower --lr than 1000"):
        train(told, tmp_path / "run")
    note = RunFolder(tmp_path / "run").read()
    assert note is not None
    assert not note.complete
    assert cli.run(["train", "lenet5", "--data", "tiny-digits", "--lr", "inf"]) == 2
    assert "--lr inf: expected" in capsys.readouterr().err
