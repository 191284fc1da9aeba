"""Commands that print tables and pictures: on narrow and dumb terminals, without colours, in pipes, in old locales."""

import os
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.service.fake_vision import CLASSES, FakeVision
from tests.service.monitor.pages import RECORDED, answering
from tests.service.terminal import CONVOY, plain, terminal

COLOURS = "\x1b[38;"


@pytest.fixture
def commands(vision_target: str, fake_vision: FakeVision, tmp_path: Path) -> dict[str, list[object]]:
    """The words of each command."""
    fake_vision.models[0].metrics.update({"top5": 0.9999, "calibration_error": 0.0123})
    fake_vision.models[0].model = "a-model-with-a-rather-long-name"
    fake_vision.models[1].model = "digits"
    fake_vision.models[1].task = 1
    digit = tmp_path / "digit.png"
    PIL.Image.fromarray(np.full((8, 8), 7, np.uint8)).save(digit)
    to = ["--server", vision_target]
    return {
        "models": ["models", *to],
        "classify": ["classify", digit, "--top-k", 3, *to],
        "segment": ["segment", digit, "--model", "pets", "-o", tmp_path / "mask.png", *to],
        "bench": ["bench", "--model", "digits", "--rate", 50, "--seconds", "1s", *to],
    }


def shown_on(arguments: list[object], columns: int, **environment: str) -> tuple[int, str, int]:
    """Exit code, text with its escape codes, and widest line."""
    with terminal(*arguments, columns=columns, **environment) as running:
        return running.end(), running.shown, running.widest


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("name", ["models", "classify", "segment", "bench"])
def test_terminal_is_filled_and_not_overrun(commands: dict[str, list[object]], name: str, columns: int) -> None:
    code, shown, widest = shown_on(commands[name], columns)
    assert code == 0
    assert "\x1b[" in shown
    # The path of a file is one word, however long.
    lines = [line for line in plain(shown).splitlines() if "/" not in line]
    assert max(map(len, lines)) <= columns, widest
    if name == "models":
        assert "a-model-with-a-rather-long-name" in shown


@pytest.mark.parametrize("name", ["models", "classify", "segment", "bench"])
def test_terminal_without_colours_gets_none(commands: dict[str, list[object]], name: str) -> None:
    _, shown, _ = shown_on(commands[name], 80, NO_COLOR="1")
    assert COLOURS not in shown
    assert "\x1b[31m" not in shown
    assert "\x1b[32m" not in shown


@pytest.mark.parametrize("name", ["models", "classify", "segment", "bench"])
def test_dumb_terminal_gets_no_escape_codes(commands: dict[str, list[object]], name: str) -> None:
    code, shown, _ = shown_on(commands[name], 80, TERM="dumb")
    assert code == 0
    assert "\x1b" not in shown


def test_terminal_with_colours_gets_them(commands: dict[str, list[object]]) -> None:
    """The control of the two above."""
    assert COLOURS in shown_on(commands["classify"], 80, COLORTERM="truecolor")[1]


def piped(arguments: list[object], **environment: str) -> subprocess.CompletedProcess[bytes]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))
    }
    command = [CONVOY, *map(str, arguments)]
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, check=False)


ASCII = {"PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        *((name, ASCII) for name in ("models", "classify", "segment", "bench")),
        ("classify", {"PYTHONIOENCODING": "latin-1"}),
        ("classify", {"LANG": "C"}),
    ],
)
def test_old_locale_is_no_reason_to_fail(
    commands: dict[str, list[object]], name: str, environment: dict[str, str]
) -> None:
    done = piped(commands[name], **environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"unexpected" not in done.stderr
    if environment is ASCII:
        assert done.stdout.isascii()
        assert {"classify": b"##", "segment": CLASSES[0].encode(), "models": b"32x32", "bench": b"##"}[
            name
        ] in done.stdout


def test_top_replaces_what_an_old_locale_lacks() -> None:
    with answering(RECORDED) as (address, _):
        done = piped(["top", "--metrics", address, "--once", "--interval", "500ms"], PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"requests/s - " in done.stdout


def test_help_and_errors_are_printed_in_an_old_locale(tmp_path: Path) -> None:
    done = piped(["classify", tmp_path / "größe.png", "--top-k", "ä"], PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
