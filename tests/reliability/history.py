"""What all runs have counted so far: one JSON file, written after each chunk, so that a run may end at any time."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import NamedTuple

from tests.reliability.probe import Tally


class Line(NamedTuple):
    """The totals of one probe.

    chunks   how many times it ran; also the seed of the next
    control  whether the last control was found
    day      of the last chunk
    machine  of the last chunk
    """

    tally: Tally = Tally()
    chunks: int = 0
    control: bool = False
    day: str = ""
    machine: str = ""

    def with_chunk(self, tally: Tally, machine: str) -> "Line":
        return self._replace(
            tally=self.tally + tally, chunks=self.chunks + 1, day=date.today().isoformat(), machine=machine
        )


def load(file: Path) -> dict[str, Line]:
    """Lines by the keys of their probes; none if there is no file."""
    if not file.exists():
        return {}
    return {
        key: Line(Tally(**{**values["tally"], "examples": tuple(values["tally"]["examples"])}), *values["rest"])
        for key, values in json.loads(file.read_text(encoding="utf-8")).items()
    }


def update(file: Path, lines: Mapping[str, Line]) -> None:
    """Replaces these lines and keeps all others. Several runs may do so at once, each with lines of its own."""
    with locked(file):
        save(file, {**load(file), **lines})


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Waits for all others that have locked it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def save(file: Path, lines: Mapping[str, Line]) -> None:
    """Replaces the file in one step."""
    values = {key: {"tally": dataclasses.asdict(line.tally), "rest": line[1:]} for key, line in lines.items()}
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(values, indent=1), encoding="utf-8")
    fresh.replace(file)
