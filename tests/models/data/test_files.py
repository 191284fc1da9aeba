"""A bad file is named once and left out, and the run goes on as if it had not been there; `--strict` ends it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from convoy.models.data import files
from convoy.models.data.files import Fault, print_faults, raise_first
from convoy.models.data.formats import sources
from convoy.models.data.formats.listing import SPLITS
from convoy.models.data.registry import data_set
from convoy.models.errors import BadData
from convoy.service import cli
from tests.models.data.formats.test_folder import save_mask, write_classes, write_masks
from tests.models.training.test_train import same


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own, as a command is."""
    monkeypatch.setattr(files, "_printed", set())


def spoil(root: Path) -> int:
    """Three pictures that cannot be used for training, each for another reason."""
    shutil.copy(root / "masks" / "p8.png", root / "saved.png")
    (root / "images" / "p7.png").write_bytes((root / "images" / "p7.png").read_bytes()[:60])
    save_mask(root / "masks" / "p8.png", np.zeros((5, 6), np.uint8))
    (root / "masks" / "p10.png").unlink()
    return 3


def test_bad_files_are_named_with_the_reason_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_masks(tmp_path / "squares")
    whole = {split: len(sources.load(root, raise_first).split(split)) for split in SPLITS}
    bad = spoil(root)
    data = data_set(str(root))
    err = capsys.readouterr().err
    assert "images/p7.png cannot be read (image is truncated: " in err
    assert "masks/p8.png is 5x6 (height x width), want 12x16 as" in err
    assert "there is no mask" in err
    assert f"left out {bad} of 40 pictures; --strict makes this an error" in err
    assert err.count("\n") == bad + 1
    assert sum(len(data.split(split)) for split in SPLITS) == sum(whole.values()) - bad
    for split in SPLITS:
        for index in range(len(data.split(split))):
            data.split(split)[index]  # none of those that are left is bad


def test_bad_files_are_told_once_however_often_the_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_masks(tmp_path)
    spoil(root)
    data_set(str(root))
    capsys.readouterr()
    data_set(str(root))
    assert capsys.readouterr().err == ""


def test_one_process_of_a_host_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    print_faults([Fault(Path("a"), "a is bad")], 9)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    print_faults([Fault(Path("a"), "a is bad")], 9)
    assert capsys.readouterr().err.startswith("left out: a is bad\nleft out 1 of 9 pictures")


def test_rank_that_is_left_over_silences_nobody(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    print_faults([Fault(Path("a"), "a is bad")], 9)
    assert capsys.readouterr().err.startswith("left out: a is bad\n")


def test_sound_data_are_told_nothing_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_set(str(write_masks(tmp_path)))
    assert capsys.readouterr().err == ""


def test_strict_names_the_first_bad_file_and_counts_the_others(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    assert data_set(str(root), strict=True)
    bad = spoil(root)
    with pytest.raises(BadData, match=f"; and {bad - 1} more such files$") as caught:
        data_set(str(root), strict=True)
    assert "\n" not in caught.value.message


def test_mask_of_an_unknown_class_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_masks(tmp_path)
    (root / "labels.txt").write_text("ground\nred\ngreen\n")
    odd = np.zeros((9, 21), np.uint8)
    odd[3, 3] = 9
    save_mask(root / "masks" / "p7.png", odd)
    data_set(str(root))
    err = capsys.readouterr().err
    assert "masks/p7.png has the class 9, want 0 to 2, or 255 for none" in err
    assert "left out 1 of 40" in err


def test_nothing_is_left_where_every_file_is_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path)
    for path in (root / "dark").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(
        BadData, match=r"class 'dark' of .* has no pictures that can be read \(20 were left out; the first"
    ):
        data_set(str(root))
    assert "left out 20 of 40" in capsys.readouterr().err


def test_run_with_bad_files_is_the_run_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_masks(tmp_path / "squares")
    (root / "labels.txt").write_text("ground\nred\ngreen\n")
    shutil.copytree(root, tmp_path / "without")
    (root / "images" / "p4.png").write_bytes(b"nothing")
    (tmp_path / "without" / "images" / "p4.png").unlink()
    (tmp_path / "without" / "masks" / "p4.png").unlink()
    train = ["train", "unet", "--epochs", "1", "--set", "width=4", "--set", "depth=2", "--workers", "0", "--data"]
    assert cli.run([*train, "squares"]) == 0
    assert "left out 1 of 40 pictures" in capsys.readouterr().err
    assert cli.run([*train, "without"]) == 0
    assert "left out" not in capsys.readouterr().err
    assert same(tmp_path / "runs/unet-squares/last.ckpt", tmp_path / "runs/unet-without/last.ckpt")

    assert cli.run([*train, "squares", "--strict", "--output", "strict"]) == 2
    err = capsys.readouterr().err
    assert "images/p4.png cannot be read" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "strict").exists()


def test_evaluation_leaves_bad_files_out_unless_it_is_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_classes(tmp_path / "shades", mode="L")
    assert cli.run(["train", "lenet5", "--data", "shades", "--epochs", "1"]) == 0
    evaluate = ["evaluate", "runs/lenet5-shades/last.ckpt"]
    assert cli.run([*evaluate, "--strict"]) == 0
    split = sources.load(root, raise_first).split("test")
    (root / split.name(0)).write_bytes(b"nothing")  # type: ignore[attr-defined]
    capsys.readouterr()
    assert cli.run(evaluate) == 0
    captured = capsys.readouterr()
    assert f"on {len(split) - 1} held-out images" in captured.out
    assert f"left out 1 of {len(split)} pictures" in captured.err
    assert cli.run([*evaluate, "--strict"]) == 2
    assert "cannot be read" in capsys.readouterr().err
