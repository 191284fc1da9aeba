"""Folders as they come from other people's machines: a system's own files, accents in two forms, masks as painted."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from convoy.models.data.dataset import DataSet, Split
from convoy.models.data.files import raise_first
from convoy.models.data.formats import sources
from convoy.models.data.formats.listing import SPLITS, assigned_split
from convoy.models.data.registry import split_of
from convoy.models.errors import BadData
from convoy.service import cli
from tests.models.data.formats.test_folder import write_classes, write_lists, write_masks
from tests.models.own_data import write_voc

TWO_FORMS = ("caf\u00e9", "cafe\u0301")


def load(root: Path) -> DataSet:
    return sources.load(root, raise_first)


def count(data: DataSet) -> int:
    return sum(len(data.split(split)) for split in SPLITS)


def picture(path: Path, value: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (10, 12), value).save(path)


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "__MACOSX", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN", "#recycle", "System Volume Information"],
)
@pytest.mark.parametrize("inside", ["", "dark", "dark/more"])
def test_folder_of_a_system_is_passed_over_at_any_depth(tmp_path: Path, name: str, inside: str) -> None:
    root = write_classes(tmp_path)
    picture(root / inside / name / "0.png" / "SYNOPHOTO_THUMB_M.png")
    picture(root / inside / name / "0.png.png")
    data = load(root)
    assert data.labels == ["dark", "light"]
    assert count(data) == 40


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found"])
def test_folder_of_a_system_is_none_of_masks_or_splits(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_masks(tmp_path)
    for folder in ("", "images", "masks"):
        picture(root / folder / name / "images" / "p1.png")
        picture(root / folder / name / "._p1.png")
    assert count(load(root)) == 40
    cli.run(["data", "check", str(root), "--json"])
    assert msgspec.json.decode(capsys.readouterr().out)["unused"] == {}


@pytest.mark.parametrize("composed", [True, False])
def test_class_in_two_forms_is_one(tmp_path: Path, composed: bool) -> None:
    first, second = TWO_FORMS if composed else reversed(TWO_FORMS)
    for split, label in (("train", first), ("test", second)):
        for number in range(6):
            picture(tmp_path / split / label / f"{number}.png", 10 * number)
            picture(tmp_path / split / "tea" / f"{number}.png", 11 * number)
    data = load(tmp_path)
    assert data.labels == [TWO_FORMS[0], "tea"]
    assert (count(data), len(data.split("test"))) == (24, 12)


@pytest.mark.parametrize("composed", [True, False])
def test_table_names_files_and_classes_in_either_form(tmp_path: Path, composed: bool) -> None:
    listed, lying = TWO_FORMS if composed else reversed(TWO_FORMS)
    rows = []
    for number in range(8):
        picture(tmp_path / lying / f"{lying}{number}.png")
        rows.append(f"{listed}/{listed}{number}.png,{'tea' if number % 2 else TWO_FORMS[number // 2 % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    data = load(tmp_path / "t.csv")
    assert data.labels == [TWO_FORMS[0], "tea"]
    assert count(data) == 8


@pytest.mark.parametrize("listed", [True, False])
def test_picture_its_mask_and_a_list_may_be_in_different_forms(tmp_path: Path, listed: bool) -> None:
    root = write_masks(tmp_path)
    for number, (composed, apart) in enumerate([TWO_FORMS, TWO_FORMS[::-1]]):
        (root / "images" / f"p{1 + number}.png").rename(root / "images" / f"{composed}{number}.png")
        (root / "masks" / f"p{1 + number}.png").rename(root / "masks" / f"{apart}{number}.png")
    if listed:
        write_lists(root, f"{TWO_FORMS[0]}0 p4 p5", "p7", f"{TWO_FORMS[0]}1 p8")
    assert count(load(root)) == (6 if listed else 40)


def test_picture_has_the_same_split_in_both_forms() -> None:
    names = [f"ä/é{number}.png" for number in range(50)]
    assert [assigned_split(name) for name in names] == [
        assigned_split(unicodedata.normalize("NFD", name)) for name in names
    ]


def test_labels_in_two_forms_are_one_label_twice(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    (root / "labels.txt").write_text("\n".join(["ground", *TWO_FORMS]), encoding="utf-8")
    with pytest.raises(BadData, match=r"labels\.txt names 'café' 2 times"):
        load(root)


def test_masks_elsewhere_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_masks(tmp_path)
    (root / "masks").rename(root / "labels")
    assert cli.run(["data", "check", str(root)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"no folder {root / 'masks'}, want the mask of each picture of {root / 'images'} there" in err
    assert "there is 'labels/'" in err


def without_masks_of_voc(root: Path) -> Path:
    write_voc(root)
    (root / "SegmentationClass").rename(root / "labels")
    return root


def called_otherwise(root: Path) -> Path:
    write_masks(root)
    for mask in list((root / "masks").iterdir()):
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    return root


def no_file_of_a_table(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    lines = [f"{number}.png,{number % 2}\n" for number in range(30)]
    (root / "t.csv").write_text("path,label\n" + "".join(lines))
    return root / "t.csv"


def coloured(root: Path) -> Path:
    """Edges are smoothed, so that there are more colours than classes."""
    write_masks(root)
    for number, mask in enumerate((root / "masks").iterdir()):
        height, width = np.array(Image.open(mask)).shape
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(mask)
    return root


NOTHING_FITS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "masks of VOC elsewhere": (without_masks_of_voc, "no folder .*SegmentationClass, want the masks of"),
    "masks called otherwise": (called_otherwise, r"found 'p0_mask\.png', want 'p0\.png'"),
    "no file of a table": (no_file_of_a_table, r"no file .*/0\.png, which .*; none of 30 lines has all its files"),
    "masks in many colours": (
        coloured,
        r"has the colours .* and \d+ more, .*, or --mask-colours .*; no other of the 40 pictures",
    ),
}


@pytest.mark.parametrize("kind", NOTHING_FITS)
def test_what_fits_nowhere_is_one_line(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    write, message = NOTHING_FITS[kind]
    path = write(tmp_path)
    with pytest.raises(BadData, match=message):
        sources.load(path, lambda *_: None)
    assert cli.run(["data", "check", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_mask_with_another_ending_is_its_pictures(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    for number, mask in enumerate(sorted((root / "masks").iterdir())):
        if number % 2:
            mask.rename(mask.with_suffix(".PNG"))
    assert count(load(root)) == 40


def paint(root: Path, values: dict[int, int]) -> Path:
    write_masks(root)
    for mask in (root / "masks").iterdir():
        pixels = np.array(Image.open(mask))
        painted = np.zeros_like(pixels)
        for number, value in values.items():
            painted[pixels == number] = value
        Image.fromarray(painted).save(mask)
    return root


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ({1: 64, 2: 255}, "", "have the numbers 0, 64, which leaves 63 classes without a pixel"),
        ({1: 64, 2: 255}, "", "--mask-values 0,64 (255 is no class; if it is one: 0,64,255)"),
        ({1: 1, 2: 254}, "", "have the numbers 0, 1, 254, which leaves 252 classes"),
        ({1: 1, 2: 254}, "", "want each pixel as the number of its class: 0, 1, 2 and on, or which values they are: "),
        ({1: 1, 2: 254}, "", "--mask-values 0,1,254"),
        ({1: 255, 2: 255}, "sky\nground\nroad\n", "no class but 0, want at least two: 255 is a pixel of no class; "),
        ({1: 255, 2: 255}, "sky\nground\nroad\n", "where it is meant as a class: --mask-values 0,255"),
        ({1: 128, 2: 192}, "ground\nroad\n", "have the numbers 0, 128, 192, and 2 classes have names: want each pixel"),
    ],
)
def test_painted_masks_are_refused_with_the_choice(
    tmp_path: Path, values: dict[int, int], labels: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint(tmp_path, values)
    if labels:
        (root / "labels.txt").write_text(labels)
    for command in (["data", "check", str(root)], ["train", "unet", "--data", str(root), "--crop", "8"]):
        assert cli.run(command) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("value", [255, 128])
@pytest.mark.parametrize("labels", ["", "ground\nroad\n"])
def test_masks_of_zero_and_one_high_value_are_two_classes(
    tmp_path: Path, value: int, labels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint(tmp_path, {1: value, 2: value})
    if labels:
        (root / "labels.txt").write_text(labels)
    data = load(root)
    assert data.labels == (labels.split() or ["class 0", "class 1"])
    _, mask = data.split("train")[0]
    assert np.unique(np.asarray(mask)).tolist() == [0, 1]
    said = capsys.readouterr().err
    assert f"have the values 0 and {value}, read as the classes 0 and 1 (--mask-values 0,{value})" in said
    load(root)
    assert capsys.readouterr().err == ""


def test_masks_of_a_few_distant_values_are_as_many_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = paint(tmp_path, {1: 128, 2: 200})
    data = load(root)
    assert data.labels == ["class 0", "class 1", "class 2"]
    assert used(data.split("train")) == {0, 1, 2}
    said = "have the values 0, 128 and 200, read as the classes 0 to 2 (--mask-values 0,128,200)"
    assert said in capsys.readouterr().err


def test_masks_of_a_few_values_less_distant_are_told_and_read_as_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint(tmp_path, {1: 10, 2: 20})
    assert len(load(root).labels) == 21
    said = (
        "the numbers 0, 10, 20, which leaves 18 classes without a pixel; if these are values painted for the classes: "
    )
    assert f"{said}--mask-values 0,10,20" in capsys.readouterr().err


def recolour(root: Path, colours: tuple[int, int, int], mode: str = "RGB", ending: str = ".png") -> Path:
    """Paints classes 0, 1 and 2 in colours."""
    for mask in (root / "masks").iterdir():
        pixels = np.array(Image.open(mask))
        pixels[pixels == 255] = 0
        packed = np.array(colours)[pixels]
        rgb = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)
        mask.unlink()
        Image.fromarray(rgb).convert(mode).save(mask.with_suffix(ending))
    return root


@pytest.mark.parametrize(("mode", "ending"), [("RGB", ".png"), ("RGBA", ".png"), ("RGB", ".tif"), ("RGB", ".bmp")])
def test_masks_of_a_few_colours_are_as_many_classes_in_these_colours(
    tmp_path: Path, mode: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = recolour(write_masks(tmp_path), (0x000000, 0xFF0000, 0x00FF00), mode, ending)
    data = load(root)
    assert data.palette == [(0, 0, 0), (0, 255, 0), (255, 0, 0)]
    assert used(data.split("train")) == {0, 1, 2}
    told = "have 3 colours, read as the classes 0 to 2 (--mask-colours 000000,00ff00,ff0000)"
    assert told in capsys.readouterr().err


def test_written_palette_has_the_order_of_the_classes(tmp_path: Path) -> None:
    root = recolour(write_masks(tmp_path), (0x102030, 0xFF0000, 0x00FF00))
    (root / "labels.txt").write_text("ground\nred\ngreen\n")
    with pytest.raises(
        BadData, match=r"3 colours and its labels.txt has 3 names: .*; the colours are 00ff00,102030,ff"
    ):
        load(root)
    (root / "palette.txt").write_text("#102030\n255 0 0\n#00ff00\n")
    data = load(root)
    assert data.palette == [(16, 32, 48), (255, 0, 0), (0, 255, 0)]
    assert data.labels == ["ground", "red", "green"]


def test_coding_that_was_found_is_in_the_name_by_which_a_run_records_its_data(tmp_path: Path) -> None:
    root = paint(tmp_path, {1: 255, 2: 255})
    data = load(root)
    assert data.name == f"{root}#mask-values=0,255"
    # Masks that alone would mean something else are read as in training.
    for entry in data.split("test").entries:  # type: ignore[attr-defined]
        Image.fromarray(np.full_like(np.array(Image.open(entry.target)), 255)).save(entry.target)
    assert used(split_of(data.name, "test", "segmentation", "RGB", data.labels)) == {1}


def used(split: Split) -> set[int]:
    """The classes of all pixels."""
    return {int(number) for index in range(len(split)) for number in np.unique(np.asarray(split[index][1]))}


def test_split_without_the_background_is_read_as_the_whole_was(tmp_path: Path) -> None:
    root = paint(tmp_path, {1: 255, 2: 255})
    for entry in load(root).split("test").entries:  # type: ignore[attr-defined]
        Image.fromarray(np.full_like(np.array(Image.open(entry.target)), 255)).save(entry.target)
    held_out = sources.split(root, "test", "segmentation", "RGB", ["class 0", "class 1"], raise_first)
    assert {int(number) for index in range(len(held_out)) for number in np.unique(held_out[index][1])} == {1}


def test_pixels_of_no_class_stay_so_where_the_second_class_is_elsewhere(tmp_path: Path) -> None:
    root = paint(tmp_path, {1: 1, 2: 255})
    for entry in load(root).split("test").entries:  # type: ignore[attr-defined]
        pixels = np.array(Image.open(entry.target))
        Image.fromarray(np.where(pixels == 1, 255, pixels).astype(np.uint8)).save(entry.target)
    held_out = sources.split(root, "test", "segmentation", "RGB", ["class 0", "class 1"], raise_first)
    assert {int(number) for index in range(len(held_out)) for number in np.unique(held_out[index][1])} == {0, 255}


def test_few_numbers_that_no_mask_has_are_classes(tmp_path: Path) -> None:
    assert len(load(paint(tmp_path, {1: 5, 2: 20})).labels) == 21


def test_names_for_all_numbers_make_them_classes(tmp_path: Path) -> None:
    root = paint(tmp_path, {1: 128, 2: 128})
    (root / "labels.txt").write_text("".join(f"name {number}\n" for number in range(129)))
    assert len(load(root).labels) == 129
