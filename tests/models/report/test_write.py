"""What a run folder shows when the run has ended."""

import csv
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from convoy.models.errors import BadRun
from convoy.models.evaluation.evaluate import measure
from convoy.models.evaluation.metrics import class_scores
from convoy.models.evaluation.predictor import of_checkpoint
from convoy.models.report import curves, words, worst
from convoy.models.report.runs import read
from convoy.models.report.write import _classes, _confusion, interval, write
from convoy.models.settings import Recipe
from convoy.models.training.run import RunFolder, default_settings
from convoy.models.training.train import train
from convoy.service import cli
from tests.models.conftest import settings
from tests.models.data.formats.test_folder import write_classes

PICTURES = {"curves.png", "confusion.png", "worst.png"}


class Links(HTMLParser):
    """Everything that a page fetches, and the elements that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_run_of_a_classifier_is_shown(classifier: Path) -> None:
    assert write(classifier)
    assert {path.name for path in classifier.iterdir()} >= {*PICTURES, "classes.csv", "metrics.csv", "report.html"}
    for name in PICTURES:
        assert min(Image.open(classifier / name).size) > 100
    text = (classifier / "report.html").read_text()
    for shown in (
        *("lenet5 on tiny-digits", "calibration_error", "precision", "recipe.learning_rate", "viewport"),
        *(
            "60,850",
            "0.2 MiB of weights",
            "ms for one",
            "96 for training, 48 for validation",
            "prefers-color-scheme: dark",
        ),
        *("share of images whose most probable class is right", "what was predicted as the class", "at its peak"),
        *("48 images prove little: of images like these", "95 % confidence interval", "48 are wrong"),
    ):
        assert shown in text, shown
    assert "top5" in text
    assert "Left out" not in text


def test_files_that_were_left_out_are_named(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data")
    (data / "dark" / "broken & <odd>.png").write_bytes(b"nothing")
    (data / "light" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    train(settings(data=str(data), epochs=1), tmp_path / "run")
    assert write(tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Left out of the data</h2>" in text
    assert "2 of the files could not be used for training:" in text
    assert "<td>dark/broken &amp; &lt;odd&gt;.png cannot be read" in text
    assert "<td>light/gone.png cannot be read" in text
    assert str(tmp_path) not in text  # the folders above the data may be private


def test_of_many_files_that_were_left_out_the_first_are_named(classifier: Path) -> None:
    run = read(classifier)
    named = tuple(f"dark/{number}.png cannot be read" for number in range(30))
    RunFolder(classifier).write(msgspec.structs.replace(run.note, left_out=named, left_out_total=31_000))
    write(classifier)
    text = (classifier / "report.html").read_text()
    assert "31,000 of the files" in text
    assert "dark/29.png" in text
    assert "and 30,970 more" in text


def test_page_is_one_file_that_fetches_nothing_and_runs_nothing(classifier: Path) -> None:
    write(classifier)
    found = Links((classifier / "report.html").read_text())
    assert len(found.links) == len(PICTURES)
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not {"script", "link", "iframe"} & set(found.tags)


def test_figures_are_those_of_the_validation_split(classifier: Path) -> None:
    write(classifier)
    with (classifier / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["support"]) for row in rows) == 48
    expected = measure(of_checkpoint(classifier / "last.ckpt"), "validation")
    assert f"<b>{expected.scores['top1']:.4f}</b>" in (classifier / "report.html").read_text()


def test_run_of_a_segmenter_is_shown_with_masks_side_by_side(segmenter: Path) -> None:
    assert write(segmenter)
    with (segmenter / "classes.csv").open() as file:
        assert list(csv.DictReader(file).fieldnames or ()) == [
            *("class", "iou", "precision", "recall", "boundary_f1", "support")
        ]
    assert Image.open(segmenter / "worst.png").width > 1000  # image and mask, true and answered, of two examples a row
    assert "By size of the image" in (segmenter / "report.html").read_text()


def test_run_on_tensors_has_no_pictures_of_examples_and_lists_them(tmp_path: Path) -> None:
    arguments = ["conv1d", "--data", "gait", "--epochs", "1", "--set", "width=4", "--output", str(tmp_path)]
    assert cli.run(["train", *arguments]) == 0
    assert not (tmp_path / "worst.png").exists()
    assert "as a list" in (tmp_path / "report.html").read_text()


def test_worst_examples_are_those_whose_class_got_the_least_probability(classifier: Path) -> None:
    evaluation = measure(of_checkpoint(classifier / "last.ckpt"), "validation")
    found = worst.worst(evaluation)
    wrong = [example for example in evaluation.examples if example.true != example.predicted]
    assert len(found) == worst.MAX_IMAGES < len(wrong)  # else this shows nothing
    assert all(example in wrong for example in found[: -worst.MAX_RIGHT])
    rest = [example.score for example in wrong if example not in found]
    assert max(example.score for example in found) <= min(rest)
    first = found[0]
    assert re.fullmatch(r"\d, not \d \(\d+%\)", worst.caption(first, evaluation.network.labels))


def test_right_examples_are_shown_only_where_they_are_the_least_certain(classifier: Path) -> None:
    evaluation = measure(of_checkpoint(classifier / "last.ckpt"), "validation")
    right = [
        dataclasses.replace(example, true=example.predicted, score=0.9 + number / 1000)
        for number, example in enumerate(evaluation.examples)
    ]
    perfect = dataclasses.replace(evaluation, examples=right)
    assert worst.worst(perfect) == right[: worst.MAX_RIGHT]
    assert worst.heading(perfect) == "All 48 are right. 8 right ones, the least certain, are among these."
    one = dataclasses.replace(right[-1], predicted=(right[-1].true or 0) + 1, score=0.1)
    almost = dataclasses.replace(evaluation, examples=[*right[:-1], one])
    assert worst.worst(almost) == [one, *right[: worst.MAX_RIGHT]]
    assert worst.heading(almost) == "1 of 48 are wrong. 8 right ones, the least certain, are among these."


def test_five_of_few_classes_are_no_score_of_the_page(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.models.report.write.TOP5_CLASSES", 11)
    write(classifier)
    text = (classifier / "report.html").read_text()
    assert "<span>top1</span>" in text
    assert "<span>top5</span>" not in text


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [(9, 10, 0.596, 0.982), (0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0), (900, 1000, 0.880, 0.917)],
)
def test_interval_of_a_share_is_wilsons(right: int, images: int, low: float, high: float) -> None:
    assert interval(right, images) == pytest.approx((low, high), abs=5e-4)


def test_every_score_column_and_setting_is_explained() -> None:
    settings = default_settings("unet", "aerial")
    names = {f"recipe.{name}" for name in Recipe.__struct_fields__} - {"recipe.augmentation"}
    names |= {f"recipe.augmentation.{name}" for name in settings.recipe.augmentation.__struct_fields__}
    names |= set(settings.__struct_fields__) - {"recipe", "transfer"}
    assert {name for name in names if not words.setting(name)} == set()
    assert words.setting("arguments.width")
    assert not words.setting("nonsense")


def test_picture_that_fails_is_told_and_costs_nothing_else(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(curves, "save_run", broken)
    assert cli.run(["report", str(classifier)]) == 1
    assert "curves.png could not be written: RuntimeError: no ink" in capsys.readouterr().err
    assert (classifier / "confusion.png").is_file()
    assert "curves.png does not exist" in (classifier / "report.html").read_text()


def test_training_ends_well_where_a_picture_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(worst, "save", broken)
    arguments = ["lenet5", "--data", "tiny-digits", "--epochs", "1", "--output", str(tmp_path / "run")]
    assert cli.run(["train", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "worst.png could not be written" in err
    assert str(tmp_path / "run" / "report.html") in out


def test_training_ends_well_where_nothing_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("convoy.models.report.write.measure", broken)
    arguments = ["lenet5", "--data", "tiny-digits", "--epochs", "1", "--output", str(tmp_path / "run")]
    assert cli.run(["train", *arguments]) == 0
    out, err = capsys.readouterr()
    assert f"no report: RuntimeError: no memory; try again with: convoy report {tmp_path}/run" in err
    assert "report " not in out


def test_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadRun):
        write(tmp_path)
    assert cli.run(["report", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def test_table_of_epochs_that_is_broken_is_named(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = classifier / "metrics.csv"
    table.write_text(table.read_text().replace("\n1,", "\none,"))
    assert cli.run(["report", str(classifier)]) == 2
    assert f"{table} is damaged, want numbers by epoch" in capsys.readouterr().err
    table.unlink()
    assert write(classifier)  # without curves


def test_page_of_many_classes_has_the_worst_and_the_mistakes_in_sight(classifier: Path) -> None:
    evaluation = measure(of_checkpoint(classifier / "last.ckpt"), "validation")
    counts = np.zeros((300, 300), np.int64)
    counts[np.arange(300), np.arange(300)] = 5
    counts[7, 9], counts[200, 8] = 40, 30
    labels = [f"kind {number}" for number in range(300)]
    many = dataclasses.replace(
        evaluation,
        network=dataclasses.replace(evaluation.network, labels=labels),
        confusion=counts,
        classes=class_scores(counts, labels),
    )
    shown, folded = _classes(many).split("<details>")
    assert "The 40 worst of 300:" in shown
    assert shown.count("<tr>") == 1 + 40
    assert "<td>kind 7</td>" in shown
    assert folded.count("<tr>") == 1 + 300
    _, table, _ = _confusion(read(classifier), many)
    first, second = re.findall(r"<td>(kind \d+)</td><td>(kind \d+)</td><td>(\d+)</td>", table)
    assert (first, second) == (("kind 7", "kind 9", "40"), ("kind 200", "kind 8", "30"))
    assert "<details>" not in _classes(evaluation)
    assert len(_confusion(read(classifier), evaluation)) == 1
