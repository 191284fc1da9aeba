"""Runs as reports read them: note, history and chosen checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from convoy.models.data.registry import display_name
from convoy.models.errors import BadRun
from convoy.models.training import run
from convoy.models.training.run import Note, Row, RunFolder


@dataclass(frozen=True)
class Run:
    """`rows` are by epoch; none for a run of an earlier version."""

    root: Path
    note: Note
    rows: list[Row]

    @property
    def checkpoint(self) -> Path:
        return self.root / self.note.checkpoint

    def settings_by_name(self) -> dict[str, str]:
        """Returns all settings by name, without the folders above the data."""
        settings = msgspec.to_builtins(self.note.settings)
        return _flat({**settings, "data": display_name(settings["data"])})


def read(root: Path) -> Run:
    """Reads the run in a folder. Raises BadRun."""
    note = RunFolder(root).read()
    if note is None:
        raise BadRun(f"{root} is not the folder of a run of this version, want one that `convoy train` wrote")
    if not (root / note.checkpoint).is_file():
        raise BadRun(f"the run in {root} has no {note.checkpoint} yet, want one that completed an epoch")
    return Run(root, note, run.read_metrics(root / run.METRICS))


def read_all(roots: Sequence[Path]) -> list[Run]:
    """Reads the runs to compare. Raises BadRun, also if there are fewer than two."""
    if len(roots) < 2:
        raise BadRun(f"{len(roots)} run, want at least two to compare")
    return [read(root) for root in roots]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = str(value)
    return flat
