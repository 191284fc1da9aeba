"""A full disk costs metrics, never the process that counts."""

import errno
import os
from pathlib import Path

import pytest

from service.metrics import Counts


def _full(descriptor: int, offset: int, length: int) -> None:
    raise OSError(errno.ENOSPC, "no space left")


def test_a_disk_full_at_the_start_leaves_no_file_and_counting_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _full)
    counts = Counts(str(tmp_path / "counter_1.db"))
    for number in range(2000):
        counts.write_value(f"key {number}", number, 0.0)
    assert counts.read_value("key 1999")[0] == 1999
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_keeps_what_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "counter_1.db")
    counts = Counts(path)
    counts.write_value("first", 3.0, 0.0)
    monkeypatch.setattr(os, "posix_fallocate", _full)
    for number in range(2000):
        counts.write_value(f"key {number}", number, 0.0)
    assert (counts.read_value("first")[0], counts.read_value("key 1999")[0]) == (3.0, 1999)
    assert ("first", 3.0) in [entry[:2] for entry in Counts.read_all_values_from_file(path)]


def test_the_blocks_of_a_file_are_reserved(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    counts = Counts(str(path))
    for number in range(2000):
        counts.write_value(f"key {number}", 1.0, 0.0)
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    assert len(list(Counts.read_all_values_from_file(str(path)))) == 2000
