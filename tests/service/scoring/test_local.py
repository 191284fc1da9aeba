"""The local engine: parts, resuming after any end, and what a folder of results refuses."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from convoy.service.errors import BadConfig, ConvoyError
from convoy.service.scoring import local, output
from convoy.service.scoring.local import Summary
from convoy.service.scoring.output import Asked
from convoy.service.scoring.score import Score
from convoy.service.scoring.sources import listed
from tests.service.running import Server
from tests.service.scoring.conftest import fill
from tests.service.scoring.runs import finished, kill_after, kill_when, parts, rows, started

ROWS = 16


class Watched:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.total, self.complete = 0, False
        self.earlier = self.done = self.failed = 0
        self._lock = threading.Lock()

    def listed(self, images: int, complete: bool) -> None:
        self.total, self.complete = images, complete

    def kept(self, images: int, failed: int) -> None:
        self.earlier += images
        self.failed += failed

    def scored(self, failed: bool) -> None:
        with self._lock:
            self.done += 1
            self.failed += failed


def run(model: str, source: Path | str, out: Path, watch: Any = None, **options: Any) -> Summary:
    asked = {name: options.pop(name) for name in list(options) if name in Asked.__struct_fields__}
    return local.run(
        Score(model, **options), out, Asked(source=str(source), **{"rows": ROWS, **asked}), watch or Watched()
    )


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ConvoyError) as refused:
        run(*arguments, **options)
    assert "\n" not in refused.value.message
    return refused.value.message


def test_every_image_is_a_row_in_the_order_of_the_source(classifier_file: str, photos: Path, tmp_path: Path) -> None:
    watch = Watched()
    summary = run(classifier_file, photos, tmp_path / "out", watch)
    assert summary[:3] == (200, 12, 200)
    assert (watch.total, watch.complete, watch.earlier, watch.done, watch.failed) == (200, True, 0, 200, 12)
    found = rows(tmp_path / "out")
    entries = list(listed(str(photos)))
    assert [row["id"] for row in found] == [entry.id for entry in entries]
    assert [len(pyarrow.parquet.read_table(tmp_path / "out" / name)) for name in parts(tmp_path / "out")] == [
        *[ROWS] * 12,
        8,
    ]
    expected = Score(classifier_file)(
        {"id": [entry.id for entry in entries], "bytes": [Path(entry.place[0]).read_bytes() for entry in entries]}
    )
    assert [row["labels"] for row in found] == expected["labels"]
    assert [row["error"] for row in found] == expected["error"]


def test_a_second_run_scores_nothing_and_reports_the_same(classifier_file: str, photos: Path, tmp_path: Path) -> None:
    run(classifier_file, photos, tmp_path)
    before, watch = parts(tmp_path), Watched()
    assert run(classifier_file, photos, tmp_path, watch)[:3] == (200, 12, 0)
    assert parts(tmp_path) == before
    assert (watch.earlier, watch.done, watch.failed) == (200, 0, 12)


@pytest.mark.parametrize("name", ["classes", "masks"])
def test_two_runs_write_the_same_bytes(scoring_models: Path, photos: Path, tmp_path: Path, name: str) -> None:
    model = str(scoring_models / name / "1" / "model.onnx")
    for out in ("one", "two"):
        run(model, photos, tmp_path / out)
    assert parts(tmp_path / "one") == parts(tmp_path / "two")


def test_missing_parts_alone_are_scored_again(segmenter_file: str, photos: Path, tmp_path: Path) -> None:
    run(segmenter_file, photos, tmp_path)
    before = parts(tmp_path)
    for number in (0, 5, 12):
        output.part(tmp_path, number).unlink()
    (tmp_path / ".part-00005.parquet.tmp").write_bytes(b"PAR1")  # as a killed run leaves it
    assert run(segmenter_file, photos, tmp_path).scored == 2 * ROWS + 8
    assert parts(tmp_path) == before
    assert not list(tmp_path.glob(".*.tmp"))


def killed_and_resumed(model: str, photos: Path, folder: Path, kills: int, seed: int, *, by_time: bool) -> None:
    """Kills a run at random, that often, and compares what it ends with with a run that nobody kills."""
    chance, out = random.Random(seed), folder / "out"
    options = (photos, "--model", model, "--rows", ROWS, "--threads", 1)
    began = time.monotonic()
    assert finished(*options, "-o", folder / "whole").returncode == 1
    seconds = time.monotonic() - began
    hit = 0
    while hit < kills:
        if len(parts(out)) == len(parts(folder / "whole")):  # nothing is left to be killed
            shutil.rmtree(out)
        process = started(*options, "-o", out)
        if by_time:
            hit += kill_after(process, chance.uniform(0, seconds))
        else:
            hit += kill_when(process, out, len(parts(out)) + chance.randint(1, 3), chance)
        for name, data in parts(out).items():
            assert data == parts(folder / "whole")[name]
    last = finished(*options, "-o", out)
    assert last.returncode == 1
    assert parts(out) == parts(folder / "whole")
    ids = [row["id"] for row in rows(out)]
    assert len(ids) == len(set(ids)) == 200
    assert not list(out.glob(".*.tmp"))


@pytest.mark.timeout(900)  # a kill that comes too late takes another run
def test_a_run_that_is_killed_three_times_ends_in_the_bytes_of_an_unbroken_one(
    segmenter_file: str, photos: Path, tmp_path: Path
) -> None:
    killed_and_resumed(segmenter_file, photos, tmp_path, 3, 18, by_time=False)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("by_time", [False, True])
@pytest.mark.parametrize("name", ["classes", "masks"])
def test_a_run_that_is_killed_twenty_times_ends_in_the_bytes_of_an_unbroken_one(
    scoring_models: Path, photos: Path, tmp_path: Path, name: str, by_time: bool
) -> None:
    model = str(scoring_models / name / "1" / "model.onnx")
    killed_and_resumed(model, photos, tmp_path, 20, 19, by_time=by_time)


def test_a_run_by_a_server_resumes_with_the_version_it_began_with(
    scoring_models: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(scoring_models, tmp_path / "repository")
    shutil.copytree(tmp_path / "repository" / "classes" / "1", tmp_path / "repository" / "classes" / "2")
    settings = ["server.lame_duck_seconds=0", "repository.versions=all"]
    out = tmp_path / "out"
    with Server(tmp_path / "repository", settings) as server:
        run(f"classes@{server.grpc}", photos, out, version=1)
        before = parts(out)
        output.part(out, 3).unlink()
        assert run(f"classes@{server.grpc}", photos, out).scored == ROWS
        assert {row["version"] for row in rows(out)} == {1}
        assert {row["model"] for row in rows(out)} == {"classes"}
        assert parts(out).keys() == before.keys()
        assert refusal(f"classes@{server.grpc}", photos, out, version=2).startswith(
            f"{str(out)!r} is of a run with model model classes, version 1, not model classes, version 2: choose"
        )


def test_another_run_in_the_same_folder_is_refused_and_a_dead_one_is_not(
    classifier_file: str, photos: Path, tmp_path: Path
) -> None:
    with output.locked(tmp_path):
        assert refusal(classifier_file, photos, tmp_path).startswith(f"another run writes to {str(tmp_path)!r}")
    assert (tmp_path / ".convoy" / "lock").exists()
    run(classifier_file, photos, tmp_path)


def test_a_folder_of_another_run_is_refused_naming_what_differs(
    classifier_file: str, segmenter_file: str, photos: Path, tmp_path: Path
) -> None:
    run(classifier_file, photos, tmp_path)
    before = parts(tmp_path)
    assert "is of a run with top k 5, not 3: choose" in refusal(classifier_file, photos, tmp_path, top_k=3)
    assert "rows 16, not 8" in refusal(classifier_file, photos, tmp_path, rows=8)
    assert f"source {str(photos)!r}, not " in refusal(classifier_file, photos / "00000.jpg", tmp_path)
    assert "batch size" in refusal(classifier_file, photos, tmp_path, batch_size=5)
    told = refusal(segmenter_file, photos, tmp_path, top_k=2)
    assert "model sha256" in told
    assert "top k 5, not 2" in told
    assert parts(tmp_path) == before
    (tmp_path / "_score.json").unlink()
    assert "has parts of a run, but no _score.json" in refusal(classifier_file, photos, tmp_path)
    (tmp_path / "_score.json").write_text("{}")
    assert "is not the record of a run" in refusal(classifier_file, photos, tmp_path)


def test_a_model_file_that_was_replaced_does_not_continue(classifier_file: str, photos: Path, tmp_path: Path) -> None:
    from tests.service import networks

    file = tmp_path / "model.onnx"
    shutil.copyfile(classifier_file, file)
    run(str(file), photos, tmp_path / "out")
    networks.save(networks.residual(width=4), tmp_path, "other")
    (tmp_path / "other" / "1" / "model.onnx").rename(file)
    # The process has the former one open: a new one reads the file.
    done = finished(photos, "--model", file, "-o", tmp_path / "out", "--rows", ROWS)
    assert done.returncode == 2
    assert "is of a run with model sha256 " in done.stderr


def test_a_source_that_grew_at_its_end_is_continued_and_another_change_is_refused(
    classifier_file: str, tmp_path: Path
) -> None:
    source, out = fill(tmp_path / "source", 40), tmp_path / "out"
    run(classifier_file, source, out)
    for number, file in enumerate(sorted(fill(tmp_path / "more", 12, seed=2).iterdir())):
        shutil.copyfile(file, source / f"9{number:04d}{file.suffix}")
    assert run(classifier_file, source, out)[:3] == (52, 2, 20)
    assert [row["id"] for row in rows(out)] == [entry.id for entry in listed(str(source))]
    shutil.copyfile(source / "00000.jpg", source / "00017a.jpg")
    assert "the source has changed: part-00001.parquet has " in refusal(classifier_file, source, out)
    (source / "00017a.jpg").unlink()
    for file in sorted(source.iterdir())[32:]:
        file.unlink()
    assert "is of images that the source no longer has" in refusal(classifier_file, source, out)


def test_a_damaged_part_is_named(classifier_file: str, photos: Path, tmp_path: Path) -> None:
    run(classifier_file, photos, tmp_path)
    output.part(tmp_path, 2).write_bytes(b"PAR1 damaged")
    told = refusal(classifier_file, photos, tmp_path)
    assert told.startswith(f"{str(output.part(tmp_path, 2))!r} cannot be read (")
    assert told.endswith("): delete it, and run the same command")


def test_an_empty_source_is_refused(classifier_file: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(classifier_file, tmp_path / "empty", tmp_path / "out")


def test_an_error_in_the_middle_of_the_list_ends_the_run_and_keeps_what_is_done(
    classifier_file: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def until_a_duplicate(*arguments: Any, **options: Any) -> Any:
        for number, entry in enumerate(listed(*arguments, **options)):
            if number == 100:
                raise BadConfig("id '7' is there twice")
            yield entry

    monkeypatch.setattr(local, "listed", until_a_duplicate)
    assert refusal(classifier_file, photos, tmp_path) == "id '7' is there twice"
    monkeypatch.undo()
    run(classifier_file, photos, tmp_path)
    assert len(rows(tmp_path)) == 200


def test_a_full_disk_is_one_line_and_loses_nothing(segmenter_file: str, photos: Path, tmp_path: Path) -> None:
    run(segmenter_file, photos, tmp_path / "whole", rows=64)
    run(segmenter_file, photos, tmp_path / "out", rows=64)
    for number in (1, 2):
        output.part(tmp_path / "out", number).unlink()
    # Files may not be larger: what is written ends as on a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        told = refusal(segmenter_file, photos, tmp_path / "out", rows=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert told.endswith(
        "cannot be written: File too large; all that was committed is kept, the same command continues"
    )
    assert not list((tmp_path / "out").glob(".*.tmp"))
    assert run(segmenter_file, photos, tmp_path / "out", rows=64).scored == 128
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")


# Python imports this module at its start. It makes the decoder crash, as an error in its handling of memory would.
CRASHING = """
import ctypes

from convoy.service.images import png

read_image = png.read_image


def crash(data, structure):
    if b"crash the decoder" in data:
        ctypes.string_at(0)
    return read_image(data, structure)


png.read_image = crash
"""


def test_an_image_that_crashes_the_decoder_ends_one_run_and_is_a_row_of_the_next(
    segmenter_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = fill(tmp_path / "source", 40), tmp_path / "out"
    deadly = source / "00021.png"
    deadly.write_bytes(deadly.read_bytes() + b"crash the decoder")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)]))
    options = (source, "--model", segmenter_file, "-o", out, "--rows", 8)
    assert finished(*options).returncode == -signal.SIGSEGV
    done = finished(*options)
    assert done.returncode == 1
    found = rows(out)
    assert [row["error"] for row in found if Path(row["id"]).name == deadly.name] == [
        "image ends the process that decodes it: it is refused"
    ]
    assert sum(row["error"] is not None for row in found) == 3
    assert len(found) == 40
    assert not list((out / ".convoy").glob(".decoding-*"))


def test_masks_as_files_are_named_in_the_rows(segmenter_file: str, photos: Path, tmp_path: Path) -> None:
    import numpy as np
    import PIL.Image

    run(segmenter_file, photos, tmp_path / "rows", masks="png")
    run(segmenter_file, photos, tmp_path / "out", mask_files=str(tmp_path / "masks"))
    inside, beside = rows(tmp_path / "rows"), rows(tmp_path / "out")
    for row, named in zip(inside, beside, strict=True):
        assert "mask" not in named
        if row["error"]:
            assert named["mask_file"] is None
        else:
            file = tmp_path / "masks" / named["mask_file"]
            assert file.read_bytes() == row["mask"]
    assert len(list((tmp_path / "masks").iterdir())) == 188
    assert beside[0]["mask_file"] == "00000000-" + beside[0]["mask_file"].partition("-")[2]
    picture = PIL.Image.open(tmp_path / "masks" / beside[0]["mask_file"])
    assert picture.mode == "P"
    assert int(np.asarray(picture).max()) < 4


def test_ids_never_lead_out_of_the_folder_of_masks(segmenter_file: str, tmp_path: Path) -> None:
    ids = ["../../etc/passwd", "/absolute/x.png", "a.tar!..", "é" * 300, "..", ""]
    names = output._write_masks(tmp_path / "masks", 1022, ids, [b"mask"] * len(ids))
    assert len(set(names)) == len(ids)
    assert sorted(each.name for each in (tmp_path / "masks").iterdir()) == sorted(map(str, names))
    assert names[0] == "00001022-etc-passwd.png"


def test_mask_files_of_a_classifier_are_refused(classifier_file: str, photos: Path, tmp_path: Path) -> None:
    told = refusal(classifier_file, photos, tmp_path / "out", mask_files=str(tmp_path / "masks"))
    assert told == "--mask-files is for segmentation: this model has no masks"


def test_the_record_says_what_decides_the_bytes(classifier_file: str, photos: Path, tmp_path: Path) -> None:
    run(classifier_file, photos, tmp_path, top_k=2)
    record = json.loads((tmp_path / "_score.json").read_text())
    assert record["top_k"] == 2
    assert record["rows"] == ROWS
    assert record["batch_size"] >= 1
    assert list(record["model"]) == ["sha256"]
