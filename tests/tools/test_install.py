"""Progress of an installation, from pip's output; no package is installed here."""

import io
import re
import sys
from pathlib import Path

import pytest

from tools import install
from tools.install import Display, Progress

OUTPUT = """\
Obtaining file:///home/me/convoy
  Installing build dependencies: started
  Preparing editable metadata (pyproject.toml): finished with status 'done'
Collecting grpcio>=1.85.1 (from convoy==0.1.0)
  Downloading grpcio-1.85.1-cp311-cp311-manylinux_2_17_x86_64.whl.metadata (3.8 kB)
Collecting torch==2.13.0 (from convoy==0.1.0)
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (29 kB)
Using cached grpcio-1.85.1-cp311-cp311-manylinux_2_17_x86_64.whl (6.3 MB)
Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (187.2 MB)
Installing collected packages: Typing_Extensions, torch, convoy
Successfully installed convoy-0.1.0 torch-2.13.0 typing-extensions-4.15.0
"""


def shown(lines: int, bytes_fetched: int = 0, installed: tuple[str, ...] = ()) -> str:
    progress = Progress()
    for line in OUTPUT.splitlines()[:lines]:
        progress.read(line)
    return progress.shown(bytes_fetched, set(installed))


def test_each_phase_names_a_package_and_a_count() -> None:
    assert shown(3) == "starting pip"
    assert shown(7) == "looking up package 2: torch"
    assert shown(8) == "fetching package 1: grpcio-1.85.1"
    assert shown(9) == "fetching package 2: torch-2.13.0 (187.2 MB)"
    assert shown(9, 93_400_000) == "fetching package 2: torch-2.13.0 (93 of 187.2 MB)"
    assert shown(10, installed=("typing-extensions",)) == "installing 1 of 3 packages: torch"
    assert shown(11, installed=("typing-extensions", "torch", "convoy")) == "installing 3 of 3 packages"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_shows_one_line_that_is_redrawn() -> None:
    out = Terminal()
    display = Display(out)
    for number in range(3):
        display.show(f"fetching package {number}")
    display.end("installed 3 packages")
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().split("\r\x1b[2K")[-1].endswith("installed 3 packages\n")


def test_elsewhere_lines_are_few_but_silence_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(install.time, "monotonic", lambda: now)
    out = io.StringIO()
    display = Display(out)
    for second in range(61):
        now = 100.0 + second
        display.show("fetching package 1" if second > 2 else f"looking up package {second}")
    lines = out.getvalue().splitlines()
    seconds = [int(line.split()[0]) for line in lines]
    assert seconds == [0, 5, 25, 45]
    assert all("\x1b" not in line for line in lines)


def stand_in(folder: Path, code: int) -> Path:
    """A Python that prints pip's output, whatever it is asked."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nprint({OUTPUT!r})\nraise SystemExit({code})\n")
    path.chmod(0o755)
    return path


def test_installation_that_works_ends_with_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(stand_in(tmp_path, 0)))
    out = io.StringIO()
    assert install.install(["something"], out) == 0
    assert re.search(r"installed 3 packages\n$", out.getvalue())


def test_installation_that_fails_shows_what_pip_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(stand_in(tmp_path, 3)))
    assert install.install(["something"], io.StringIO()) == 3
    error = capsys.readouterr().err
    assert "Successfully installed convoy-0.1.0" in error
    assert error.endswith("pip ended with exit code 3; the same command continues with what it has\n")


def test_installed_packages_are_seen_by_their_normal_names() -> None:
    assert {"pytest", "typing-extensions"} <= install._installed()
    assert "no-such-package" not in install._installed()
