"""The two networks of the demo are as good and as quick as they are meant to be."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from convoy.models.analysis.summary import totals
from convoy.models.data.batches import loader
from convoy.models.data.registry import data_set
from convoy.models.evaluation.evaluate import evaluate_file
from convoy.models.export.publish import versions
from convoy.service import metadata
from convoy.service.metadata import Document
from tools import demo

pytestmark = pytest.mark.trained

SLOW = 3e9  # multiply-adds a second of forward passes, beside which two slow cores do everything else of a training


def latest(repository: Path, name: str) -> Path:
    return repository / name / str(versions(repository, name)[-1]) / "model.onnx"


def document(path: Path) -> Document:
    found = metadata.decode({entry.key: entry.value for entry in onnx.load(path).metadata_props})
    assert found is not None
    return found


def test_lenet5_reads_98_percent_of_held_out_digits(trained_repository: Path) -> None:
    checkpoint = demo.run_folder(trained_repository.parent, "lenet5").chosen()
    assert evaluate_file(checkpoint).scores["top1"] >= 0.98


def test_unet_reaches_a_mean_iou_of_85_percent_on_held_out_scenes(trained_repository: Path) -> None:
    checkpoint = demo.run_folder(trained_repository.parent, "unet").chosen()
    assert evaluate_file(checkpoint).scores["mean_iou"] >= 0.85


def test_both_need_no_more_work_than_four_minutes_of_two_slow_cores(trained_repository: Path) -> None:
    """Work instead of time: what else runs on this machine makes no difference. How near a training is to a bare loop
    is asked elsewhere."""
    work = 0
    for name in demo.NETWORKS:
        folder = demo.run_folder(trained_repository.parent, name)
        note = folder.read()
        assert note is not None
        assert note.complete
        settings = note.settings
        with (folder.root / "metrics.csv").open() as file:
            *_, last = csv.DictReader(file)
        crop = settings.recipe.crop
        classes = len(document(latest(trained_repository, name)).labels)
        size = (crop, crop) if crop else None
        each = totals(name, size, classes, arguments=settings.arguments).multiply_adds
        work += int(last["step"]) * settings.recipe.batch_size * each
    assert 0 < work <= 240 * SLOW


def test_exported_lenet5_answers_as_well_without_pytorch(trained_repository: Path) -> None:
    path = latest(trained_repository, "lenet5")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    right = [
        session.run(["probabilities"], {"image": images.numpy()})[0].argmax(axis=1) == labels.numpy()
        for images, labels in loader(data_set("digits").split("test"), document(path).input, 32)
    ]
    assert np.concatenate(right).mean() >= 0.98


def test_exported_unet_answers_as_well_without_pytorch(trained_repository: Path) -> None:
    path = latest(trained_repository, "unet")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    counts = np.zeros((11, 11), np.int64)
    for images, masks in loader(data_set("digit-scenes").split("test"), document(path).input, 32):
        (answers,) = session.run(["mask"], {"image": images.numpy()})
        np.add.at(counts, (masks.numpy().ravel(), answers.ravel()), 1)
    iou = counts.diagonal() / (counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal())
    assert iou.mean() >= 0.85


@pytest.mark.parametrize("name", ["lenet5", "unet"])
def test_exported_file_carries_its_figures_and_its_parity(trained_repository: Path, name: str) -> None:
    found = document(latest(trained_repository, name))
    assert found.provenance is not None
    assert found.parity is not None
    assert found.provenance.metrics["top1" if name == "lenet5" else "mean_iou"] >= 0.85
    assert found.parity.images >= 64
    assert found.parity.max_abs_difference <= 1e-4


def test_preparing_again_does_nothing_again(trained_repository: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained_repository.rglob("model.onnx")}
    assert demo.prepare(trained_repository.parent) == trained_repository
    assert {path: path.stat().st_mtime_ns for path in trained_repository.rglob("model.onnx")} == before


def test_demo_runs_through_and_ends_by_itself(trained_repository: Path) -> None:
    directory = trained_repository.parent
    command = [sys.executable, "-m", "tools.demo", "--once", "--directory", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done before") == 4
    assert "digits read right" in done.stdout
    assert "convoy_batch_size_count" in done.stdout
    assert "server stopped with exit code 0" in done.stdout
    assert re.search(r"^the first answers came \d+ s after the start of the demo$", done.stdout, re.MULTILINE)
    assert "  serves: unet, version" in done.stdout
    for name in ("scene-1-mask.png", "scene-1-mask-overlay.png", "answers.png"):
        assert (directory / name).is_file()
