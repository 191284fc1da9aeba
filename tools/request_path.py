"""The path of a request through the server, as it is run: which files, in which order, and how long they are."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TRACING = Path(__file__).parent / "tracing"
_PATIENCE = 60.0  # seconds
# What every process does all the time, whoever asks.
_ALWAYS = ("service/metrics.py Levels", "service/engine/server.py Engine.serve", "service/log.py")


class Traced(NamedTuple):
    """The calls of one process, in order: file and function."""

    calls: Sequence[tuple[str, str]]

    @property
    def files(self) -> list[str]:
        """Each once, in the order in which they were first met."""
        return list(dict.fromkeys(file for file, _ in self.calls))


def traced(folder: Path, ask: Callable[[], object]) -> list[Traced]:
    """The calls of each process of a server, started with `environment`, while `ask` runs. Processes in which nothing
    ran are left out."""
    (folder / "on").touch()
    _wait_until_none(folder, "*.there")
    ask()
    (folder / "on").unlink()
    _wait_until_none(folder, "*.noting")
    found = []
    for file in sorted(folder.glob("*.calls")):
        lines = [line for line in file.read_text().splitlines() if not line.startswith(_ALWAYS)]
        calls = [(name, function) for name, _, function in (line.partition(" ") for line in lines)]
        if calls:
            found.append(Traced(calls))
    return found


def _wait_until_none(folder: Path, pattern: str) -> None:
    """Until no living process is in a state, of which its file tells."""
    until = time.monotonic() + _PATIENCE
    while any(Path("/proc", file.stem).exists() for file in folder.glob(pattern)):
        if time.monotonic() > until:
            raise TimeoutError(f"{folder}: {pattern} after {_PATIENCE:g} seconds")
        time.sleep(0.01)


def environment(folder: Path) -> dict[str, str]:
    """For a server whose calls are to be noted."""
    paths = [str(TRACING), *([before] if (before := os.environ.get("PYTHONPATH")) else [])]
    return {"PYTHONPATH": os.pathsep.join(paths), "CONVOY_TRACE": str(folder)}


def lines(files: Sequence[str]) -> int:
    """How long they are together."""
    return sum(len((ROOT / file).read_text().splitlines()) for file in files)


def returns(calls: Sequence[tuple[str, str]]) -> int:
    """How often the path comes back to a file that it has left."""
    visits = [file for file, _ in groupby(file for file, _ in calls)]
    return len(visits) - len(set(visits))


def workplace() -> "tempfile.TemporaryDirectory[str]":
    """A folder for what is noted."""
    return tempfile.TemporaryDirectory(prefix="convoy-trace-")
