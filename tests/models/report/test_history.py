"""One table of a run: a row an epoch, nothing missing, also of a run that was resumed."""

import csv
import math
from pathlib import Path

import pytest

from models.report.history import FILE, read
from models.run import RunFolder
from models.train import train
from tests.models.conftest import settings

NAMES = {
    "epoch",
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    "validation_loss",
    "validation_top1",
    "validation_top5",
}


def test_every_epoch_has_a_row_with_every_loss_and_score(classifier: Path) -> None:
    rows = read(classifier / FILE)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [3, 6]  # 96 images in batches of 32
    assert all(row.keys() >= NAMES for row in rows)
    note = RunFolder(classifier).read()
    assert note is not None
    assert rows[-1]["validation_top1"] == pytest.approx(note.validation["validation_top1"])
    with (classifier / FILE).open() as file:
        assert all(all(row.values()) for row in csv.DictReader(file))


def test_learning_rate_is_that_of_the_last_step_of_the_epoch(classifier: Path) -> None:
    rates = [row["learning_rate"] for row in read(classifier / FILE)]
    # Six steps: the first one rises, the others fall along a cosine; the sixth is the fourth of five on its way down.
    expected = [3e-3 * (0.5 + 0.5 * math.cos(math.pi * turn / 5)) for turn in (1, 4)]
    assert rates == pytest.approx(expected, rel=1e-4)


def test_resumed_run_has_each_epoch_once(tmp_path: Path) -> None:
    train(settings(epochs=2), tmp_path)
    first = read(tmp_path / FILE)
    train(settings(epochs=4), tmp_path, resume=tmp_path / "last.ckpt")
    rows = read(tmp_path / FILE)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[:2] == first
    assert rows[2]["seconds"] > rows[1]["seconds"]


def test_new_run_in_the_same_folder_forgets_the_old_one(tmp_path: Path) -> None:
    train(settings(epochs=2), tmp_path)
    train(settings(epochs=1), tmp_path)
    assert [row["epoch"] for row in read(tmp_path / FILE)] == [1]
