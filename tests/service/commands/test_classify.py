import csv
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from convoy.service.client.client import Client
from convoy.service.commands.classify import requests, show


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def digit():
    def write(value, name=None):
        path = Path(name or f"digit{value}.png")
        PIL.Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def broken():
    path = Path("broken.png")
    path.write_text("no image")
    return path


def test_each_image_is_shown_with_its_ranked_labels_and_timings(convoy, vision_target, fake_vision, digit):
    done = convoy("classify", digit(7), digit(243), "--server", vision_target, "--top-k", 2)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if "version 3" in line] == [
        "digit7.png  digits version 3",
        "digit243.png  digits version 3",
    ]
    assert lines.count("total 5.50 ms, batch of 4") == 2
    assert max(map(len, lines)) <= 80
    assert len(fake_vision.requests) == 1


def test_labels_come_most_probable_first(convoy, vision_target, digit):
    done = convoy("classify", digit(7), "--server", vision_target, "--top-k", 2, "--no-picture")
    ranked = [line.split() for line in done.stdout.splitlines()[1:3]]
    assert [(row[0], row[-1]) for row in ranked] == [("7", "50.0%"), ("8", "25.0%")]


def test_picture_is_in_characters_where_there_is_no_terminal(convoy, vision_target, digit):
    assert "@@@@" in convoy("classify", digit(255), "--server", vision_target).stdout
    assert "@@@@" not in convoy("classify", digit(255), "--server", vision_target, "--no-picture").stdout


def test_picture_is_in_coloured_half_blocks_on_a_terminal(vision_target, digit, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Client(vision_target) as client:
        answer = client.classify(digit(77))
    file = io.StringIO()
    out = Console(file=file, width=80, force_terminal=True, color_system="truecolor", legacy_windows=False)
    show(out, "x.png", digit(77).read_bytes(), answer)
    assert file.getvalue().count("\x1b[38;2;77;77;77;48;2;77;77;77m▀\x1b[0m") == 28 * 14


def test_refused_image_is_a_line_of_its_own_and_the_others_are_answered(convoy, vision_target, digit, broken):
    done = convoy("classify", digit(1), broken, digit(2), "--server", vision_target)
    assert done.returncode == 1
    assert done.stdout.count("version 3") == 2
    assert "broken.png  image is not a PNG, want a JPEG or PNG file" in done.stdout.splitlines()


def test_single_refused_image_is_told_the_same_way(convoy, vision_target, broken):
    done = convoy("classify", broken, "--server", vision_target)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "broken.png  image is not a PNG, want a JPEG or PNG file\n"


def test_file_that_cannot_be_read_does_not_stop_the_others(convoy, vision_target, fake_vision, digit):
    done = convoy("classify", digit(1), "absent.png", digit(2), "--server", vision_target, "--no-picture")
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line for line in done.stdout.splitlines() if ".png" in line]
    assert lines == [
        "digit1.png  digits version 3",
        "absent.png  cannot read image 'absent.png': No such file or directory",
        "digit2.png  digits version 3",
    ]
    assert len(fake_vision.requests) == 1


def test_nothing_is_sent_where_no_file_can_be_read(convoy, vision_target, fake_vision):
    done = convoy("classify", "absent.png", "--server", vision_target)
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    assert fake_vision.requests == []


def test_folder_stands_for_the_pictures_in_it(convoy, vision_target, fake_vision, digit):
    for name in ("some/b.png", "some/a.PNG", "some/.hidden.png", "some/notes.txt", "some/below/c.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        digit(3, name) if name.lower().endswith("png") else Path(name).write_text("no picture")
    done = convoy("classify", "some", digit(4), "--server", vision_target, "--no-picture")
    assert (done.returncode, done.stderr) == (0, "")
    named = [line.split()[0] for line in done.stdout.splitlines() if "version 3" in line]
    assert named == ["some/a.PNG", "some/b.png", "digit4.png"]


def test_folder_without_pictures_is_one_line(convoy, vision_target):
    Path("empty").mkdir()
    done = convoy("classify", "empty", "--server", vision_target)
    assert (done.returncode, done.stderr) == (2, "convoy classify: folder 'empty' has no image files in it\n")


def test_csv_has_a_row_for_each_image_and_label(convoy, vision_target, digit, broken):
    done = convoy(
        "classify", digit(4, "a, b.png"), broken, "absent.png", "--csv", "--top-k", 2, "--server", vision_target
    )
    assert (done.returncode, done.stderr) == (1, "")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["image"], row["rank"], row["label"], row["probability"]) for row in rows] == [
        ("a, b.png", "1", "4", "0.5"),
        ("a, b.png", "2", "5", "0.25"),
        ("broken.png", "", "", ""),
        ("absent.png", "", "", ""),
    ]
    assert (rows[0]["model"], rows[0]["version"], rows[0]["error"]) == ("digits", "3", "")
    assert [row["error"][:18] for row in rows[2:]] == ["image is not a PNG", "cannot read image "]


def test_two_formats_at_once_are_refused(convoy, vision_target, digit):
    done = convoy("classify", digit(1), "--csv", "--json", "--server", vision_target)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--json and --csv exclude each other" in done.stderr


def test_other_formats_are_shown_and_answered_like_png(convoy, vision_target):
    for kind in ("tif", "bmp", "gif"):
        PIL.Image.fromarray(np.full((8, 8), 7, np.uint8)).save(f"a.{kind}")
    done = convoy("classify", "a.tif", "a.bmp", "a.gif", "--server", vision_target, "--top-k", 1)
    assert (done.returncode, done.stdout.count("50.0%")) == (0, 3)


def test_unknown_model_is_told_with_the_nearest_one(convoy, vision_target, fake_vision, digit):
    fake_vision.models[0].model = "missing-not"
    done = convoy("classify", digit(1), "--model", "missing", "--server", vision_target)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "convoy classify: no model 'missing'; did you mean 'missing-not'?\n"


@pytest.mark.parametrize(("model", "said"), [("missing", "no model 'missing'"), ("full", "1024 images wait already")])
def test_refused_request_is_one_line_and_exit_code_2(convoy, vision_target, digit, model, said):
    done = convoy("classify", digit(1), "--model", model, "--server", vision_target)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"convoy classify: {said}\n"


def test_passed_deadline_is_one_line_and_exit_code_2(convoy, vision_target, digit):
    done = convoy("classify", digit(1), "--model", "never", "--deadline", 0.1, "--server", vision_target)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "within 0.1 seconds" in done.stderr


def test_json_has_a_line_for_each_image(convoy, vision_target, digit, broken):
    done = convoy("classify", digit(4), broken, "--json", "--server", vision_target)
    answered, refused = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1
    assert (answered["image"], answered["labels"][0]["name"]) == (str(digit(4)), "4")
    assert answered["timings"]["batch_size"] == 4
    assert json.loads(convoy("classify", "absent.png", "--json", "--server", vision_target).stdout)["error"] == {
        "code": "INVALID_ARGUMENT",
        "reason": "BAD_IMAGE",
        "message": "cannot read image 'absent.png': No such file or directory",
    }
    assert refused["error"] == {
        "code": "INVALID_ARGUMENT",
        "reason": "BAD_IMAGE",
        "message": "image is not a PNG, want a JPEG or PNG file",
    }


def test_label_and_file_names_are_printed_as_they_are(convoy, vision_target, digit):
    done = convoy("classify", digit(4, "[bold]x.png"), "--server", vision_target)
    assert "[bold]x.png" in done.stdout


def test_requests_are_as_few_as_the_limits_allow():
    files = [(str(number), bytes(1000)) for number in range(5)]
    assert [len(part) for part in requests(files, max_images=2, max_message_bytes=10**6)] == [2, 2, 1]
    assert [len(part) for part in requests(files, max_images=9, max_message_bytes=3500)] == [3, 2]
    assert [len(part) for part in requests(files, max_images=9, max_message_bytes=500)] == [1] * 5
    assert [file for part in requests(files, max_images=2, max_message_bytes=10**6) for file in part] == files
