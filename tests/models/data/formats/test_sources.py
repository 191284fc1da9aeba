"""Data as others lay it out: MNIST, CIFAR-10, Pascal VOC, a CSV file; what is wrong with one is named."""

import gzip
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.models.data.dataset import DataSet
from convoy.models.data.files import raise_first
from convoy.models.data.formats import sources, voc
from convoy.models.data.formats.listing import SPLITS, for_validation
from convoy.models.data.registry import data_set, display_name, resolve, split_of
from convoy.models.errors import BadData, BadTraining
from convoy.service import cli
from tests.models.data.formats.test_folder import write_classes
from tests.models.own_data import cifar10_records, write_cifar10, write_idx, write_table, write_voc


def load(path: Path) -> DataSet:
    return sources.load(path, raise_first)


def names(data: DataSet) -> dict[str, list[str]]:
    splits = {split: data.split(split) for split in SPLITS}
    return {name: [split.name(index) for index in range(len(split))] for name, split in splits.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("gz", "sign"), [(False, "-"), (True, "-"), (False, "."), (True, ".")])
def test_idx_files_are_read_under_all_of_their_names(tmp_path: Path, gz: bool, sign: str) -> None:
    data = load(write_idx(tmp_path, gz, sign))
    assert (data.task, data.colour, data.labels) == ("classification", "L", ["0", "1", "2"])
    assert sum(len(data.split(split)) for split in SPLITS) == 52
    assert len(data.split("test")) == 12
    for split in SPLITS:
        for index in range(len(data.split(split))):
            image, label = data.split(split)[index]
            assert image.shape == (*data.split(split).size(index), 1) == (8, 8, 1)
            assert (image == 20 * label).all()


def test_idx_pictures_to_validate_with_are_told_by_their_numbers_alone(tmp_path: Path) -> None:
    few, many = (names(load(write_idx(tmp_path / str(count), counts=(count, 5)))) for count in (60, 200))
    assert few["validation"]
    assert set(few["validation"]) < set(many["validation"])
    assert not set(many["validation"]) & set(many["train"])


def test_a_tenth_of_what_is_to_be_trained_with_is_put_aside() -> None:
    assert sum(for_validation([f"train {number}" for number in range(60_000)])) == pytest.approx(6000, abs=250)
    assert sum(for_validation(["a", "b", "c"])) == 1


def test_idx_classes_have_names_where_a_file_says_so(tmp_path: Path) -> None:
    root = write_idx(tmp_path)
    (root / "labels.txt").write_text("shirt\nboot\nbag\n")
    assert load(root).labels == ["shirt", "boot", "bag"]


def test_mean_and_deviation_of_idx_pictures_are_those_to_train_with(tmp_path: Path) -> None:
    data = load(write_idx(tmp_path))
    split = data.split("train")
    pixels = np.stack([split[index][0] for index in range(len(split))]) / 255
    assert data.mean == pytest.approx([pixels.mean()])
    assert data.std == pytest.approx([pixels.std()])


def test_cifar10_planes_become_colours(tmp_path: Path) -> None:
    data = load(write_cifar10(tmp_path))
    assert (data.task, data.colour, data.labels[3]) == ("classification", "RGB", "thing 3")
    assert len(data.split("test")) == 10
    assert len(data.split("train")) + len(data.split("validation")) == 40
    image, label = data.split("test")[4]
    assert label == 4
    assert image.shape == (32, 32, 3)
    assert image[0, 0].tolist() == [7, 80, 100]
    assert image[31, 5].tolist() == [40, 80, 100]


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])


def packed_short(root: Path) -> None:
    whole = (root / "train-images-idx3-ubyte").read_bytes()
    (root / "train-images-idx3-ubyte").unlink()
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-12])


FAULTS_OF_IDX: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda root: (root / "t10k-labels-idx1-ubyte").unlink(), r"no file .*t10k-labels-idx1-ubyte, maybe"),
    "short": (
        lambda root: cut(root / "train-images-idx3-ubyte", 2000),
        "contains 1984 bytes after its header, want 2560",
    ),
    "no head": (lambda root: cut(root / "train-images-idx3-ubyte", 7), r"train-images-idx3-ubyte begins with 00000803"),
    "long": (
        lambda root: (root / "train-labels-idx1-ubyte").open("ab").write(b"x"),
        "contains more bytes after its header, want 40",
    ),
    "another kind": (
        lambda root: (root / "train-images-idx3-ubyte").write_bytes(b"\x89PNG" + bytes(60)),
        r"begins with 89504e47, want 00000803 and 3 sizes: an idx file",
    ),
    "huge": (
        lambda root: (root / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12),
        "has 16 bytes, want more: 4294967295 x 4294967295 x 4294967295",
    ),
    "damaged gz": (packed_short, r"train-images-idx3-ubyte\.gz cannot be read"),
    "other counts": (
        lambda root: (root / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02\0\x01"),
        "has 40 train images and 2 labels",
    ),
    "unknown class": (
        lambda root: (root / "labels.txt").write_text("a\nb\n"),
        "the train labels of .* have the class 2, want 0 to 1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS_OF_IDX)
def test_fault_of_idx_files_is_told_in_one_line(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS_OF_IDX[fault]
    load(write_idx(tmp_path))  # the negative control
    spoil(tmp_path)
    with pytest.raises(BadData, match=message) as caught:
        load(tmp_path)
    assert "\n" not in caught.value.message


FAULTS_OF_CIFAR10: dict[str, tuple[Callable[[Path], object], str]] = {
    "short": (lambda root: cut(root / "data_batch_2.bin", 60_000), r"data_batch_2\.bin has 60000 bytes, want 3073 for"),
    "empty": (lambda root: cut(root / "test_batch.bin", 0), r"test_batch\.bin has 0 bytes"),
    "no test": (lambda root: (root / "test_batch.bin").unlink(), r"test_batch\.bin cannot be read \(No such file"),
    "gap": (lambda root: (root / "data_batch_1.bin").unlink(), "has the numbers 2, want 1, 2 and so on without a gap"),
    "no names": (lambda root: (root / "batches.meta.txt").unlink(), r"batches\.meta\.txt cannot be read"),
    "unknown class": (
        lambda root: (root / "data_batch_1.bin").write_bytes(cifar10_records(20, 13)),
        r"picture 10 of .*data_batch_1\.bin has the class 10, want 0 to 9",
    ),
    "pickles": (
        lambda root: [path.rename(path.with_suffix("")) for path in root.glob("data_batch_*.bin")],
        "contains pickles, which can run code when loaded, want CIFAR-10's binary version",
    ),
}


@pytest.mark.parametrize("fault", FAULTS_OF_CIFAR10)
def test_fault_of_cifar10_files_is_told_in_one_line(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS_OF_CIFAR10[fault]
    load(write_cifar10(tmp_path))  # the negative control
    spoil(tmp_path)
    with pytest.raises(BadData, match=message) as caught:
        load(tmp_path)
    assert "\n" not in caught.value.message


def test_voc_is_read_with_its_classes_and_val_is_held_out(tmp_path: Path) -> None:
    data = load(write_voc(tmp_path / "VOC2012"))
    assert (data.task, data.colour, data.labels) == ("segmentation", "RGB", voc.CLASSES)
    assert data.palette == [(number, number, number) for number in range(21)]
    found = names(data)
    assert found["test"] == [f"JPEGImages/2007_{number:06}.jpg" for number in range(20, 30)]
    assert found["validation"]
    assert len(set(chain.from_iterable(found.values()))) == 30
    image, mask = data.split("test")[0]
    assert isinstance(mask, np.ndarray)
    assert image.shape[:2] == mask.shape
    assert np.unique(mask).tolist() == [0, 15, 255]


def test_voc_test_pictures_are_held_out_where_they_have_masks(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOC2007", tested=True)
    assert [len(part) for part in names(load(root)).values()] == [20, 5, 5]
    # As the challenge gives them out: names without masks.
    for name in (root / "ImageSets/Segmentation/test.txt").read_text().split():
        (root / "SegmentationClass" / f"{name}.png").unlink()
    assert [len(part) for part in names(load(root)).values()][2] == 5


def test_classes_of_a_folder_laid_out_like_voc_are_its_own(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "streets")
    assert load(root).labels == [f"class {number}" for number in range(16)]
    (root / "labels.txt").write_text("\n".join(f"thing {number}" for number in range(16)))
    assert load(root).labels[15] == "thing 15"


def test_voc_pictures_may_be_of_any_kind_that_pillow_opens(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOC2012")
    before = names(load(root))
    for number, ending in enumerate((".png", ".JPG", ".webp", ".tiff")):
        picture = root / "JPEGImages" / f"2007_{number:06}.jpg"
        Image.open(picture).save(picture.with_suffix(ending))
        picture.unlink()
    found = names(load(root))
    assert {split: [Path(name).stem for name in part] for split, part in found.items()} == {
        split: [Path(name).stem for name in part] for split, part in before.items()
    }
    (root / "JPEGImages" / "2007_000003.tiff").unlink()
    with pytest.raises(BadData, match=r"train\.txt names '2007_000003', and there is no such picture in"):
        load(root)


def test_table_without_pictures_to_test_with_holds_out_those_to_validate_with(tmp_path: Path) -> None:
    rows = [f"{row},{'val' if number % 4 < 2 else 'train'}" for number, row in enumerate(ROWS)]
    found = names(load(write_table(tmp_path, rows, "path,label,split")))
    assert found["test"] == [row.split(",")[0] for row in rows if row.endswith("val")]
    assert len(found["train"]) + len(found["validation"]) == 20
    assert found["validation"]


def test_voc_picture_in_both_lists_is_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOC2012")
    with (root / "ImageSets/Segmentation/train.txt").open("a") as file:
        file.write("2007_000025\n")
    with pytest.raises(BadData, match="names '2007_000025' twice"):
        load(root)


ROWS = [f"pictures/{number}.png,{('cat', 'dog')[number % 2]}" for number in range(40)]


def test_table_of_paths_and_labels_is_split_by_the_paths(tmp_path: Path) -> None:
    file = write_table(tmp_path, ROWS)
    data = load(file)
    assert (data.task, data.labels) == ("classification", ["cat", "dog"])
    found = names(data)
    assert sorted(chain.from_iterable(found.values())) == sorted(row.split(",")[0] for row in ROWS)
    more = names(load(write_table(tmp_path, ROWS + [f"more/{number}.png,cat" for number in range(20)])))
    assert all(set(found[split]) <= set(more[split]) for split in SPLITS)
    image, label = data.split("train")[0]
    number = int(Path(found["train"][0]).stem)
    assert label == number % 2
    assert image[0, 0].tolist() == [number, 40, 200]


def test_table_says_the_split_where_it_has_such_a_column(tmp_path: Path) -> None:
    places = ["train", "train", "val", "test", "train", "Test", "validation", "train"]
    rows = [f"{row},{split}" for row, split in zip(ROWS, places, strict=False)]
    data = load(write_table(tmp_path, rows, "path,label,split"))
    assert [len(data.split(split)) for split in SPLITS] == [4, 2, 2]
    rows = [f"{row},{'test' if number % 4 < 2 else 'train'}" for number, row in enumerate(ROWS)]
    found = names(load(write_table(tmp_path, rows, "path,label,split")))
    given = sorted(row.split(",")[0] for row in rows if row.endswith("train"))
    assert found["validation"] == [name for name, away in zip(given, for_validation(given), strict=True) if away]
    assert len(found["test"]) == 20


def test_table_of_whole_numbers_has_its_classes_by_value(tmp_path: Path) -> None:
    rows = [f"{number}.png,{(2, 10, 1)[number % 3]}" for number in range(60)]
    assert load(write_table(tmp_path, rows)).labels == ["1", "2", "10"]


def test_table_of_masks_is_data_for_segmentation(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "x")
    stems = [path.stem for path in sorted((root / "JPEGImages").iterdir())]
    rows = [f"JPEGImages/{stem}.jpg,SegmentationClass/{stem}.png" for stem in stems]
    (tmp_path / "x" / "all.csv").write_text("path,mask\n" + "\n".join(rows))
    data = load(tmp_path / "x" / "all.csv")
    assert (data.task, len(data.labels)) == ("segmentation", 16)
    assert sum(len(data.split(split)) for split in SPLITS) == 30


FAULTS_OF_TABLES: dict[str, tuple[str, str]] = {
    "no columns": ("", "has the columns none, want path and label, or path and mask, and maybe split"),
    "other columns": ("file;class\n", "has the columns file;class, want path and label"),
    "both": ("path,label,mask\n", "has the columns path, label, mask, want"),
    "no label": ("path,label\n0.png,\n", r"line 2 of .*t\.csv has no label"),
    "no path": ("path,label\n,cat\n", r"line 2 of .*t\.csv has no path"),
    "unknown split": (
        "path,label,split\n0.png,cat,hold\n",
        "line 2 of .* has the split 'hold', want train, validation",
    ),
    "twice": ("path,label\n0.png,cat\n0.png,dog\n", r"line 3 of .*t\.csv names '0\.png', as line 2 does"),
    "one class": ("path,label\n0.png,cat\n1.png,cat\n", "has 1 classes, want at least two"),
    "quotation mark never closed": (
        'path,label\n0.png,cat\n1.png,"dog\n' + "2.png,cat\n" * 20_000,
        r"line 3 of .*t\.csv opens a quotation mark that is not closed, want it closed or removed",
    ),
    "quotation mark not closed in a short file": (
        'path,label\n\n"0.png,cat\n1.png,dog\n',
        r"line 3 of .*t\.csv opens a quotation mark that is not closed",
    ),
    "quotation mark in the heads": ('path,"label\n0.png,cat\n', r"line 1 of .*t\.csv opens a quotation mark"),
    "two marks lines apart": (
        'path,label\n0.png,"cat\n1.png,dog\n2.png,bird"\n',
        r"line 2 of .*t\.csv opens a quotation mark in its label, want it closed on its line",
    ),
    "mark within a value": ('path,label\n"0"5.png,cat\n', r"line 2 of .*t\.csv has a quotation mark within a value"),
    "comma in a name": ("path,label\n0,5.png,cat\n", r"line 2 of .*t\.csv has 3 values, want 2: a comma within"),
    "value without end": ("path,label\n" + "x" * 140_000 + ",cat\n", r"line 2 of .*t\.csv cannot be read \(field"),
    "Latin-1": ("path,label\n0.png,caf\udce9\n", r"t\.csv: line 2 is not UTF-8 \(byte 0xe9\)"),
    "picture missing": ("path,label\n0.png,cat\n1.png,dog\n", r"there is no file .*0\.png, which .*t\.csv names"),
}


@pytest.mark.parametrize("fault", FAULTS_OF_TABLES)
def test_fault_of_a_table_is_told_in_one_line(tmp_path: Path, fault: str) -> None:
    content, message = FAULTS_OF_TABLES[fault]
    (tmp_path / "t.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadData, match=message) as caught:
        load(tmp_path / "t.csv")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_table_and_labels_are_read_as_editors_save_them(tmp_path: Path, encoding: str) -> None:
    write_classes(tmp_path / "pictures", 4)
    rows = [
        f"pictures/{kind}/{number}.png,{label},"
        for kind, label in (("dark", "café"), ("light", '"a, b"'))
        for number in range(4)
    ]
    (tmp_path / "t.csv").write_bytes("\r\n".join(["path,label", *rows]).encode(encoding))
    assert load(tmp_path / "t.csv").labels == ["a, b", "café"]


def test_folders_to_train_and_to_test_with_need_none_to_validate_with(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 40)
    write_classes(tmp_path / "test", 3)
    found = names(load(tmp_path))
    assert len(found["test"]) == 6
    there = [f"{label}/{number}.png" for label in ("dark", "light") for number in range(40)]
    assert {name.removeprefix("train/") for name in found["validation"]} == {
        name for name, away in zip(there, for_validation(there), strict=True) if away
    }


def test_table_is_data_by_its_path_and_shown_without_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, ROWS, name="pets.csv")
    assert resolve("pets.csv") == str(tmp_path / "pets.csv")
    assert display_name(resolve("pets.csv")) == "pets"
    assert data_set(resolve("pets.csv")).labels == ["cat", "dog"]
    (tmp_path / "pets.csv").rename(tmp_path / "animals.csv")
    with pytest.raises(BadTraining, match=r"there is no file .*pets\.csv any more"):
        split_of(str(tmp_path / "pets.csv"), "test", "classification", "RGB", ["cat", "dog"])
    assert len(split_of(resolve("animals.csv"), "test", "classification", "RGB", ["cat", "dog"]))


@pytest.mark.parametrize("write", [write_idx, write_cifar10])
def test_held_out_split_of_binary_files_is_refused_for_another_network(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    data = load(write(tmp_path))
    assert data.colour is not None
    assert len(split_of(str(tmp_path), "test", "classification", data.colour, data.labels)) == len(data.split("test"))
    with pytest.raises(BadData, match="has other classes or another task than the network"):
        split_of(str(tmp_path), "test", "classification", data.colour, ["a", "b"])


def test_binary_pictures_come_in_the_colour_of_the_network(tmp_path: Path) -> None:
    grey, colour = load(write_idx(tmp_path / "grey")), load(write_cifar10(tmp_path / "colour"))
    spread = split_of(str(tmp_path / "grey"), "test", "classification", "RGB", grey.labels)[1][0]
    assert spread.shape == (8, 8, 3)
    assert (spread == grey.split("test")[1][0]).all()
    luma = split_of(str(tmp_path / "colour"), "test", "classification", "L", colour.labels)[4][0]
    assert luma.shape == (32, 32, 1)
    assert luma[9, 9, 0] == round(0.299 * 40 + 0.587 * 80 + 0.114 * 100)


def test_every_kind_is_trained_with_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "mnist", gz=True)
    assert cli.run(["train", "lenet5", "--data", "mnist", "--epochs", "1"]) == 0
    assert cli.run(["evaluate", "runs/lenet5-mnist/last.ckpt", "--strict"]) == 0
    write_voc(tmp_path / "VOC2012")
    small = ["--set", "width=4", "--set", "depth=2", "--flip", "horizontal"]
    assert cli.run(["train", "unet", "--data", "VOC2012", "--epochs", "1", *small]) == 0
    assert cli.run(["evaluate", "runs/unet-VOC2012/last.ckpt"]) == 0
    write_table(tmp_path / "pets", ROWS, name="pets.csv")
    assert cli.run(["train", "lenet5", "--data", "pets/pets.csv", "--epochs", "1"]) == 0
    assert cli.run(["evaluate", "runs/lenet5-pets/last.ckpt"]) == 0
    assert Image.open("runs/lenet5-pets/last-confusion.png").width > 100
