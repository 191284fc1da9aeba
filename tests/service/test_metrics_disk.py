"""A full disk costs metrics, never the process that counts."""

import errno
import os
from pathlib import Path

import pytest

from service.metrics import Counts


def _full(descriptor: int, offset: int, length: int) -> None:
    raise OSError(errno.ENOSPC, "no space left")


def _write(counts: Counts, key: str, value: float) -> None:
    counts.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]


def _read(counts: Counts, key: str) -> float:
    return float(counts.read_value(key)[0])  # type: ignore[no-untyped-call]


def _stored(path: str) -> list[tuple[str, float]]:
    entries = Counts.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
    return [(entry[0], entry[1]) for entry in entries]


def test_a_disk_full_at_the_start_leaves_no_file_and_counting_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _full)
    counts = Counts(str(tmp_path / "counter_1.db"))
    for number in range(2000):
        _write(counts, f"key {number}", number)
    assert _read(counts, "key 1999") == 1999
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_keeps_what_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "counter_1.db")
    counts = Counts(path)
    _write(counts, "first", 3.0)
    monkeypatch.setattr(os, "posix_fallocate", _full)
    for number in range(2000):
        _write(counts, f"key {number}", number)
    assert (_read(counts, "first"), _read(counts, "key 1999")) == (3.0, 1999)
    assert ("first", 3.0) in _stored(path)


def test_the_blocks_of_a_file_are_reserved(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    counts = Counts(str(path))
    for number in range(2000):
        _write(counts, f"key {number}", 1.0)
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    assert len(_stored(str(path))) == 2000
