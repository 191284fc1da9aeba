"""A file is there whole or not at all."""

import errno
from pathlib import Path
from typing import Never

import pytest

from convoy.models import paths
from convoy.models.training.checkpointing import AtomicCheckpoints


def test_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for content in (b"one", b"another"):
        paths.write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_disk_leaves_the_last_good_checkpoint_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"epoch": 1}, path)
    good = path.read_bytes()

    def full(_: int) -> Never:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        AtomicCheckpoints().save_checkpoint({"epoch": 2}, path)
    assert path.read_bytes() == good
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
