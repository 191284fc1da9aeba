"""`convoy` run in this process, as on a plain terminal of 80 columns, and a server whose answers are known."""

import subprocess

import pytest

from convoy.service import cli
from tests.service.fake_vision import FakeVision, serving


@pytest.fixture
def fake_vision():
    return FakeVision()


@pytest.fixture
def vision_target(fake_vision):
    with serving(fake_vision) as target:
        yield target


@pytest.fixture
def convoy(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return run
