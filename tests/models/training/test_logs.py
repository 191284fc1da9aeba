"""One table of a run: a row an epoch, nothing missing, also of a run that was resumed."""

import csv
import math
from pathlib import Path

import pytest

from convoy.models.training.run import METRICS, RunFolder, read_metrics
from convoy.models.training.train import train
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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of two epochs on digits."""
    train(settings(learning_rate=3e-3), tmp_path / "run")
    return tmp_path / "run"


def test_every_epoch_has_a_row_with_every_loss_and_score(run: Path) -> None:
    rows = read_metrics(run / METRICS)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [3, 6]  # 96 images in batches of 32
    assert all(row.keys() >= NAMES for row in rows)
    note = RunFolder(run).read()
    assert note is not None
    assert rows[-1]["validation_top1"] == pytest.approx(note.validation["validation_top1"])
    with (run / METRICS).open() as file:
        assert all(all(row.values()) for row in csv.DictReader(file))


def test_learning_rate_is_that_of_the_last_step_of_the_epoch(run: Path) -> None:
    rates = [row["learning_rate"] for row in read_metrics(run / METRICS)]
    # Six steps: the first one rises, the others fall along a cosine; the sixth is the fourth of five on its way down.
    expected = [3e-3 * (0.5 + 0.5 * math.cos(math.pi * turn / 5)) for turn in (1, 4)]
    assert rates == pytest.approx(expected, rel=1e-4)


def test_resumed_run_has_each_epoch_once(tmp_path: Path) -> None:
    train(settings(epochs=2), tmp_path)
    first = read_metrics(tmp_path / METRICS)
    train(settings(epochs=4), tmp_path, resume=tmp_path / "last.ckpt")
    rows = read_metrics(tmp_path / METRICS)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[:2] == first
    assert rows[2]["seconds"] > rows[1]["seconds"]


def test_new_run_in_the_same_folder_forgets_the_old_one(tmp_path: Path) -> None:
    train(settings(epochs=2), tmp_path)
    train(settings(epochs=1), tmp_path)
    assert [row["epoch"] for row in read_metrics(tmp_path / METRICS)] == [1]
