"""Harms the processes of a real server from within, on command, and counts there what is not visible from outside.

A server that starts with `environment` imports `injected/sitecustomize.py`, which calls one function of faults.py in
each engine and front end. Both sides share a `Board`.
"""

import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

_FUNCTION, _FILE = "CONVOY_TEST_FAULT", "CONVOY_TEST_BOARD"
_FOLDER = Path(__file__).with_name("injected")
_CELLS = 16


class Board:
    """Numbers that a test and the processes of a server share. One process writes each, but for orders, which are
    written by the test and taken by a process."""

    def __init__(self, file: Path) -> None:
        self.file = file
        if not file.exists():
            file.write_bytes(bytes(8 * _CELLS))
        self.cells = np.memmap(file, np.int64, "r+", shape=(_CELLS,))
        self._lock = threading.Lock()

    def add(self, cell: int, count: int = 1) -> None:
        """Counts."""
        with self._lock:
            self.cells[cell] += count

    def most(self, cell: int, value: int) -> None:
        """Keeps the largest value."""
        with self._lock:
            self.cells[cell] = max(int(self.cells[cell]), value)

    def take(self, cell: int, wanted: Callable[[int], bool]) -> int:
        """Returns an order that is there and wanted, once; otherwise 0."""
        with self._lock:
            order = int(self.cells[cell])
            if not order or not wanted(order):
                return 0
            self.cells[cell] = 0
            return order


def environment(function: Callable[[str, Board], None], board: Board) -> dict[str, str]:
    """Returns the environment of a server whose processes call a function of faults.py: with "engine" or "frontend"."""
    paths = [_FOLDER, Path(__file__).parents[2], os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        _FUNCTION: f"{function.__module__}:{function.__name__}",
        _FILE: str(board.file),
    }


def begin() -> None:
    """Calls the function, in an engine or a front end."""
    kind = next((word.split(".")[2] for word in sys.orig_argv if word.startswith("convoy.service.")), "")
    if kind in ("engine", "frontend") and (function := os.environ.get(_FUNCTION)):
        module, _, name = function.partition(":")
        getattr(import_module(module), name)(kind, Board(Path(os.environ[_FILE])))
