"""One's own folders as data: found, measured and split as they say, and every fault told in one line."""

import os
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from convoy.models.data import picture
from convoy.models.data.dataset import DataSet, Split
from convoy.models.data.files import print_faults, raise_first
from convoy.models.data.formats import sources
from convoy.models.data.formats.listing import SPLITS, assigned_split, assigned_splits
from convoy.models.data.registry import data_set, display_name, resolve, split_of
from convoy.models.errors import BadData, BadTraining
from convoy.service import cli, metadata

PALETTE = [(0, 0, 0), (200, 30, 30), (30, 200, 30)]
SIZES = ((12, 16), (9, 21))
COUNT = 40


def load(root: Path) -> DataSet:
    return sources.load(root, raise_first)


def write_masks(root: Path, count: int = COUNT) -> Path:
    """`count` pictures p0, p1, ... in which a red or green square lies on black, and their masks."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros(SIZES[number % 2], np.uint8)
        mask[2:6, 3:8] = 1 + number % 2
        mask[0, 0] = 255
        save_mask(root / "masks" / f"p{number}.png", mask)
        pixels = np.array([*PALETTE, *[(0, 0, 0)] * 253], np.uint8)[mask]
        Image.fromarray(pixels).save(root / "images" / f"p{number}.{'png' if number % 3 else 'bmp'}")
    return root


def save_mask(path: Path, mask: np.ndarray, palette: list[tuple[int, int, int]] = PALETTE) -> None:
    image = Image.fromarray(mask)
    image.putpalette([value for colour in [*palette, *[(0, 0, 0)] * (256 - len(palette))] for value in colour])
    image.save(path)


def write_classes(root: Path, count: int = 20, mode: str = "RGB") -> Path:
    """`count` pictures each of the classes dark and light."""
    for label, value in (("dark", 40), ("light", 210)):
        (root / label).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (10 + number, 12), value).convert(mode).save(root / label / f"{number}.png")
    return root


def write_lists(root: Path, train: str, validation: str, test: str) -> None:
    (root / "splits").mkdir()
    for name, text in zip(SPLITS, (train, validation, test), strict=True):
        (root / "splits" / f"{name}.txt").write_text("".join(f"{line}\n" for line in text.split()))


def names(data: DataSet) -> dict[str, list[str]]:
    return {name: [entry.image.stem for entry in data.split(name).entries] for name in SPLITS}  # type: ignore[attr-defined]


def paths(data: DataSet) -> dict[str, list[str]]:
    """Where the pictures of each split lie in the folder."""
    splits = {name: data.split(name) for name in SPLITS}
    return {name: [split.name(index) for index in range(len(split))] for name, split in splits.items()}  # type: ignore[attr-defined]


def test_masks_and_pictures_go_together(tmp_path: Path) -> None:
    data = load(write_masks(tmp_path / "squares"))
    assert (data.name, data.task, data.colour) == (str(tmp_path / "squares"), "segmentation", "RGB")
    assert data.labels == ["class 0", "class 1", "class 2"]
    assert data.palette == PALETTE
    for name in SPLITS:
        pictures = data.split(name)
        for index in range(len(pictures)):
            image, mask = pictures[index]
            assert isinstance(mask, np.ndarray)
            assert image.shape[:2] == mask.shape == pictures.size(index)
            for number in range(3):
                assert (image[mask == number] == PALETTE[number]).all()
            assert (mask == 255).sum() == 1


def test_names_decide_on_the_split_and_keep_it(tmp_path: Path) -> None:
    before = names(load(write_masks(tmp_path / "a")))
    assert sorted(chain.from_iterable(before.values())) == sorted(f"p{number}" for number in range(COUNT))
    more = names(load(write_masks(tmp_path / "b", 2 * COUNT)))
    assert all(set(before[name]) <= set(more[name]) for name in SPLITS)


def test_shares_are_about_70_10_and_20_percent() -> None:
    counts = dict.fromkeys(SPLITS, 0)
    for number in range(5000):
        counts[assigned_split(f"picture-{number}")] += 1
    assert counts["train"] == pytest.approx(3500, abs=120)
    assert counts["validation"] == pytest.approx(500, abs=80)
    assert counts["test"] == pytest.approx(1000, abs=100)
    # As it was when it was made: with another one, what was held out would have been trained on.
    assert [assigned_split(name) for name in ("p0", "p1", "p2", "p3")] == ["test", "train", "validation", "validation"]


def test_lists_decide_on_the_split_where_there_are_some(tmp_path: Path) -> None:
    root = write_masks(tmp_path, 8)
    write_lists(root, "p1 p2 p4", "p3", "p0 p7")
    assert names(load(root)) == {"train": ["p1", "p2", "p4"], "validation": ["p3"], "test": ["p0", "p7"]}


def test_pictures_that_no_list_names_need_no_mask(tmp_path: Path) -> None:
    root = write_masks(tmp_path, 8)
    write_lists(root, "p1 p2 p4", "p3", "p0 p7")
    (root / "masks" / "p5.png").unlink()
    assert load(root).labels == ["class 0", "class 1", "class 2"]


def test_labels_are_those_of_the_file(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    (root / "labels.txt").write_text("ground\nred square\ngrün\nnever there\n", encoding="utf-8")
    data = load(root)
    assert data.labels == ["ground", "red square", "grün", "never there"]
    assert data.palette == [*PALETTE, (0, 0, 0)]


def test_mean_and_deviation_are_those_of_the_training_pixels(tmp_path: Path) -> None:
    data = load(write_masks(tmp_path))
    pixels = np.concatenate([data.split("train")[index][0].reshape(-1, 3) for index in range(len(data.split("train")))])
    assert data.mean == pytest.approx((pixels / 255).mean(axis=0))
    assert data.std == pytest.approx((pixels / 255).std(axis=0))


def test_pictures_of_a_split_are_read_once_and_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_masks(tmp_path)
    (root / "labels.txt").write_text("a\nb\nc\n")
    read: list[Path] = []
    real = picture.read

    def counting(path: Path, colour: object) -> np.ndarray:
        read.append(path)
        return real(path, colour)  # type: ignore[arg-type]

    monkeypatch.setattr(picture, "read", counting)
    pictures: Split = sources.split(root, "test", "segmentation", "RGB", ["a", "b", "c"], raise_first)
    # Once to know that they are sound, and only those that were asked for.
    assert sorted(read) == sorted(entry.image for entry in pictures.entries)  # type: ignore[attr-defined]
    assert [pictures.size(index) for index in range(len(pictures))]
    count = len(read)
    assert pictures[0][0].shape[2] == 3
    assert len(read) == count + 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_subfolders_are_classes(tmp_path: Path, mode: str) -> None:
    data = load(write_classes(tmp_path / "shades", mode=mode))
    assert (data.task, data.labels, data.palette) == ("classification", ["dark", "light"], None)
    assert data.colour == mode
    assert sum(len(data.split(name)) for name in SPLITS) == 40
    for index in range(len(data.split("train"))):
        image, label = data.split("train")[index]
        assert image.shape == (*data.split("train").size(index), 3 if mode == "RGB" else 1)
        assert (image == (40, 210)[label]).all()  # type: ignore[index]


def test_one_colour_picture_makes_all_of_them_colour(tmp_path: Path) -> None:
    root = write_classes(tmp_path, mode="L")
    # Of the training split, which decides.
    name = next(number for number in range(20) if assigned_split(f"dark/{number}.png") == "train")
    Image.new("RGB", (5, 5), (10, 20, 30)).save(root / "dark" / f"{name}.png")
    assert load(root).colour == "RGB"


def test_classes_may_lie_below_their_splits(tmp_path: Path) -> None:
    for name, count in (("train", 6), ("validation", 2), ("test", 3)):
        write_classes(tmp_path / name, count)
    data = load(tmp_path)
    assert data.labels == ["dark", "light"]
    assert [len(data.split(name)) for name in SPLITS] == [12, 4, 6]


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_what_is_to_validate_with_is_found_under_its_other_names(tmp_path: Path, name: str) -> None:
    for folder, count in (("train", 6), (name, 2), ("Test", 3)):
        write_classes(tmp_path / folder, count)
    assert [len(load(tmp_path).split(split)) for split in SPLITS] == [12, 4, 6]


def test_what_is_to_validate_with_is_held_out_where_nothing_is_to_test_with(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 40)
    write_classes(tmp_path / "val", 3)
    found = names(load(tmp_path))
    assert len(found["test"]) == 6
    assert 1 <= len(found["validation"]) <= 20  # of those to train with
    assert len(found["train"]) + len(found["validation"]) == 80


def test_pictures_in_folders_below_a_class_are_of_that_class(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    before = names(load(root))
    for name in ("dark/indoors/night", "dark/.thumbnails"):
        (root / name).mkdir(parents=True)
        Image.new("L", (9, 9), 40).save(root / name / "x.png")
    after = names(load(root))
    assert sum(map(len, after.values())) == sum(map(len, before.values())) + 1
    assert sorted(chain.from_iterable(after.values())) == sorted([*chain.from_iterable(before.values()), "x"])


def test_class_may_be_called_train(tmp_path: Path) -> None:
    for label, value in (("train", 40), ("bus", 210)):
        (tmp_path / label).mkdir()
        for number in range(20):
            Image.new("L", (10, 12), value).save(tmp_path / label / f"{number}.png")
    assert load(tmp_path).labels == ["bus", "train"]


@pytest.mark.parametrize("inside", [False, True])
def test_masks_may_lie_in_folders_for_their_splits(tmp_path: Path, inside: bool) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        write_masks(tmp_path / split, count)
        if inside:  # images/train/ instead of train/images/
            for kind in ("images", "masks"):
                (tmp_path / kind).mkdir(exist_ok=True)
                (tmp_path / split / kind).rename(tmp_path / kind / split)
            (tmp_path / split).rmdir()
    data = load(tmp_path)
    assert (data.task, [len(data.split(split)) for split in SPLITS]) == ("segmentation", [6, 2, 3])
    image, mask = data.split("validation")[1]
    assert isinstance(mask, np.ndarray)
    assert (image[mask == 2] == PALETTE[2]).all()


def test_lists_of_two_splits_are_enough(tmp_path: Path) -> None:
    root = write_masks(tmp_path, 12)
    write_lists(root, "p1 p2 p3 p4 p5 p6", "p7", "p8 p9")
    (root / "splits" / "validation.txt").unlink()
    found = names(load(root))
    assert found["test"] == ["p8", "p9"]
    assert found["validation"]
    assert sorted(found["train"] + found["validation"]) == ["p1", "p2", "p3", "p4", "p5", "p6"]


def move(root: Path) -> None:
    (root / "masks").rename(root / "labels")


FAULTS_OF_MASKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no pictures": (lambda root: [path.unlink() for path in (root / "images").iterdir()], "images contains no picture"),
    "no mask": (lambda root: (root / "masks" / "p7.png").unlink(), r"no mask .*masks/p7\.png, want one for .*/p7\.png"),
    "no masks": (move, r"there is no folder .*masks, want the mask of each picture of .*; there is 'labels/'$"),
    "no picture for a mask": (
        lambda root: (root / "images" / "p7.png").unlink(),
        r"no picture in .*images for the mask .*masks/p7\.png",
    ),
    "two pictures of one name": (
        lambda root: shutil.copy(root / "images" / "p7.png", root / "images" / "p7.gif"),
        r"p7\.gif and .*p7\.png have the same name",
    ),
    "another size": (
        lambda root: save_mask(root / "masks" / "p7.png", np.zeros((5, 6), np.uint8)),
        r"masks/p7\.png is 5x6 \(height x width\), want 9x21 as .*images/p7\.png is displayed",
    ),
    "colours for classes": (
        lambda root: Image.new("RGB", (21, 9), "red").save(root / "masks" / "p7.png"),
        r"masks/p7\.png has the colours #ff0000, want a PNG file with the number of its class .*--mask-colours",
    ),
    "damaged mask": (
        lambda root: (root / "masks" / "p7.png").write_bytes(b"nothing"),
        r"masks/p7\.png cannot be read \(damaged, or no picture\), want a picture",
    ),
    "damaged picture": (
        lambda root: (root / "images" / "p7.png").write_bytes(b"nothing"),
        r"images/p7\.png cannot be read",
    ),
    "one class only": (
        lambda root: [save_mask(path, np.zeros_like(Image.open(path))) for path in (root / "masks").iterdir()],
        "no class but 0, want at least two",
    ),
    "empty line in labels": (lambda root: (root / "labels.txt").write_text("a\n\nb\n"), r"line 2 of .*labels\.txt"),
    "label twice": (lambda root: (root / "labels.txt").write_text("a\nb\na\n"), r"labels\.txt names 'a' 2 times"),
    "one label": (lambda root: (root / "labels.txt").write_text("a\n"), "names 1 classes, want 2 to 255"),
    "labels are no text": (
        lambda root: (root / "labels.txt").write_bytes("sky\ncafé\n".encode("latin-1")),
        r"labels\.txt: line 2 is not UTF-8 \(byte 0xe9\), want the file saved as UTF-8",
    ),
    "split missing": (
        lambda root: (write_lists(root, "p1", "p2", "p3"), (root / "splits" / "train.txt").unlink()),
        r"splits is split into test and validation only, want train and test or validation",
    ),
    "unknown in a split": (lambda root: write_lists(root, "p1", "p2", "p999"), r"test\.txt names 'p999', and there is"),
    "in two splits": (lambda root: write_lists(root, "p1", "p2", "p1"), r"test\.txt names 'p1', which is in train"),
    "empty split": (lambda root: write_lists(root, "p1", "", "p2"), "none of the 2 pictures of .* its validation"),
}


@pytest.mark.parametrize("fault", FAULTS_OF_MASKS)
def test_fault_of_a_folder_of_masks_is_told_in_one_line(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS_OF_MASKS[fault]
    root = write_masks(tmp_path)
    load(root)  # the negative control: nothing is wrong yet
    spoil(root)
    with pytest.raises(BadData, match=message) as caught:
        load(root)
    assert "\n" not in caught.value.message


def test_class_beyond_the_labels_is_told_before_training(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    (root / "labels.txt").write_text("ground\nred\n")
    with pytest.raises(BadData, match=r"masks/p\d+\.png has the class 2, want 0 to 1, or 255 for none"):
        load(root)


FAULTS_OF_CLASSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one class": (
        lambda root: shutil.rmtree(root / "dark"),
        r"has 1 subfolders with pictures, want images/ and masks/, or",
    ),
    "nothing": (lambda root: [shutil.rmtree(path) for path in root.iterdir()], "has 0 subfolders"),
    "empty class": (lambda root: (root / "grey").mkdir(), r"/grey contains no picture, so it is not a class"),
    "class of unreadable pictures": (
        lambda root: [path.write_bytes(b"nothing") for path in (root / "dark").iterdir()],
        r"dark/0\.png cannot be read",
    ),
    "one picture of a class": (
        lambda root: [path.unlink() for path in (root / "dark").iterdir() if path.name != "3.png"],
        "class 'dark' of .* has pictures in train only",
    ),
    "damaged picture": (lambda root: (root / "dark" / "3.png").write_bytes(b"nothing"), r"dark/3\.png cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS_OF_CLASSES)
def test_fault_of_a_folder_of_classes_is_told_in_one_line(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS_OF_CLASSES[fault]
    root = write_classes(tmp_path)
    load(root)  # the negative control: nothing is wrong yet
    spoil(root)
    with pytest.raises(BadData, match=message) as caught:
        load(root)
    assert "\n" not in caught.value.message


def test_splits_of_classes_stand_together(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 4)
    with pytest.raises(BadData, match=r"there is .*/train, but no test/ or validation/ beside it: want one of them"):
        load(tmp_path)
    for name in ("val", "valid"):
        write_classes(tmp_path / name, 4)
    with pytest.raises(BadData, match=r"/val and .*/valid are both for validation, want one of them"):
        load(tmp_path)


def test_few_pictures_of_a_class_are_there_to_train_and_to_test_with(tmp_path: Path) -> None:
    for label in range(10):
        (tmp_path / str(label)).mkdir()
        for number in range(2 + label % 3):
            Image.new("L", (8, 8), 10 * label + number).save(tmp_path / str(label) / f"{number}.png")
    found = paths(load(tmp_path))
    assert {path.split("/")[0] for path in found["train"]} == set("0123456789")
    assert {path.split("/")[0] for path in found["test"]} == set("0123456789")
    assert len(found["validation"]) >= 1
    # Where there are enough, names alone decide.
    many = [f"picture-{number}" for number in range(100)]
    assert assigned_splits([many]) == {name: assigned_split(name) for name in many}


def test_link_that_leads_nowhere_and_picture_of_an_unknown_kind_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_classes(tmp_path)
    (root / "dark" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "dark" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "dark" / "notes.txt").write_text("no picture")
    data_set(str(root))
    err = capsys.readouterr().err
    assert "gone.png cannot be read (No such file or directory)" in err
    why = "of a kind that Pillow does not open; with HEIC files, pip install pillow-heif"
    assert f"phone.heic cannot be read ({why})" in err
    assert "left out 2 of 42 pictures" in err


def test_class_of_unreadable_pictures_is_refused_with_the_reason_of_one(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    for path in (root / "dark").iterdir():
        path.write_bytes(b"nothing")
    message = r"class 'dark' of .* has no pictures that can be read \(20 were left out; the first: .*dark/0\.png cannot"
    with pytest.raises(BadData, match=message):
        data_set(str(root))


def test_folder_without_pictures_is_no_class_but_the_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_classes(tmp_path)
    (root / "empty").mkdir()
    (root / "dark" / "deeper").mkdir()
    shutil.copy(root / "dark" / "0.png", root / "dark" / "deeper" / "more.png")
    shutil.copy(root / "dark" / "0.png", root / "beside.png")
    (root / "dark" / "Thumbs.db").write_bytes(b"thumbs")
    data = data_set(str(root))
    assert data.labels == ["dark", "light"]
    assert sum(len(data.split(name)) for name in SPLITS) == 41
    assert capsys.readouterr().err.splitlines() == [
        f"not used: 1 picture in {root}, outside the folders of the classes: beside.png",
        f"left out: {root}/empty contains no picture, so it is not a class",
        "left out 1 of 42 pictures; --strict makes this an error",
    ]
    # The same when a network of these classes is measured.
    split = sources.split(root, "test", "classification", "L", ["dark", "light"], print_faults)
    assert len(split) == len(data.split("test"))


def test_name_that_is_not_utf8_is_read_and_told_in_numbers(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    odd = root / "dark" / os.fsdecode(b"caf\xe9.png")
    shutil.copy(root / "dark" / "3.png", odd)
    found = [name for part in paths(load(root)).values() for name in part]
    assert r"dark/caf\xe9.png" in found
    assert len(found) == 41


def test_a_name_is_a_data_set_and_a_path_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "aerial")
    assert resolve("aerial") == "aerial"
    assert resolve("./aerial") == str(tmp_path / "aerial")
    assert display_name(resolve("./aerial")) == "aerial"
    assert data_set(resolve("./aerial")).labels == ["dark", "light"]
    with pytest.raises(BadTraining, match=r"data set 'mnist', want one of: digits, .*; or a folder"):
        resolve("mnist")


def test_held_out_split_is_that_of_the_folder_where_it_lies_now(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "shades")
    test = load(root).split("test")
    root.rename(tmp_path / "moved")
    with pytest.raises(
        BadTraining, match=r"there is no folder .*shades any more: specify its location with --data DIR"
    ):
        split_of(str(root), "test", "classification", "RGB", ["dark", "light"])
    again = split_of(str(tmp_path / "moved"), "test", "classification", "L", ["dark", "light"])
    assert len(again) == len(test)
    assert again[0][0].shape == (*test.size(0), 1)


def test_held_out_split_is_refused_where_the_classes_are_others(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    with pytest.raises(BadData, match="has the classes dark, light, the network was trained with cat, dog"):
        split_of(str(root), "test", "classification", "RGB", ["cat", "dog"])
    with pytest.raises(BadData, match="is data for classification, want some for segmentation"):
        split_of(str(root), "test", "segmentation", "RGB", ["dark", "light"])
    with pytest.raises(BadTraining, match="data set digits has other classes"):
        split_of("digits", "test", "classification", "L", ["dark", "light"])


def document(path: Path) -> metadata.Document:
    found = metadata.decode({entry.key: entry.value for entry in onnx.load(path).metadata_props})
    assert found is not None
    return found


def test_folder_is_trained_evaluated_and_exported_also_after_it_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_masks(tmp_path / "squares")
    (tmp_path / "squares" / "labels.txt").write_text("ground\nred\ngreen\n")
    options = ["--epochs", "1", "--set", "width=4", "--set", "depth=2", "--crop", "8", "--class-weights", "balanced"]
    assert cli.run(["train", "unet", "--data", "squares", *options, "--loss", "cross-entropy+dice"]) == 0
    checkpoint = "runs/unet-squares/last.ckpt"
    assert cli.run(["evaluate", checkpoint]) == 0
    assert cli.run(["train", "unet", "--data", "squares", *options, "--epochs", "2", "--resume", checkpoint]) == 0

    (tmp_path / "squares").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    for command in (["evaluate", checkpoint], ["export", checkpoint, "--repository", "repository"]):
        assert cli.run(command) == 2
        err = capsys.readouterr().err
        assert "squares any more: specify its location" in err
        assert err.count("\n") == 1
    assert cli.run(["evaluate", checkpoint, "--data", "elsewhere"]) == 0

    assert cli.run(["export", checkpoint, "--repository", "repository", "--data", "elsewhere"]) == 0
    found = document(tmp_path / "repository/unet/1/model.onnx")
    assert found.labels == ["ground", "red", "green"]
    assert found.palette == PALETTE
    assert found.provenance is not None
    # Not where it lay: that is nobody's business who asks the server.
    assert found.provenance.data == "elsewhere"
    assert set(found.provenance.metrics) == {"mean_iou", "pixel_accuracy", "boundary_f1", "calibration_error"}

    assert cli.run(["export", checkpoint, "--repository", "repository", "--without-data"]) == 0
    found = document(tmp_path / "repository/unet/2/model.onnx")
    assert found.provenance is not None
    assert (found.provenance.data, found.provenance.metrics) == ("", {})


def test_classifier_is_trained_on_a_folder_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "shades", mode="L")
    options = ["--epochs", "1", "--class-weights", "balanced", "--loss", "focal"]
    assert cli.run(["train", "lenet5", "--data", "shades", *options]) == 0
    assert cli.run(["evaluate", "runs/lenet5-shades/last.ckpt"]) == 0
