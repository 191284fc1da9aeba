"""`convoy data check`: what a data set holds, what is wrong with it, and a sheet of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.models.data import files
from convoy.models.data.contact_sheet import GAP, SIDE, TEXT, Tile, sheet
from convoy.models.data.dataset import IGNORE
from convoy.service import cli
from tests.models.data.formats.test_folder import PALETTE, save_mask, write_classes, write_masks
from tests.models.own_data import write_cifar10, write_idx, write_voc


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_printed", set())


def checked(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, object]]:
    code = cli.run(["data", "check", str(root), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def write_noise(root: Path, count: int = 20) -> Path:
    """Pictures of two classes, no two the same, below the three splits."""
    random = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for label in ("left", "right"):
            (root / split / label).mkdir(parents=True)
            for number in range(count if label == "left" else count // 2):
                pixels = random.integers(0, 256, (8, 8 + number % 3, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return root


def test_files_that_are_not_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_voc(tmp_path / "VOC2012")
    assert checked(root, capsys)[1]["unused"] == {}
    (root / "Annotations").mkdir()
    for name in ("one.xml", "two.xml", "THREE.XML", ".hidden.xml"):
        (root / "Annotations" / name).touch()
    shutil.copy(root / "JPEGImages" / "2007_000003.jpg", root / "JPEGImages" / "in-no-list.jpg")
    (root / "LICENSE").touch()
    assert checked(root, capsys)[1]["unused"] == {".xml": 3, ".jpg": 1, "no ending": 1}
    cli.run(["data", "check", str(root)])
    assert "not used  other files in the folder: 3 .xml, 1 " in capsys.readouterr().out
    (root / "JPEGImages" / "2007_000005.jpg").write_bytes(b"nothing")  # left out, and so is its mask
    assert checked(root, capsys)[1]["unused"] == {".xml": 3, ".jpg": 1, "no ending": 1}


def test_sound_folder_is_told_in_full_and_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(write_noise(tmp_path), capsys)
    assert code == 0
    assert (found["task"], found["labels"], found["read_as"], found["grey"]) == (
        "classification",
        ["left", "right"],
        "RGB",
        0,
    )
    train = found["splits"]["train"]  # type: ignore[index]
    assert (train["count"], train["classes"]) == (30, [20, 10])
    assert train["sizes"] == {
        "smallest": [8, 8],
        "median": [8, 9],
        "largest": [8, 10],
        "commonest": [8, 8],
        "commonest_count": 11,
        "different": 3,
    }
    assert found["balance"] == 2
    assert found["unusable"] == found["copies"] == []


def test_picture_in_two_splits_is_found_also_in_another_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_noise(tmp_path)
    with Image.open(root / "train" / "left" / "3.png") as image:
        image.save(root / "test" / "right" / "copy.bmp")
    code, found = checked(root, capsys)
    assert code == 1
    assert found["copies"] == [
        {
            "pictures": [["train", "train/left/3.png"], ["test", "test/right/copy.bmp"]],
            "across": True,
            "conflict": True,
        }
    ]


def test_picture_twice_in_one_split_is_told_and_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_noise(tmp_path)
    shutil.copy(root / "train" / "left" / "3.png", root / "train" / "left" / "again.png")
    code, found = checked(root, capsys)
    assert code == 0
    (copies,) = found["copies"]  # type: ignore[misc]
    assert (copies["across"], copies["conflict"], len(copies["pictures"])) == (False, False, 2)


def test_pictures_that_differ_in_one_pixel_are_no_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_noise(tmp_path)
    with Image.open(root / "train" / "left" / "3.png") as image:
        image.putpixel((0, 0), (image.getpixel((0, 0))[0] ^ 1, 0, 0))  # type: ignore[index]
        image.save(root / "test" / "left" / "nearly.png")
    assert checked(root, capsys)[0] == 0


def test_unreadable_files_are_told_with_the_reason_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_noise(tmp_path)
    (root / "train" / "left" / "5.png").write_bytes(b"nothing")
    assert cli.run(["data", "check", str(root)]) == 1
    captured = capsys.readouterr()
    assert "left out  1 cannot be used for training" in captured.out
    assert "left/5.png cannot be read (damaged, or no picture), want a picture" in captured.out
    assert captured.err == ""
    (unusable,) = checked(root, capsys)[1]["unusable"]  # type: ignore[misc]
    assert unusable["file"] == str(root / "train" / "left" / "5.png")
    assert unusable["reason"] in captured.out


def test_masks_are_told_by_their_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "squares"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(40):
        Image.new("L", (10, 10), 6 * number).save(root / "images" / f"p{number}.png")
        mask = np.zeros((10, 10), np.uint8)
        mask[:2], mask[9] = 1, 255
        save_mask(root / "masks" / f"p{number}.png", mask)
    code, found = checked(root, capsys)
    assert code == 0
    train = found["splits"]["train"]  # type: ignore[index]
    assert train["pixel_shares"] == pytest.approx([70 / 90, 20 / 90])
    assert train["ignored_share"] == pytest.approx(0.1)
    assert found["balance"] == pytest.approx(3.5)
    assert (found["grey"], found["read_as"]) == (40, "L")
    assert cli.run(["data", "check", str(root)]) == 0
    out = capsys.readouterr().out
    assert "squares: segmentation, 2 classes, 40 pictures" in out
    assert "22.22%" in out
    assert "ignored   10.00% of the training pixels have no class" in out
    assert "sizes     train: all 10x10" in out


def test_class_without_a_pixel_has_no_balance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_masks(tmp_path / "squares")
    (root / "labels.txt").write_text("ground\nred\ngreen\nblue\n")
    cli.run(["data", "check", str(root)])
    assert "balance   no training pictures of: blue" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tiny-digits", "tiny-scenes"])
def test_data_sets_by_name_are_checked_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "check", name]) == 0
    assert "0 cannot be used for training" in capsys.readouterr().out


def test_tensors_are_told_by_their_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "check", "gait"]) == 0
    out = capsys.readouterr().out
    assert "950 tensors" in out
    assert "3x128 to 3x192" in out
    assert cli.run(["data", "check", "gait", "--sheet", "x.png"]) == 2
    assert "gait has no images to show" in capsys.readouterr().err


def test_binary_and_listed_data_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root in (write_idx(tmp_path / "mnist"), write_cifar10(tmp_path / "cifar")):
        code, found = checked(root, capsys)
        assert code == 1  # a few pictures again and again
        assert found["copies"][0]["across"]  # type: ignore[index]
    (tmp_path / "VOC2012").mkdir()
    shutil.rmtree(tmp_path / "VOC2012")
    code, found = checked(write_voc(tmp_path / "VOC2012"), capsys)
    assert code == 0
    assert len(found["labels"]) == 21  # type: ignore[arg-type]


def test_too_little_to_make_a_data_set_of_is_told_after_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_noise(tmp_path)
    for path in (root / "train" / "left").iterdir():
        path.write_bytes(b"nothing")
    assert cli.run(["data", "check", str(root)]) == 2
    err = capsys.readouterr().err
    assert err.count("left out: ") == 20
    assert "has pictures in validation and test only (20 were left out; the first: " in err


def test_sheet_shows_as_many_of_every_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "shades", 60)
    assert cli.run(["data", "check", str(root), "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert "sheet     48 of" in capsys.readouterr().out
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    centres = [
        picture[GAP + row * (SIDE + 28) + SIDE // 2, GAP + column * (SIDE + GAP) + SIDE // 2, 0]
        for row in range(6)
        for column in range(8)
    ]
    assert sorted(centres) == [40] * 24 + [210] * 24


def test_sheet_of_masks_lays_them_over(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "squares")
    cli.run(["data", "check", str(root), "--sheet", str(tmp_path / "sheet.png")])
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert picture.shape[1] == 4 * (2 * SIDE + GAP) + GAP
    legend = {tuple(colour) for colour in picture[-TEXT - GAP :].reshape(-1, 3).tolist()}
    assert set(PALETTE) <= legend


def test_sheet_tells_the_colours_of_the_classes_in_its_masks_only() -> None:
    palette = [(0, 0, 0), (200, 30, 30), (30, 200, 30), (30, 30, 200)]
    image, mask = np.full((16, 16, 3), 90, np.uint8), np.zeros((16, 16), np.uint8)
    mask[:8], mask[8:10] = 2, IGNORE
    drawn = np.asarray(sheet([Tile(image, "", mask)] * 4, palette, ["ground", "car", "tree", "sky"]))
    legend = {tuple(colour) for colour in drawn[-TEXT - GAP :].reshape(-1, 3).tolist()}
    assert {palette[0], palette[2]} <= legend
    assert not {palette[1], palette[3]} & legend
    plain = np.asarray(sheet([Tile(image, "car")] * 4, None, ["ground", "car"]))
    assert drawn.shape[0] == plain.shape[0] + TEXT + GAP


def test_what_cannot_be_checked_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["check", "nowhere"], "data set 'nowhere', want one of: digits"),
        (["check", "digits", "--sheet", "none/x.png"], "there is no folder 'none'"),
        (["check"], "Missing argument 'DATA'"),
    ):
        assert cli.run(["data", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
