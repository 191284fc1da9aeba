"""What a run shows while it trains: a line per epoch, an estimate of the time, a bar on a terminal."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from convoy.models.training import progress
from convoy.models.training.module import Training
from convoy.models.training.progress import duration
from convoy.models.training.train import train
from tests.models.conftest import settings


@pytest.fixture
def estimate_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(progress, "ESTIMATE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "SHORT_RUN_SECONDS", 0.0)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes two seconds, all else no time: six seconds an epoch, whatever this process is paused."""
    now, step = 0.0, Training.training_step

    def timed(self: Training, *arguments: Any) -> Any:
        nonlocal now
        now += 2.0
        return step(self, *arguments)

    monkeypatch.setattr(Training, "training_step", timed)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))


@pytest.mark.usefixtures("estimate_at_once", "steady")
def test_time_of_an_epoch_and_of_the_run_is_estimated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(settings(epochs=2), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["about", "epoch", "epoch"]
    assert lines[0] == "about 6 s per epoch, 12 s for 2 epochs"


@pytest.mark.usefixtures("steady")
def test_time_of_a_short_run_is_not_estimated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(settings(epochs=2), tmp_path)
    assert "about" not in capsys.readouterr().err


@pytest.mark.usefixtures("estimate_at_once")
@pytest.mark.parametrize("data", ["tiny-digits", "tiny-scenes"])
def test_lines_and_bar_fit_into_a_terminal_of_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    monkeypatch.setattr("convoy.models.training.train.is_terminal", lambda: True)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    train(settings("lenet5" if data == "tiny-digits" else "unet", data, epochs=2), tmp_path)
    text = shown.getvalue()
    lines = [line.rpartition("\r")[2].replace("\x1b[2K", "") for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("epoch 1/2  loss ") for line in lines) == 1
    assert any("━" in line and "images/s" in line and "left" in line for line in lines)
    assert any("validation" in line and "━" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59, "59 s"), (61, "1 min"), (3000, "50 min"), (5400, "1.5 h"), (40_000, "11.1 h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
