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


def test_file_that_cannot_be_read_is_one_line_and_nothing_is_sent(convoy, vision_target, fake_vision, digit):
    done = convoy("classify", digit(1), "absent.png", "--server", vision_target)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "absent.png" in done.stderr
    assert fake_vision.requests == []


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
