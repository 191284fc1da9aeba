"""`convoy score`: what it prints, its exit codes, its progress, and how it is interrupted."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from convoy.service.commands import score as command
from convoy.service.commands.score import Shown, _duration
from convoy.service.commands.terminal import console
from tests.service.scoring.conftest import fill
from tests.service.scoring.runs import SECONDS, finished, parts, rows, started
from tests.service.terminal import terminal

Convoy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy shows no progress in between."""
    monkeypatch.setattr(command, "_SECONDS", 3600.0)


def test_it_prints_one_line_and_fails_for_images_with_errors(
    convoy: Convoy, classifier_file: str, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = convoy("score", photos, "--model", classifier_file, "-o", out)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"scored 200 images, 12 with an error: {out}, ")
    assert done.stdout.endswith(" a second\n")
    assert len(rows(out)) == 200
    again = convoy("score", photos, "--model", classifier_file, "-o", out)
    assert again.stdout == f"scored 200 images, 200 of them by an earlier run, 12 with an error: {out}\n"
    report = json.loads(convoy("score", photos, "--model", classifier_file, "-o", out, "--json").stdout)
    assert report.pop("seconds") > 0
    assert report == {"images": 200, "failed": 12, "scored": 0, "output": str(out)}


def test_it_succeeds_where_every_image_is_scored(convoy: Convoy, segmenter_file: str, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 10)
    out = tmp_path / "out"
    done = convoy("score", source, "--model", segmenter_file, "-o", out, "--mask-files", tmp_path / "masks")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"scored 10 images: {out}, ")
    assert len(list((tmp_path / "masks").glob("*.png"))) == 10


def test_what_cannot_be_scored_is_one_line(convoy: Convoy, classifier_file: str, photos: Path, tmp_path: Path) -> None:
    for arguments, why in [
        ((photos, "--model", tmp_path / "none.onnx"), "does not exist, want an .onnx file, or NAME@HOST:PORT"),
        ((tmp_path / "none", "--model", classifier_file), "none"),
        ((photos, "--model", classifier_file, "--mask-files", tmp_path), "--mask-files is for segmentation"),
        ((photos, "--model", classifier_file, "--key", "k.pem"), "--key is given without --certificate"),
    ]:
        done = convoy("score", *arguments, "-o", tmp_path / "out")
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("convoy score: ")
        assert why in line
    file = tmp_path / "file"
    file.write_text("")
    assert "is no folder" in convoy("score", photos, "--model", classifier_file, "-o", file).stderr


def test_without_pyarrow_it_says_what_to_install(
    convoy: Convoy, classifier_file: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    done = convoy("score", photos, "--model", classifier_file, "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "convoy score: Parquet needs pyarrow: pip install 'convoy[score]'\n"


def test_an_interrupted_run_says_so_and_continues(segmenter_file: str, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 400)
    for attempt in range(5):  # a test that stands still meanwhile interrupts nothing
        out = tmp_path / f"out-{attempt}"
        process = started(source, "--model", segmenter_file, "-o", out, "--rows", 4)
        until = time.monotonic() + SECONDS
        while not list(out.glob("part-*")) and process.poll() is None and time.monotonic() < until:
            threading.Event().wait(0.002)
        process.send_signal(signal.SIGINT)
        printed, told = process.communicate(timeout=SECONDS)
        if len(parts(out)) < 100:
            break
    assert process.returncode == 130
    assert printed == ""
    *progress, last = told.splitlines()
    assert last == f"convoy score: interrupted; the same command continues in {str(out)!r}"
    assert all(line.startswith("scoring: ") for line in progress)
    assert 0 < len(parts(out)) < 100
    before = parts(out)
    assert finished(source, "--model", segmenter_file, "-o", out, "--rows", 4).returncode == 1
    assert before.items() <= parts(out).items()
    assert len({row["id"] for row in rows(out)}) == len(rows(out)) == 400


def test_progress_has_rate_errors_and_the_time_left() -> None:
    shown = Shown(console(stderr=True))
    assert shown.line(100.0) == "0 of 0 or more, 0.0 images/s"
    shown.listed(1024, False)
    shown.kept(24, 1)
    assert shown.line(101.0) == "24 of 1,024 or more, 0.0 images/s, 1 errors"
    shown.listed(2024, True)
    for number in range(500):
        shown.scored(number < 2)
    assert shown.line(110.0) == "524 of 2,024, 50.0 images/s, 3 errors, 30 s left"
    assert shown.share == 524 / 2024
    # The rate is that of the last half minute: an earlier pause does not count.
    assert shown.line(120.0).startswith("524 of 2,024, 25.0 images/s")
    assert shown.line(141.0).startswith("524 of 2,024, 0.0 images/s")
    assert [_duration(seconds) for seconds in (0.4, 61, 3600 * 5 + 125)] == ["0 s", "1 min 01 s", "5 h 02 min"]


def test_a_terminal_shows_a_bar(segmenter_file: str, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 200)
    arguments = ["score", source, "--model", segmenter_file, "-o", tmp_path / "out"]
    with terminal(*arguments, columns=100) as screen:
        screen.read_until(" images/s")
        assert screen.end() == 1
        assert "scored 200 images, 12 with an error" in screen.shown


def test_rows_are_one_data_set_for_readers_of_parquet(
    convoy: Convoy, classifier_file: str, photos: Path, tmp_path: Path
) -> None:
    convoy("score", photos, "--model", classifier_file, "-o", tmp_path / "out", "--rows", 32)
    table = pyarrow.parquet.read_table(tmp_path / "out")
    assert len(table) == 200
    assert table.schema.names == ["id", "sha256", "labels", "indices", "probabilities", "error"]
