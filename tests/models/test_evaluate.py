"""Evaluation: the measures are what their names say, over the whole held-out split, and come with a picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from models.checkpoint import Description
from models.data.dataset import DataSet
from models.data.registry import DATA
from models.errors import BadCheckpoint
from models.evaluate import evaluate, evaluate_checkpoint
from models.metrics import IGNORE, measures
from models.visualize import confusion
from service import cli
from service.metadata import InputSpec
from tests.models.conftest import untrained

MASKS = [np.array([[0, 0, 1], [0, 2, 1]], np.uint8), np.array([[0], [0]], np.uint8)]


class Painted:
    """Two images whose red is the class of each pixel; their sides are multiples of nothing."""

    def __len__(self) -> int:
        return 2

    def size(self, index: int) -> tuple[int, int]:
        height, width = MASKS[index].shape
        return height, width

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return np.repeat(MASKS[index][..., None], 3, axis=2), MASKS[index]


class Reader(torch.nn.Module):
    """Answers the class that the red says, but 0 where it is 2."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        classes = image[:, 0].round().long()
        classes[classes == 2] = 0
        return torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()


def test_mean_iou_is_that_of_all_classes_over_all_pixels_without_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataSet("painted", "segmentation", "RGB", ["0", "1", "2"], None, [0.0], [1 / 255], lambda _: Painted())
    monkeypatch.setitem(DATA, "painted", lambda: data)
    description = Description(
        architecture="unet",
        arguments={},
        task="segmentation",
        input=InputSpec(colour="RGB", multiple=4, fit="pad"),
        data="painted",
        labels=data.labels,
        palette=None,
        mean=data.mean,
        std=data.std,
    )
    result = evaluate(description, Reader())
    # Eight pixels: class 0 five times right and once too often, class 1 twice right, class 2 once missed.
    assert result.confusion.tolist() == [[5, 0, 0], [0, 2, 0], [1, 0, 0]]
    assert result.scores["mean_iou"] == pytest.approx((5 / 6 + 1 + 0) / 3)
    assert result.scores["pixel_accuracy"] == pytest.approx(7 / 8)
    assert result.images == 2


def test_top1_and_top5_count_images() -> None:
    found = measures("classification", 10)
    logits = torch.arange(10.0).flip(0).expand(4, 10)  # class 0 first, then 1, 2, ...
    found.update(logits, torch.tensor([0, 4, 5, 9]))
    assert {name: float(value) for name, value in found.compute().items()} == {"top1": 0.25, "top5": 0.5}


def test_ignored_pixels_count_for_nothing() -> None:
    found = measures("segmentation", 2)
    logits = torch.tensor([[[[9.0, 0.0, 9.0]], [[0.0, 9.0, 0.0]]]])  # answers 0, 1, 0
    found.update(logits, torch.tensor([[[0, 1, IGNORE]]]))
    assert {name: float(value) for name, value in found.compute().items()} == {"pixel_accuracy": 1.0, "mean_iou": 1.0}


def test_whole_held_out_split_is_measured(tmp_path: Path) -> None:
    result = evaluate_checkpoint(untrained(tmp_path))
    assert result.images == 72
    assert result.confusion.sum() == 72
    assert result.scores["top1"] == pytest.approx(result.confusion.trace() / 72)


def test_table_shows_shares_of_each_true_class() -> None:
    console = Console(width=80, record=True)
    console.print(confusion.table(np.array([[3, 1], [0, 2]]), ["cat", "aeroplane"]))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[-3:] == [["true", "cat", "aero…"], ["cat", "75.0", "25.0"], ["aeroplane", "·", "100"]]


def test_command_counts_tensors_where_there_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(untrained(tmp_path, "conv1d", "gait"))]) == 0
    out = capsys.readouterr().out
    assert "conv1d on 250 held-out tensors of gait" in out
    assert "share of tensors whose most probable class is right" in out


def test_command_prints_the_measures_and_saves_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = untrained(tmp_path, "unet", "tiny-scenes")
    assert cli.run(["evaluate", str(path)]) == 0
    out = capsys.readouterr().out
    assert "unet on 72 held-out images of tiny-scenes" in out
    assert "mean_iou" in out
    assert "mean of all classes with the background" in out
    picture = tmp_path / "unet-confusion.png"
    assert str(picture) in out
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape[0] > 500
    assert pixels.std() > 10


def test_command_makes_no_folder_for_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(tmp_path / "none.ckpt"), "--picture", str(tmp_path / "no" / "x.png")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"convoy evaluate: cannot write '{tmp_path}/no/x.png': there is no folder '{tmp_path}/no'\n"
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_a_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(tmp_path / "none.ckpt")]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    with pytest.raises(BadCheckpoint):
        evaluate_checkpoint(tmp_path)
