"""Traces the path of a request through the running server: its files, their order and their length."""

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
# What every process runs continuously, without a request.
_ALWAYS = ("service/metrics.py Levels", "service/engine/server.py Engine.serve", "service/log.py")


class Traced(NamedTuple):
    """The calls of one process, in order: file and function."""

    calls: Sequence[tuple[str, str]]

    @property
    def files(self) -> list[str]:
        """The files without duplicates, in the order of their first call."""
        return list(dict.fromkeys(file for file, _ in self.calls))


def traced(folder: Path, request: Callable[[], object]) -> list[Traced]:
    """Returns the calls of each process of a server, started with `environment`, while `request` runs. Processes
    without calls are omitted."""
    (folder / "on").touch()
    _wait_until_none(folder, "*.there")
    request()
    (folder / "on").unlink()
    _wait_until_none(folder, "*.noting")
    processes = []
    for file in sorted(folder.glob("*.calls")):
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith(_ALWAYS)]
        calls = [(name, function) for name, _, function in (line.partition(" ") for line in lines)]
        if calls:
            processes.append(Traced(calls))
    return processes


def _wait_until_none(folder: Path, pattern: str) -> None:
    """Waits until no living process has a file of this pattern, which marks a state."""
    until = time.monotonic() + _PATIENCE
    while any(Path("/proc", file.stem).exists() for file in folder.glob(pattern)):
        if time.monotonic() > until:
            raise TimeoutError(f"{folder}: {pattern} after {_PATIENCE:g} seconds")
        time.sleep(0.01)


def environment(folder: Path) -> dict[str, str]:
    """Returns the environment for a server whose calls are traced."""
    paths = [str(TRACING), *([before] if (before := os.environ.get("PYTHONPATH")) else [])]
    return {"PYTHONPATH": os.pathsep.join(paths), "CONVOY_TRACE": str(folder)}


def lines(files: Sequence[str]) -> int:
    """Returns the total number of lines."""
    return sum(len((ROOT / file).read_text().splitlines()) for file in files)


def returns(calls: Sequence[tuple[str, str]]) -> int:
    """Returns how often the path returns to a file it has left."""
    visits = [file for file, _ in groupby(file for file, _ in calls)]
    return len(visits) - len(set(visits))


def workplace() -> "tempfile.TemporaryDirectory[str]":
    """Returns a temporary folder for the trace."""
    return tempfile.TemporaryDirectory(prefix="convoy-trace-")
