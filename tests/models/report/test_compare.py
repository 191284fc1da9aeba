"""Runs side by side."""

import json
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from convoy.models.analysis.torch_reader import count
from convoy.models.checkpoint import load
from convoy.models.errors import BadRun
from convoy.models.evaluation.evaluate import evaluate_file
from convoy.models.report.compare import cells, compare, header, names
from convoy.models.training.run import RunFolder
from convoy.models.training.train import train
from convoy.service import cli
from tests.models.conftest import settings


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A run of another network on the same digits, with another rate."""
    train(settings("convpool", epochs=1, learning_rate=1e-2), tmp_path / "other")
    return tmp_path / "other"


def test_table_tells_what_each_network_is_and_how_good_it_is(classifier: Path, other: Path) -> None:
    first, second = compare([classifier, other]).runs
    assert (first.name, first.architecture, first.epochs) == ("classifier", "lenet5", 2)
    assert (second.name, second.architecture, second.epochs) == ("other", "convpool", 1)
    _, network = load(classifier / "last.ckpt")
    assert first.parameters == count(network).total
    assert first.multiply_adds > first.parameters / 2
    note = RunFolder(classifier).read()
    assert note is not None
    assert first.validation["top1"] == note.validation["validation_top1"]
    assert first.held_out == {}


def test_held_out_scores_are_those_of_evaluate(classifier: Path, other: Path) -> None:
    found = compare([classifier, other], held_out=True).runs[0]
    assert found.held_out == evaluate_file(classifier / "last.ckpt").scores


def test_held_out_scores_are_measured_where_the_data_are_now(
    classifier: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", str(classifier), str(other), "--json", "--data", "digits"]
    assert cli.run([*command, "--held-out"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"][0]
    assert found["held_out"] == evaluate_file(classifier / "last.ckpt", "digits").scores
    assert cli.run(command) == 2
    assert "--data digits requires --held-out" in capsys.readouterr().err


def test_command_writes_a_page_and_the_curves(
    classifier: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "both.html"
    assert cli.run(["compare", str(classifier), str(other), "--output", str(page)]) == 0
    out = capsys.readouterr().out
    assert "multiply-adds" in out
    assert "note:" not in out
    assert Image.open(tmp_path / "both.png").width > 1000
    text = page.read_text()
    assert "data:image/png;base64," in text
    assert "recipe.learning_rate" in text  # their different settings
    assert "recipe.batch_size" not in text


def test_runs_of_different_data_say_so(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(settings("conv1d", "gait", epochs=1), tmp_path / "gait")
    assert cli.run(["compare", str(classifier), "gait"]) == 0
    assert "note: these runs have different data (tiny-digits, gait)" in capsys.readouterr().out
    assert "these runs have different data" in (tmp_path / "comparison.html").read_text()


def test_json_has_the_same_and_no_files_are_written(
    classifier: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["compare", str(classifier), str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == ["classifier", "other"]
    assert found["notes"] == []
    assert not list(tmp_path.glob("*.html"))


def test_runs_for_different_tasks_and_single_ones_are_refused(classifier: Path, segmenter: Path) -> None:
    with pytest.raises(BadRun, match="for classification and for segmentation"):
        compare([classifier, segmenter])
    with pytest.raises(BadRun, match="at least two"):
        compare([classifier])


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    assert names([Path("a/run"), Path("b/run")]) == ["a/run", "b/run"]
    assert names([Path("a/one"), Path("b/two/")]) == ["one", "two"]


def test_scores_stand_below_their_names_where_runs_have_different_ones(classifier: Path, other: Path) -> None:
    folder = RunFolder(other)
    note = folder.read()
    assert note is not None
    folder.write(msgspec.structs.replace(note, validation={"validation_loss": 0.5, "validation_new": 0.25}))
    found = compare([classifier, other])
    first, second = (dict(zip(header(found), cells(found, row), strict=True)) for row in found.runs)
    assert (second["validation loss"], second["validation new"], second["validation top1"]) == ("0.5000", "0.2500", "–")
    assert first["validation new"] == "–"
    assert float(first["validation top1"]) > 0
