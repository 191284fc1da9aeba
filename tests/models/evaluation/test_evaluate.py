"""Evaluation: the measures are what their names say, over the whole held-out split, and come with a picture."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from convoy.models import runtime
from convoy.models.checkpoint import Description
from convoy.models.commands.options import parse_bounds
from convoy.models.data.dataset import IGNORE, DataSet
from convoy.models.data.registry import DATA
from convoy.models.errors import BadCheckpoint, BadNetworkFile, BadTraining
from convoy.models.evaluation import metrics
from convoy.models.evaluation.evaluate import evaluate, evaluate_file, measure, side, slice_names, slice_of, thirds
from convoy.models.evaluation.metrics import measures
from convoy.models.evaluation.predictor import Predictions, of_path
from convoy.models.export.export import export
from convoy.models.report import classes
from convoy.models.runtime import CPU, CUDA
from convoy.service import cli
from convoy.service.metadata import InputSpec
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
    assert result.scores["boundary_f1"] == pytest.approx(2 / 3)  # of the first image, without class 2
    assert [row.iou for row in result.classes] == pytest.approx([5 / 6, 1, 0])
    assert result.images == 2
    assert [example.score for example in result.examples] == pytest.approx([(3 / 4 + 1 + 0) / 3, 1])


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
    result = evaluate_file(untrained(tmp_path))
    assert result.images == 72
    assert result.confusion.sum() == 72
    assert result.scores["top1"] == pytest.approx(result.confusion.trace() / 72)


def test_every_image_tells_how_right_its_answer_is(tmp_path: Path) -> None:
    result = evaluate_file(untrained(tmp_path))
    assert [example.index for example in result.examples] == list(range(72))
    right = [example.true == example.predicted for example in result.examples]
    assert np.mean(right) == pytest.approx(result.scores["top1"])
    assert all(
        (example.score == example.confidence) == good for example, good in zip(result.examples, right, strict=True)
    )
    truths = [target for _, target in (DATA["tiny-digits"]().split("test")[index] for index in range(72))]
    assert [example.true for example in result.examples] == truths


def test_slices_by_size_hold_all_images_and_their_own_scores(tmp_path: Path) -> None:
    path = untrained(tmp_path, "unet", "tiny-scenes")
    result = evaluate_file(path)
    assert [each.images for each in result.slices] == [36, 24, 12]
    pixels = [36 * (64 * 64 + 64 * 80 * 2) / 3, 24 * 64 * 96, 12 * 80 * 80]
    accuracy = np.average([each.scores["pixel_accuracy"] for each in result.slices], weights=pixels)
    assert accuracy == pytest.approx(result.scores["pixel_accuracy"])
    assert [each.images for each in evaluate_file(path, bounds=[64, 75, 500]).slices] == [12, 24, 36]


def test_images_of_one_size_make_no_slices(tmp_path: Path) -> None:
    assert evaluate_file(untrained(tmp_path)).slices == []


@pytest.mark.parametrize(
    ("architecture", "data"), [("lenet5", "tiny-digits"), ("unet", "tiny-scenes"), ("conv1d", "gait")]
)
def test_checkpoint_and_its_exported_file_have_the_same_figures(tmp_path: Path, architecture: str, data: str) -> None:
    path = untrained(tmp_path, architecture, data)
    exported = export(path, tmp_path / "repository").path
    ours, theirs = evaluate_file(path), evaluate_file(exported)
    assert theirs.images == ours.images
    assert theirs.scores == pytest.approx(ours.scores, abs=1e-5)
    if ours.network.task == "classification":
        assert np.array_equal(theirs.confusion, ours.confusion)
    else:  # a pixel may be as near to one class as to another
        assert np.abs(theirs.confusion - ours.confusion).sum() <= 2e-4 * ours.confusion.sum()


def test_file_of_other_weights_has_other_figures(tmp_path: Path) -> None:
    exported = export(untrained(tmp_path, seed=1), tmp_path / "repository").path
    ours = evaluate_file(untrained(tmp_path, seed=0))
    assert evaluate_file(exported).scores != pytest.approx(ours.scores, abs=1e-5)


def test_file_of_a_folder_must_be_told_where_it_lies(tmp_path: Path) -> None:
    exported = export(untrained(tmp_path), tmp_path / "repository").path
    graph = onnx.load(exported)
    properties = {entry.key: entry.value for entry in graph.metadata_props}
    properties["convoy"] = properties["convoy"].replace("tiny-digits", "my-digits")
    onnx.helper.set_model_props(graph, properties)
    onnx.save(graph, exported)
    with pytest.raises(BadNetworkFile, match="'my-digits', without its location: specify the data with --data"):
        evaluate_file(exported)
    assert evaluate_file(exported, "tiny-digits").images == 72


def test_file_that_does_not_say_what_it_is_is_refused(tmp_path: Path) -> None:
    graph = onnx.load(export(untrained(tmp_path), tmp_path / "repository").path)
    onnx.helper.set_model_props(graph, {})
    onnx.save(graph, tmp_path / "plain.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    for name, why in (
        ("plain", "does not describe itself"),
        ("broken", "is not an ONNX file that"),
        ("none", "there is no file"),
    ):
        with pytest.raises(BadNetworkFile, match=why):
            evaluate_file(tmp_path / f"{name}.onnx")


def test_who_measures_waits_for_no_other_process_and_who_trains_does() -> None:
    def asked(*_: object, **__: object) -> None:
        raise ConnectionError("the other process has gone")

    logits, target = torch.eye(3)[[0, 1]], torch.tensor([0, 1])
    alone = [*metrics.scores("classification", 3).values(), metrics.confusion("classification", 3)]
    for metric in [*alone, *(together := list(metrics.measures("classification", 3).values()))]:
        metric.distributed_available_fn, metric.dist_sync_fn = lambda: True, asked
        metric.update(logits, target)
    assert all(metric.compute() is not None for metric in alone)
    for metric in together:
        with pytest.raises(ConnectionError):
            metric.compute()


def test_class_number_255_of_many_is_a_class_like_any_other() -> None:
    counts = metrics.confusion("classification", 300)
    counts.update(torch.tensor([255, 3]), torch.tensor([255, 255]))
    assert counts.compute()[255].sum() == 2


def test_table_of_many_classes_shows_the_commonest_mistakes() -> None:
    counts = np.diag([5] * 30)
    counts[3, 7], counts[9, 1] = 4, 2
    console = Console(width=80, record=True)
    console.print(classes.confusion_table(counts, [f"kind{number}" for number in range(30)]))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[-2:] == [["kind3", "kind7", "4", "44.4"], ["kind9", "kind1", "2", "28.6"]]


def test_picture_of_many_classes_stays_a_picture_that_can_be_opened(tmp_path: Path) -> None:
    labels = [f"kind{number}" for number in range(400)]
    classes.save_confusion(np.eye(400, dtype=np.int64), labels, "many", tmp_path / "many.png")
    assert max(Image.open(tmp_path / "many.png").size) < 3000


def test_table_shows_shares_of_each_true_class() -> None:
    console = Console(width=80, record=True)
    console.print(classes.confusion_table(np.array([[3, 1], [0, 2]]), ["cat", "aeroplane"]))
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


def test_command_prints_json_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(untrained(tmp_path)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["scores"]) == {"top1", "top5", "calibration_error"}
    assert (found["images"], found["split"], found["data"]) == (72, "test", "tiny-digits")
    assert [row["class"] for row in found["classes"]] == [str(digit) for digit in range(10)]
    assert sum(row["support"] for row in found["classes"]) == 72
    assert np.sum(found["confusion"]) == 72
    assert not list(tmp_path.glob("*.png"))


def test_command_leaves_no_picture_beside_a_file_that_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = export(untrained(tmp_path), tmp_path / "repository").path
    assert cli.run(["evaluate", str(exported)]) == 0
    assert "lenet5 on 72 held-out images of tiny-digits" in capsys.readouterr().out
    assert {path.name for path in exported.parent.iterdir()} == {"model.onnx", "samples"}


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
        evaluate_file(tmp_path)


@pytest.mark.parametrize("content", [b"", b"# Not a network\n", b"\x08\x07"])
def test_file_that_is_no_network_is_refused_with_what_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    file = tmp_path / "bad.onnx"
    file.write_bytes(content)
    assert cli.run(["evaluate", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file} is not an ONNX file that onnxruntime runs, want one that `convoy export` wrote" in line
    assert "ONNXRuntimeError" not in line
    assert "rotobuf" not in line


@pytest.mark.parametrize(("offered", "wanted"), [([CUDA, CPU], [CUDA, CPU]), ([CPU], [CPU]), ([CPU, "Other"], [CPU])])
def test_file_is_run_on_cuda_where_onnxruntime_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offered: list[str], wanted: list[str]
) -> None:
    file = export(untrained(tmp_path), tmp_path, data="").path
    taken: list[list[str]] = []

    def open_session(*arguments: object, providers: list[str]) -> onnxruntime.InferenceSession:
        taken.append(providers)
        return onnxruntime.InferenceSession(*arguments, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(runtime, "Session", open_session)
    assert of_path(file, "tiny-digits").name == "lenet5"
    assert taken == [wanted]


@pytest.mark.parametrize("there", [True, False])
def test_checkpoint_is_run_on_cuda_where_torch_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    moved: list[torch.device] = []

    def to(self: torch.nn.Module | torch.Tensor, device: torch.device) -> torch.nn.Module | torch.Tensor:
        moved.append(device)
        return self

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(torch.Tensor, "to", to)
    answerer = of_path(untrained(tmp_path))
    answers = answerer.predict(torch.zeros(2, 32, 32, 1, dtype=torch.uint8)).best
    assert answers.shape == (2, 10)
    assert moved == [torch.device("cuda" if there else "cpu")] * 2


def test_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(tmp_path)]) == 2
    assert "is not the folder of a run, want one that `convoy train` wrote" in capsys.readouterr().err
    untrained(tmp_path).rename(tmp_path / "last.ckpt")  # of a run that was killed before its note
    assert cli.run(["evaluate", str(tmp_path)]) == 0


def test_masks_tell_how_well_they_are_calibrated_where_they_tell_how_sure_they_are(tmp_path: Path) -> None:
    exported = export(untrained(tmp_path, "unet", "tiny-scenes"), tmp_path / "repository").path
    assert "calibration_error" in evaluate_file(exported).scores
    graph = onnx.load(exported)
    (confidence,) = (value for value in graph.graph.output if value.name == "confidence")
    graph.graph.output.remove(confidence)
    onnx.save(graph, tmp_path / "masks.onnx")
    assert set(evaluate_file(tmp_path / "masks.onnx").scores) == {"mean_iou", "pixel_accuracy", "boundary_f1"}


def test_side_is_that_of_a_square_of_the_same_area() -> None:
    assert side((4, 9)) == 6


def test_thirds_are_equally_many_images() -> None:
    sides = [float(number) for number in range(1, 10)]
    bounds = thirds(sides)
    assert [[each for each in sides if slice_of(each, bounds) == number] for number in range(3)] == [
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
    ]


def test_images_of_one_size_stay_together() -> None:
    assert thirds([5.0] * 4 + [9.0]) == [5.0]
    assert thirds([5.0] * 4) == []


def test_bounds_are_read_and_name_the_slices() -> None:
    assert parse_bounds("32,96") == [32, 96]
    assert slice_names([32, 96]) == ["small, up to 32 px", "medium, 32 to 96 px", "large, above 96 px"]
    assert slice_names([64]) == ["up to 64 px", "above 64 px"]
    assert [slice_of(each, [32, 96]) for each in (32, 32.1, 96, 97)] == [0, 1, 1, 2]


@pytest.mark.parametrize("text", ["", "32,", "96,32", "32,32", "0,32", "small", "-3"])
def test_bounds_that_are_no_ascending_sides_are_refused(text: str) -> None:
    with pytest.raises(BadTraining, match="want ascending sides"):
        parse_bounds(text)


@pytest.mark.parametrize(
    ("architecture", "data", "expected"), [("lenet5", "tiny-digits", 1), ("unet", "tiny-scenes", 3)]
)
def test_network_is_evaluated_with_the_threads_that_a_batch_pays_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, data: str, expected: int
) -> None:
    monkeypatch.setattr("convoy.models.runtime.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = untrained(tmp_path, architecture, data)
    runtime.limit_threads()
    network, seen = of_path(path), []

    def predict(batch: torch.Tensor) -> Predictions:
        seen.append(torch.get_num_threads())
        return network.predict(batch)

    measure(dataclasses.replace(network, predict=predict))
    assert set(seen) == {expected}
    assert torch.get_num_threads() == 8  # for whatever comes next
